"""Shards of WebDataset on this machine: .tar files whose members `key.jpg` and `key.cls` belong together.

A shard is indexed once, by the headers of its members, and a picture is then read from its place in the file. So
any picture can be had at any time, as everything here asks: a step's images are a function of seed, epoch and
step, and a resumed run sees the same ones. Streaming readers cannot do that.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from routespace.errors import DataError
from routespace.picture_files import plain_name
from routespace.pictures import Colour, header, picture_suffixes, read_picture, why_unreadable
from routespace.train.data.catalogue import Entry, Listed, Split, require_root
from routespace.train.recipe.data import WebDatasetSpec

NAME_FILES = ("classes.txt", "classnames.txt")  # a class name a line, beside the shards


class Member(NamedTuple):
    """A file inside a shard: its name, and where its bytes lie."""

    shard: str
    name: str
    offset: int
    size: int

    @property
    def called(self) -> str:
        """What a message calls it."""
        return f"{self.shard}: {self.name}"

    def content(self) -> bytes:
        """Its bytes; raises DataError when the shard cannot be read any more."""
        try:
            with open(self.shard, "rb") as file:
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            raise DataError(f"{self.called}: cannot be read ({error.strerror})") from error


class ShardReader:
    """Reads pictures from their places in shards."""

    def read(self, place: Member, channels: int, *, background: Colour, at_least: int | None) -> Image.Image:
        """The picture at a place; raises DataError naming it."""
        stream = io.BytesIO(place.content())
        return read_picture(stream, channels, background=background, at_least=at_least, name=place.called)

    def trouble(self, place: Member) -> str | None:
        """From its header alone: one line on why the picture cannot be read, or None."""
        stream = io.BytesIO(place.content())
        try:
            with header(stream):
                return None
        except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
            return f"{place.called}: {why_unreadable(error, stream)}"


class ShardCatalogue:
    """The pictures of the shards in a folder.

    Labels that are whole numbers are a network's outputs: their classes are in the order of the numbers, and named
    by `classes.txt` (a name a line) where it is there. Other labels are names.

    Args:
        spec: the folder, the patterns of the shards' names, and which member is the label.

    Raises:
        DataError: `data.root` is missing.
    """

    def __init__(self, spec: WebDatasetSpec) -> None:
        self.root = require_root(spec.root, "the folder with the shards")
        self.spec = spec
        self.reader = ShardReader()

    def part(self, split: Split, *, whole: bool = False) -> Listed | None:
        """What a part holds; see `Catalogue`. Shards always say which part they are of."""
        patterns = {"train": self.spec.train_shards, "val": self.spec.val_shards, "test": self.spec.test_shards}
        shards = sorted(self.root.glob(patterns[split]))
        if not shards:
            return None
        found = [pair for shard in shards for pair in _samples(shard, self.spec.label)]
        if not found:
            raise DataError(f"{shards[0]}: holds no picture with a label; expected members key.jpg, key.cls")
        order = self._numbered({label for _, label in found})
        names = {label: order[int(label)] if order else label for _, label in found}
        entries = [Entry(place, plain_name(names[label]), place.name) for place, label in found]
        return Listed(f"{self.root}/{patterns[split]}", entries, order=order)

    def _numbered(self, labels: set[str]) -> tuple[str, ...] | None:
        """Names in the order of the numbers; None where labels are names themselves."""
        if not all(label.isdecimal() for label in labels):
            return None
        highest = max(map(int, labels))
        file = next((path for name in NAME_FILES if (path := self.root / name).is_file()), None)
        if file is None:
            return tuple(map(str, range(highest + 1)))
        names = tuple(
            plain_name(line.strip()) for line in file.read_text(encoding="utf-8-sig").splitlines() if line
        )
        if highest >= len(names):
            raise DataError(f"{file}: has {len(names)} names, but label {highest} is there; give a name for each")
        return names


def _samples(shard: Path, label: str) -> Iterator[tuple[Member, str]]:
    """(picture, label) of each key; WebDataset's keys end at the first dot of the file's name."""
    pictures: dict[str, Member] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                path = Path(info.name)
                if not info.isfile() or path.name.startswith("."):
                    continue
                stem, _, ending = path.name.partition(".")
                key = str(path.with_name(stem))
                if f".{ending.lower().rpartition('.')[2]}" in picture_suffixes():
                    pictures.setdefault(key, Member(str(shard), info.name, info.offset_data, info.size))
                elif ending == label or (ending == "json" and label != "cls"):
                    file = tar.extractfile(info)
                    assert file is not None  # a regular file has content
                    labels[key] = _label(file.read(), label if ending == "json" else None, f"{shard}: {info.name}")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{shard}: is no readable .tar file ({error!s:.80}); give uncompressed shards") from error
    for key, member in pictures.items():
        if key not in labels:
            raise DataError(f"{member.called}: has no label {key}.{label}; set data.label, or add it")
        yield member, labels[key]


def _label(content: bytes, field: str | None, called: str) -> str:
    """The label that a member says: all of its text, or a field of its JSON."""
    try:
        text = content.decode("utf-8")
        value: Any = text if field is None else json.loads(text)[field]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{called}: holds no label ({error!s:.60}); set data.label to where it stands") from error
    return str(value).strip()
