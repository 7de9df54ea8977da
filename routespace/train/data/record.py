"""What is told of a run's data, and what a run remembers of it.

    Summary      the line at the start: `3 classes, 412 images (train 330, val 82): ant 120, cat 150, dog 142`
    DataRecord   names and sides of all pictures, kept in the run folder; `changes` tells what is different now

No torch here.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from routespace.errors import BundleError
from routespace.train.data.catalogue import Entry, examples, told_classes
from routespace.train.data.folder import told_left_out

FORMAT = "routespace.data/1"
MOST_NAMES = 100_000  # pictures whose names are kept: beyond, a run remembers numbers and digests alone
SHOWN_CLASSES = 10
FEW = 5  # validation images of a class: with fewer, accuracy and threshold say little


@dataclass(frozen=True)
class Summary:
    """What a run is about to see.

    Attributes:
        counts: part (train, val) → class → pictures, or objects where pictures have several.
        left_out: what was found and is no picture, such as ".heic" → 3.
        warnings: what to think about before training, a line each.
        images: part → pictures, where `counts` are of objects.
        classes: how many there are, where pictures may be without any.
    """

    counts: Mapping[str, Mapping[str, int]]
    left_out: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    images: Mapping[str, int] | None = None
    classes: int | None = None

    @property
    def text(self) -> str:
        """One line."""
        totals: Counter[str] = Counter()
        for part in self.counts.values():
            totals.update(part)
        images = self.images or {name: sum(part.values()) for name, part in self.counts.items()}
        parts = ", ".join(f"{name} {count}" for name, count in images.items())
        each = examples((f"{name} {count}" for name, count in sorted(totals.items())), most=SHOWN_CLASSES)
        objects = f", {sum(totals.values())} objects" if self.images and each else ""
        told = f"; left out: {told_left_out(dict(self.left_out))}" if self.left_out else ""
        text = f"{told_classes(self.classes or len(totals))}, {sum(images.values())} images ({parts}){objects}"
        return f"{text}{f': {each}' if each else ''}{told}"


def in_turn(size: int, classes: Sequence[str]) -> dict[str, int]:
    """How many of `size` scenes each class gets, to within one."""
    whole, rest = divmod(size, len(classes))
    return {name: whole + (i < rest) for i, name in enumerate(classes)}


def summarise(
    parts: Mapping[str, Sequence[Entry]], classes: Sequence[str], left_out: Mapping[str, int]
) -> Summary:
    """Count the pictures of each part and class, and say what is dubious."""
    counts = {part: dict(Counter(entry.name for entry in entries)) for part, entries in parts.items()}
    warnings = []
    if held := counts.get("val"):
        warnings += _few(held, classes)
        warnings += leaks(*([entry.place for entry in parts.get(part, ())] for part in ("train", "val")))
    if "train" in counts and (unseen := [name for name in classes if name not in counts["train"]]):
        warnings.append(f"no training images of {_classes(len(unseen))} ({examples(unseen)})")
    if all(name.isdecimal() for name in classes) and list(classes) != sorted(classes, key=int):
        warnings.append("class names are numbers, in the order of their text: 10 comes before 2")
    return Summary(counts, dict(left_out), tuple(warnings))


def leaks(trained: Iterable[Any], held: Iterable[Any]) -> tuple[str, ...]:
    """A line where files that are trained on are also measured by; `routespace data check` finds copies, too."""
    seen = set(trained)
    both = list(dict.fromkeys(place for place in held if isinstance(place, str) and place in seen))
    if not both:
        return ()
    what = "1 validation image is" if len(both) == 1 else f"{len(both)} validation images are"
    return (
        f"{what} trained on, too ({examples(both)}): what is measured says too much; leave them out of one part",
    )


def _classes(count: int) -> str:
    return f"{count} {'class' if count == 1 else 'classes'}"


def _few(held: Mapping[str, int], classes: Sequence[str]) -> list[str]:
    few = [name for name in classes if held.get(name, 0) < FEW]
    if not few:
        return []
    total = sum(held.values())
    each = examples(f"{name} {held.get(name, 0)}" for name in few)
    return [
        f"fewer than {FEW} validation images of {_classes(len(few))} ({each}): accuracy moves in steps of "
        f"{100 / total:.2g} % (all classes) and says little of these, and the gates' threshold is set by what "
        f"{total} images cost; hold out more (data.val_fraction, or val/<class>/ folders)"
    ]


@dataclass(frozen=True)
class DataRecord:
    """The pictures of a run.

    Attributes:
        classes: names in output order.
        digests: part → class → hash of its pictures' names.
        counts: part → class → pictures.
        names: part → class → names of its pictures; empty where there are more than `MOST_NAMES`.
    """

    classes: tuple[str, ...]
    digests: Mapping[str, Mapping[str, str]]
    counts: Mapping[str, Mapping[str, int]]
    names: Mapping[str, Mapping[str, Sequence[str]]]

    @classmethod
    def of(cls, parts: Mapping[str, Sequence[Entry]], classes: Sequence[str]) -> DataRecord:
        """The record of what each part holds."""
        names = {part: _by_class(entries) for part, entries in parts.items()}
        digests = {part: {name: _digest(keys) for name, keys in found.items()} for part, found in names.items()}
        counts = {part: {name: len(keys) for name, keys in found.items()} for part, found in names.items()}
        few = sum(map(len, parts.values())) <= MOST_NAMES
        return cls(tuple(classes), digests, counts, names if few else {})

    @property
    def digest(self) -> str:
        """Twelve hex digits: equal for the same classes, pictures' names and sides, wherever they lie."""
        lines = [
            f"{part}/{name}:{digest}" for part, found in self.digests.items() for name, digest in found.items()
        ]
        return _digest([*self.classes, *sorted(lines)])

    def to_json(self) -> dict[str, Any]:
        """JSON data."""
        return {
            "format": FORMAT,
            "digest": self.digest,
            "classes": list(self.classes),
            "counts": self.counts,
            "digests": self.digests,
            "names": self.names,
        }

    @classmethod
    def from_json(cls, data: Any) -> DataRecord:
        """Read JSON data; raises BundleError when it is something else."""
        try:
            if data["format"] != FORMAT:
                raise BundleError(f"data record: format {data['format']!r:.40} is not known; expected {FORMAT!r}")
            return cls(tuple(data["classes"]), data["digests"], data["counts"], data["names"])
        except (KeyError, TypeError) as error:
            raise BundleError(f"data record: damaged ({error!r:.60})") from error

    def changes(self, now: DataRecord) -> list[str]:
        """What is different now: a line each, none when nothing is."""
        if self.digest == now.digest:
            return []
        lines = []
        if self.classes != now.classes:
            lines.append(f"classes were {examples(self.classes, most=8)}, now {examples(now.classes, most=8)}")
        if not self.names or not now.names:
            return lines + self._counted(now)
        before, after = _sides(self.names), _sides(now.names)
        moved = {
            "added": sorted(after.keys() - before.keys()),
            "removed": sorted(before.keys() - after.keys()),
            "held out now, but trained on before": _moved(before, after, "train", "val"),
            "trained on now, but held out before": _moved(before, after, "val", "train"),
        }
        for what, names in moved.items():
            if names:
                lines.append(f"{len(names)} {'image' if len(names) == 1 else 'images'} {what} ({examples(names)})")
        return lines or ["the order of classes or parts"]

    def _counted(self, now: DataRecord) -> list[str]:
        lines = []
        for part in sorted({*self.digests, *now.digests}):
            before, after = self.digests.get(part, {}), now.digests.get(part, {})
            for name in sorted({*before, *after}):
                if before.get(name) != after.get(name):
                    old, new = self.counts.get(part, {}).get(name, 0), now.counts.get(part, {}).get(name, 0)
                    lines.append(f"{part}/{name}: {old} images, now {new}, not the same ones")
        return lines


def _by_class(entries: Iterable[Entry]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in entries:
        found.setdefault(entry.name, []).append(entry.key)
    return {name: sorted(found[name]) for name in sorted(found)}


def _digest(texts: Iterable[str]) -> str:
    content = "\n".join(texts).encode("utf-8", "surrogateescape")
    return hashlib.sha256(content).hexdigest()[:12]


def _sides(names: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, str]:
    """class/name → part."""
    return {f"{name}/{key}": part for part, found in names.items() for name, keys in found.items() for key in keys}


def _moved(before: Mapping[str, str], after: Mapping[str, str], source: str, target: str) -> list[str]:
    return sorted(name for name, part in before.items() if part == source and after.get(name) == target)
