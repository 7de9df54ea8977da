"""Checking pictures before they are trained on: every file of a folder or table is read as a whole.

Pictures with boxes, masks or classes of pixels are checked by `annotated/check.py`. `quick_check.py` looks at
headers alone, before the first epoch.

No torch here, so that a checking process starts at once.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import signal
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from routespace.errors import DataError
from routespace.pictures import header, quiet_pillow, why_unreadable
from routespace.train.data.catalogue import (
    Catalogue,
    Entry,
    Listed,
    Split,
    hold_out,
    told_classes,
    too_few_classes,
    too_few_images,
    why_unknown,
)
from routespace.train.data.folder import FolderCatalogue, told_left_out
from routespace.train.data.table import TableCatalogue
from routespace.train.recipe.data import CsvSpec, FolderSpec
from routespace.train.recipe.data_kinds import TABLES, absolute

Problem = Literal[
    "classes", "unreadable", "truncated", "annotation", "left out", "huge", "duplicate", "wrong ending"
]
PROBLEMS: dict[Problem, str] = {
    "classes": "with which no classifier can be trained, or judged",
    "unreadable": "cannot be read",
    "truncated": "cannot be read to the end",
    "annotation": "with annotations that do not fit",
    "left out": "that are left out, or have annotations that are",
    "huge": "so large that they slow training down",
    "duplicate": "of the same content as another",
    "wrong ending": "of another format than their name says",
}
BAD: tuple[Problem, ...] = ("classes", "unreadable", "truncated", "annotation")  # what training stops at, or skips
HUGE_PX = 50_000_000  # pixels: about half a second to decode
CHUNK = 8  # files that a checking process is given at a time: an interrupt waits for them, below a second
SAME_FORMAT = (frozenset({"JPEG", "MPO"}), frozenset({"BMP", "DIB"}))  # MPO: a camera's JPEG with a second picture


class Finding(NamedTuple):
    """Something about a picture.

    Attributes:
        path: of the file.
        problem: what kind.
        detail: what exactly.
    """

    path: str
    problem: Problem
    detail: str


@dataclass(frozen=True)
class DataReport:
    """What was found.

    Attributes:
        counts: part → class → pictures.
        left_out: what is no picture, such as ".heic" → 3.
        findings: by kind of problem, then by path.
        images: part → pictures, where `counts` are of objects.
        classes: how many there are, where pictures may be without any.
    """

    counts: dict[str, dict[str, int]]
    left_out: dict[str, int]
    findings: tuple[Finding, ...]
    images: Mapping[str, int] | None = None
    classes: int | None = None

    @property
    def ok(self) -> bool:
        """Whether every picture can be read, and trained on as it is labelled."""
        return not any(finding.problem in BAD for finding in self.findings)

    @property
    def text(self) -> str:
        """One line: how many pictures of how many classes in which part."""
        classes = self.classes or len({name for found in self.counts.values() for name in found})
        objects = {part: sum(found.values()) for part, found in self.counts.items()}
        images = self.images or objects
        parts = ", ".join(f"{part} {count}" for part, count in images.items())
        more = f", {sum(objects.values())} objects" if self.images and any(objects.values()) else ""
        told = f"; left out: {told_left_out(self.left_out)}" if self.left_out else ""
        return f"{told_classes(classes)}, {sum(images.values())} images ({parts}){more}{told}"


class CheckedFile(NamedTuple):
    """What reading a file showed."""

    digest: str | None
    problem: Problem | None
    detail: str


def check_pictures(
    root: Path | str | CsvSpec | FolderSpec,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> DataReport:
    """Read every picture of a folder or table.

    Args:
        root: a folder with train/<class>/ (and val/, test/) or <class>/, or a table (.csv, .tsv); or the data
            section that names one, with the columns of a table and so on.
        workers: processes; 1 reads in this one.
        progress: called with how many of how many are done.

    Raises:
        DataError: no pictures, or an empty class folder.
    """
    spec = _spec_of(root)
    parts = _parts(spec)
    places = [str(entry.place) for listed in parts.values() for entry in listed.entries]
    files = read_files(places, workers, progress)
    pictures = sided({part: listed.entries for part, listed in parts.items()}, spec.val_fraction)
    findings = [*_class_findings(parts, spec), *file_findings(files), *duplicates(pictures, files)]
    left_out: dict[str, int] = defaultdict(int)
    counts: dict[str, dict[str, int]] = {}
    for part, listed in parts.items():
        counts[part] = defaultdict(int)
        for entry in listed.entries:
            counts[part][entry.name] += 1
        for kind, count in listed.left_out.items():
            left_out[kind] += count
    return DataReport({part: dict(found) for part, found in counts.items()}, dict(left_out), in_order(findings))


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """By kind of problem, then by path."""
    order = list(PROBLEMS)
    return tuple(sorted(findings, key=lambda finding: (order.index(finding.problem), finding.path)))


def read_files(
    places: Sequence[str], workers: int, progress: Callable[[int, int], None] | None = None
) -> dict[str, CheckedFile]:
    """What reading each file as a whole showed; arguments as in `check_pictures`."""
    found: list[CheckedFile] = []
    with closing(_examined(places, workers)) as files:  # an interrupt waits for what is being read alone
        for file in files:
            found.append(file)
            if progress is not None:
                progress(len(found), len(places))
    return dict(zip(places, found, strict=True))


def file_findings(files: Mapping[str, CheckedFile]) -> Iterator[Finding]:
    """What is wrong with single files."""
    return (Finding(path, file.problem, file.detail) for path, file in files.items() if file.problem)


def _spec_of(root: Path | str | CsvSpec | FolderSpec) -> CsvSpec | FolderSpec:
    if not isinstance(root, Path | str):
        return root
    kind = CsvSpec if Path(root).suffix.lower() in TABLES else FolderSpec
    return kind(root=absolute(root))


def _class_findings(parts: Mapping[str, Listed], spec: CsvSpec | FolderSpec) -> Iterator[Finding]:
    """What a training refuses, and what the evaluation of what it trained would: classes that it does not know."""
    trained = parts.get("train")
    if trained is None:
        return  # pictures to test on, or to name
    refused = too_few_classes(trained)
    if "val" not in parts:
        refused = refused or too_few_images(trained, *hold_out(trained.entries, spec.val_fraction))
    if refused is not None:
        yield Finding(trained.where, "classes", refused.removeprefix(f"{trained.where}: "))
    for part, listed in parts.items():
        unknown = why_unknown(listed.entries, trained.classes)
        if unknown is not None:
            yield Finding(listed.where, "classes", f"{part}: {unknown}")


def _parts(spec: CsvSpec | FolderSpec) -> dict[str, Listed]:
    catalogue: Catalogue = TableCatalogue(spec) if isinstance(spec, CsvSpec) else FolderCatalogue(spec)
    splits: tuple[Split, ...] = ("train", "val", "test")
    return {split: listed for split in splits if (listed := catalogue.part(split)) is not None}


def _examined(places: Sequence[str], workers: int) -> Generator[CheckedFile]:
    if workers <= 1:
        yield from map(examine, places)
        return
    # Fresh processes: a copy of one with threads may wait for ever for a lock that was held while it was copied.
    # Ctrl-C reaches them too, and is this one's to tell: they leave it alone from their first moment.
    deaf: dict[str, Any] = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), **deaf)
    try:
        with _interrupts_held_back():
            examined = pool.map(examine, places, chunksize=CHUNK)
        yield from examined
    except BrokenProcessPool as error:
        raise DataError("a process that reads pictures was ended from outside; give fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Processes that begin here never meet Ctrl-C, not even while Python starts; this one meets it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def examine(path: str) -> CheckedFile:
    """Read one file as a whole."""
    digest = None
    try:
        content = Path(path).read_bytes()
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        with quiet_pillow(), header(io.BytesIO(content)) as image:
            form, size = str(image.format), image.size
            try:
                image.load()
            except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
                return CheckedFile(digest, "truncated", why_unreadable(error, path))
    except Exception as error:
        return CheckedFile(digest, "unreadable", why_unreadable(error, path))
    named = Image.registered_extensions().get(Path(path).suffix.lower())
    if named != form and not any({named, form} <= same for same in SAME_FORMAT):
        return CheckedFile(digest, "wrong ending", f"is {form}")
    if size[0] * size[1] > HUGE_PX:
        return CheckedFile(digest, "huge", f"{size[0]} × {size[1]} pixels")
    return CheckedFile(digest, None, "")


class Sided(NamedTuple):
    """A picture, its part (train, val, test), and whether it is held out of the training part for validation."""

    entry: Entry
    part: str
    held: bool


def sided(parts: Mapping[str, Sequence[Entry]], val_fraction: float, *, cut: bool = False) -> Iterator[Sided]:
    """Every picture with its side.

    Args:
        parts: train, val, test, those that there are.
        val_fraction: share of the training part that is held out where there is no validation part.
        cut: it is held out though there is one.
    """
    held: set[int] = set()
    if "train" in parts and ("val" not in parts or cut):
        held = {id(entry) for entry in hold_out(parts["train"], val_fraction)[1]}
    for part, entries in parts.items():
        for entry in entries:
            yield Sided(entry, part, id(entry) in held)


def duplicates(pictures: Iterable[Sided], files: Mapping[str, CheckedFile]) -> Iterator[Finding]:
    """Each file whose content was there before, with what that means: another class, or another side."""
    first: dict[str, Sided] = {}
    for picture in pictures:
        entry = picture.entry
        path, digest = str(entry.place), files[str(entry.place)].digest
        if digest is None or files[path].problem == "unreadable":
            continue
        before = first.setdefault(digest, picture)
        other = before.entry
        notes = ["there twice" if other.place == entry.place else f"the same as {other.place}"]
        if other.name != entry.name:
            notes.append(f"of another class ({other.name}, {entry.name})")
        if before.part != picture.part:
            notes.append(f"in {before.part} and {picture.part}")
        elif before.held != picture.held:
            notes.append("one of them held out for validation")
        if len(notes) > 1 or other.place != entry.place:  # a second line in a table gives a picture weight
            yield Finding(path, "duplicate", ", ".join(notes))


def by_problem(findings: Iterable[Finding]) -> dict[Problem, list[Finding]]:
    """Findings of each kind that there is, the worst kinds first."""
    found: dict[Problem, list[Finding]] = {}
    for finding in findings:
        found.setdefault(finding.problem, []).append(finding)
    return {problem: found[problem] for problem in PROBLEMS if problem in found}
