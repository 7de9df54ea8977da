"""Checking annotated pictures as a whole before they are trained on: files, sizes, masks and label maps."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from routespace.errors import DataError
from routespace.picture_files import pictures_below
from routespace.train.data.annotated.truth import Annotated, AnnotatedPart, Annotations
from routespace.train.data.catalogue import Entry, Split, examples
from routespace.train.data.check import (
    DataReport,
    Finding,
    duplicates,
    file_findings,
    in_order,
    read_files,
    sided,
)
from routespace.train.data.quick_check import THREADS
from routespace.train.recipe.annotated import AnnotatedSpec


def check_annotated(
    annotations: Annotations,
    spec: AnnotatedSpec,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> DataReport:
    """Read every picture, and what is known of it.

    Args:
        annotations: of a recipe's data section.
        spec: that section: what is held out for validation.
        workers: processes that read pictures; 1 reads in this one.
        progress: called with how many pictures of how many are done.

    Raises:
        DataError: a file of annotations, or a folder, is missing or says what cannot be meant.
    """
    splits: tuple[Split, ...] = ("train", "val", "test")
    parts = {split: part for split in splits if (part := annotations.part(split)) is not None}
    images = [image for part in parts.values() for image in part.images]
    files = read_files(list(dict.fromkeys(image.place for image in images)), workers, progress)
    findings = list(file_findings(files))
    readable = [image for image in images if files[image.place].problem not in ("unreadable", "truncated")]
    with ThreadPoolExecutor(THREADS) as pool:
        words = pool.map(lambda image: _trouble(annotations, image), readable)
        findings += [
            Finding(image.place, "annotation", word) for image, word in zip(readable, words, strict=True) if word
        ]
    entries: dict[str, list[Entry]] = {
        split: [image.entry()._replace(place=image.place) for image in part.images]
        for split, part in parts.items()
    }
    findings += duplicates(sided(entries, spec.val_fraction, cut=spec.val == "cut"), files)
    findings += [finding for part in parts.values() for finding in _named_twice(part)]
    findings += [
        Finding(part.where, "left out", note.removeprefix(f"{part.where}: "))
        for part in parts.values()
        for note in part.notes
    ]
    findings += _unnamed([part.folder for part in parts.values()], [image.place for image in images])
    counts: dict[str, dict[str, int]] = {split: _objects(annotations, part) for split, part in parts.items()}
    return DataReport(
        counts,
        {},
        in_order(findings),
        images={split: len(part.images) for split, part in parts.items()},
        classes=max((len(part.classes) for part in parts.values()), default=0),
    )


def _trouble(annotations: Annotations, image: Annotated) -> str | None:
    """Why a picture's annotations cannot be used, or None; masks are painted for it."""
    found = annotations.trouble(image)
    if found is None:
        try:
            annotations.truth(image)
        except DataError as error:
            found = str(error)
    return None if found is None else found.removeprefix(f"{image.place}: ")


def _named_twice(part: AnnotatedPart) -> Iterator[Finding]:
    """Pictures that a part names more than once: what each says of the objects is half of it."""
    numbers: dict[str, list[int]] = {}
    for image in part.images:
        numbers.setdefault(image.place, []).append(image.image_id)
    for place, found in numbers.items():
        if len(found) > 1:
            told = examples(str(number) for number in found)
            yield Finding(place, "duplicate", f"named {len(found)} times by {part.where} (images {told})")


def _unnamed(folders: Sequence[str | None], places: Sequence[str]) -> list[Finding]:
    """Pictures beside the annotated ones that no part's annotations name, a line for each folder."""
    known, found = {os.path.realpath(place) for place in places}, list[Finding]()
    for folder in dict.fromkeys(folders):
        if folder is None:
            continue
        others = [path for path in pictures_below(folder, Counter()) if os.path.realpath(path) not in known]
        if others:
            pictures = "1 picture that" if len(others) == 1 else f"{len(others)} pictures that"
            names = examples(os.path.relpath(path, folder) for path in others)
            found.append(Finding(folder, "left out", f"{pictures} no annotations name ({names})"))
    return found


def _objects(annotations: Annotations, part: AnnotatedPart) -> dict[str, int]:
    found = annotations.objects(part.images)
    return {part.classes[label]: count for label, count in sorted(found.items())}
