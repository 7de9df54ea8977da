"""Catalogues: which pictures a kind of data has, of which class, and which of them are held out.

    Entry, Listed        a picture; what one part (train, val, test) holds
    Catalogue            what each kind of data provides: a folder, a table, shards, a dataset of timm's
    Reader, FileReader   how a picture is read from where its entry says it lies
    hold_out             the validation pictures of a part that has none of its own

No torch here.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple, Protocol

from PIL import Image

from routespace.errors import DataError
from routespace.picture_files import plain_name
from routespace.pictures import Colour, header, read_picture, why_unreadable

Split = Literal["train", "val", "test"]
SALT = b"routespace.split/1:"  # of the validation cut: the same pictures are held out in every run
EXAMPLES = 3  # of many names that one line gives


class Entry(NamedTuple):
    """A picture.

    Attributes:
        place: where it lies, as its catalogue's reader takes it.
        name: its class.
        key: its own path below its class folder, with forward slashes: what its side of the split follows from.
    """

    place: Any
    name: str
    key: str


@dataclass(frozen=True)
class Listed:
    """What a part of the data holds.

    Attributes:
        where: what to call it in a message.
        entries: its pictures.
        order: its classes in the order of a network's outputs, where the data itself says so; else None, for their
            names in alphabetical order.
        left_out: what was found and is no picture, such as ".heic" → 3.
    """

    where: str
    entries: Sequence[Entry]
    order: tuple[str, ...] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in output order."""
        return self.order if self.order is not None else tuple(sorted({entry.name for entry in self.entries}))


class Reader(Protocol):
    """Reads pictures; it travels to loader processes, so it must be picklable."""

    def read(self, place: Any, channels: int, *, background: Colour, at_least: int | None) -> Image.Image:
        """The picture at a place as `read_picture` gives it; raises DataError naming it."""
        ...

    def trouble(self, place: Any) -> str | None:
        """From its header alone: one line on why the picture cannot be read, or None."""
        ...


class Catalogue(Protocol):
    """A kind of data with pictures.

    Attributes:
        reader: reads its pictures.
    """

    @property
    def reader(self) -> Reader: ...

    def part(self, split: Split, *, whole: bool = False) -> Listed | None:
        """What a part holds; None where the data has no such part.

        Args:
            split: train, val or test.
            whole: data without parts is taken as a whole for whatever is asked, not for training alone.

        Raises:
            DataError: it is missing, empty or damaged.
        """
        ...


class FileReader:
    """Reads pictures by their paths."""

    def read(self, place: str, channels: int, *, background: Colour, at_least: int | None) -> Image.Image:
        """The picture at a path; raises DataError naming it."""
        return read_picture(place, channels, background=background, at_least=at_least)

    def trouble(self, place: str) -> str | None:
        """From its header alone: one line on why the picture cannot be read, or None."""
        try:
            with header(place):
                return None
        except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
            return f"{place}: {why_unreadable(error, place)}"


def too_few_classes(listed: Listed) -> str | None:
    """One line on why a classifier cannot be trained on some pictures, or None."""
    if len(listed.classes) >= 2:
        return None
    return f"{listed.where}: 1 class ({listed.classes[0]}); a classifier needs two or more, a folder for each"


def too_few_images(listed: Listed, *sides: Sequence[Entry]) -> str | None:
    """One line on why some pictures cannot be divided, where one of the sides of them is empty, or None."""
    if all(sides):
        return None
    return f"{listed.where}: {len(listed.entries)} images are too few to train and validate with"


def why_unknown(entries: Sequence[Entry], classes: Sequence[str]) -> str | None:
    """One line on the first class of some pictures that is none of a network's, or None."""
    unknown = sorted({entry.name for entry in entries} - set(classes))
    if not unknown:
        return None
    place = next(entry.place for entry in entries if entry.name == unknown[0])
    return (
        f"class {unknown[0]!r} (such as {place!s:.200}) is none of the network's {len(classes)} "
        f"({examples(classes, most=10)}); rename it, or leave it out"
    )


def plain_key(path: PurePath) -> str:
    """A path as a key: forward slashes, accents written one way."""
    return plain_name(path.as_posix())


def hold_out(entries: Sequence[Entry], fraction: float) -> tuple[list[Entry], list[Entry]]:
    """(trained, held out): each picture's side is a function of its own key, whatever lies beside it.

    A key's hash is a number in 0…1; below `fraction` the picture is held out. So that every class is on both
    sides, a class of two pictures or more of which none would be held out gives the one with the lowest number,
    and one of which none would be trained keeps the one with the highest. When pictures are added, what was
    trained on stays so (but for classes that had a single picture, or nothing else to train with).
    """
    by_class: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for i, entry in enumerate(entries):
        by_class[entry.name].append((_share(entry.key), i))
    held: set[int] = set()
    for found in by_class.values():
        chosen = [pair for pair in found if pair[0] < fraction]
        if len(found) >= 2:
            chosen = chosen or [min(found)]
            if len(chosen) == len(found):
                chosen.remove(max(chosen))
        else:
            chosen = []
        held.update(i for _, i in chosen)
    trained = [entry for i, entry in enumerate(entries) if i not in held]
    return trained, [entries[i] for i in sorted(held)]


def three_sides(entries: Sequence[Entry], fraction: float) -> dict[Split, list[Entry]]:
    """train, val and test: each picture's side is a function of its own key, as in `hold_out`.

    val and test get about the share `fraction` each; of a class of three pictures or more every side gets one.
    """
    by_class: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for i, entry in enumerate(entries):
        by_class[entry.name].append((_share(entry.key), i))
    sides: dict[Split, list[int]] = {"train": [], "val": [], "test": []}
    for found in by_class.values():
        found.sort()
        first = sum(share < fraction for share, _ in found)
        second = sum(share < 2 * fraction for share, _ in found)
        if len(found) >= 3:
            first = min(max(first, 1), len(found) - 2)
            second = min(max(second, first + 1), len(found) - 1)
        numbers = [i for _, i in found]
        sides["val"] += numbers[:first]
        sides["test"] += numbers[first:second]
        sides["train"] += numbers[second:]
    return {side: [entries[i] for i in sorted(chosen)] for side, chosen in sides.items()}


def _share(key: str) -> float:
    digest = hashlib.blake2b(SALT + key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def told_classes(count: int) -> str:
    """`1 class`, `2 classes`."""
    return f"{count} class{'' if count == 1 else 'es'}"


def examples(names: Iterable[str], *, most: int = EXAMPLES) -> str:
    """The first few of many names, as a message gives them."""
    listed = list(names)
    return ", ".join(listed[:most]) + (", …" if len(listed) > most else "")


def require_root(root: str | None, wanted: str) -> Path:
    """The path of `data.root`; raises DataError when it is missing or leads nowhere."""
    if root is None:
        raise DataError(f"data.root: missing; give {wanted} (--data PATH)")
    path = Path(root).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such folder or file; give {wanted} (--data PATH)")
    return path
