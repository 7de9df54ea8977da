"""Which cut-outs and photographs each split may use. No torch: what is missing is told before it is imported.

A picture's split follows from its own path, so that it never changes sides when others are added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from routespace.errors import DataError
from routespace.picture_files import pictures_below
from routespace.train.data.catalogue import Entry, Split, three_sides
from routespace.train.data.folder import FolderCatalogue, key_below
from routespace.train.recipe.data import FolderSpec
from routespace.train.recipe.scenes import ScenesSpec

DIGITS = tuple(map(str, range(10)))


@dataclass(frozen=True)
class SceneFiles:
    """The files that a split uses; none where the pictures are scikit-learn's."""

    cutouts: Sequence[Entry] = ()
    photos: Sequence[Entry] = ()


def class_names(spec: ScenesSpec) -> tuple[str, ...]:
    """Names of the classes of the cut-outs, in output order.

    Raises:
        DataError: the folder is missing, or has no class folders.
    """
    if spec.cutouts is None:
        return DIGITS
    return tuple(sorted({entry.name for entry in _cutouts(spec.cutouts, "train")}))


def scene_files(spec: ScenesSpec, split: Split) -> SceneFiles:
    """Which files a split uses.

    Raises:
        DataError: a folder is missing or empty, or holds too few pictures to divide them.
    """
    cutouts, photos = list[Entry](), list[Entry]()
    if spec.cutouts is not None:
        cutouts = _cutouts(spec.cutouts, split)
        if spec.split_by != "background" and not _has_parts(spec.cutouts):
            cutouts = _side(cutouts, spec.held_out, split, spec.cutouts, "cut-outs of each class")
    if spec.backgrounds is not None:
        photos = _photos(spec.backgrounds)
        if spec.split_by != "cutout":
            photos = _side(photos, spec.held_out, split, spec.backgrounds, "photographs")
    return SceneFiles(cutouts, photos)


def _has_parts(root: str) -> bool:
    return not FolderCatalogue(FolderSpec(root=root)).layout.plain


def _cutouts(root: str, split: Split) -> list[Entry]:
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give one with <class>/ folders of cut-outs (data.cutouts)")
    listed = FolderCatalogue(FolderSpec(root=root)).part(split, whole=True)
    if listed is None:
        raise DataError(f"{root}: has no cut-outs for {split}; give {split}/<class>/, or <class>/ for all of them")
    return list(listed.entries)


def _photos(root: str) -> list[Entry]:
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give one with photographs (data.backgrounds)")
    found = [Entry(file, "", key_below(file, folder)) for file in pictures_below(str(folder), Counter())]
    if not found:
        raise DataError(f"{folder}: holds no pictures; give a folder with photographs (data.backgrounds)")
    return found


def _side(entries: Sequence[Entry], share: float, split: Split, root: str, what: str) -> list[Entry]:
    """The entries of a split."""
    found = three_sides(entries, share)[split]
    if {entry.name for entry in found} != {entry.name for entry in entries}:
        raise DataError(
            f"{root}: too few {what} to keep those of train, val and test apart; give three at least, or choose "
            f"another data.split_by"
        )
    return found
