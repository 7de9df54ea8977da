"""Folders of pictures: ROOT/train|val|test/<class>/… or ROOT/<class>/….

The class is the first folder below the split, at any depth beneath (torchvision's rule). Whatever Pillow opens is
a picture; files of other kinds are counted. Hidden names, what operating systems leave behind, and files beside
the class folders belong to no class. An empty class folder is an error: it would shift the labels of the others.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from routespace.errors import DataError
from routespace.picture_files import is_folder, pictures_below, plain_name, visible
from routespace.train.data.catalogue import (
    Entry,
    FileReader,
    Listed,
    Split,
    examples,
    require_root,
)
from routespace.train.recipe.data import FolderSpec

NAMES: dict[Split, tuple[str, ...]] = {  # of the folders of each part, in any case
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
LOOSE = "files outside class folders"


class FolderLayout(NamedTuple):
    """The folders with class folders in them: one for each part, or ROOT itself for all of them."""

    train: Path | None
    val: Path | None
    test: Path | None
    plain: bool


class FolderCatalogue:
    """The pictures of a folder.

    Args:
        spec: where it lies, and what its validation part is.

    Raises:
        DataError: `data.root` is missing or no folder.
    """

    def __init__(self, spec: FolderSpec) -> None:
        self.root = require_root(spec.root, "the folder of pictures, with train/<class>/ or <class>/ in it")
        if not self.root.is_dir():
            raise DataError(f"{self.root}: is no folder; give one with train/<class>/ or <class>/ in it")
        self.reader = FileReader()
        self.layout = find_layout(self.root, cut=spec.val == "cut")

    def part(self, split: Split, *, whole: bool = False) -> Listed | None:
        """What a part holds; see `Catalogue`."""
        folder: Path | None = getattr(self.layout, split)
        if self.layout.plain:
            folder = self.root if whole or split == "train" else None
        return list_folder(folder) if folder is not None else None


def find_layout(root: Path, *, cut: bool = False) -> FolderLayout:
    """Which folders of ROOT are parts: they bear a part's name and have folders in them.

    A folder called `train` that holds pictures only is a class of its own, beside `car` and `plane`.

    Args:
        root: the folder.
        cut: ROOT/val is the test part where there is no other, and no validation part.

    Raises:
        DataError: ROOT has the folders of parts, but no class folders in them.
    """
    known = {name for names in NAMES.values() for name in names}
    every = list(_folders(root))
    folders = {path.name.lower(): path for path in every if any(_folders(path))}
    found: dict[str, Path | None] = {}
    for split, names in NAMES.items():
        found[split] = next((folders[name] for name in names if name in folders), None)
    if cut:
        found["test"], found["val"] = found["test"] or found["val"], None
    plain = not any(found.values())
    if plain and every and all(path.name.lower() in known for path in every):
        raise DataError(f"{every[0]}: no class folders; pictures are expected in {every[0]}/<class>/")
    return FolderLayout(**found, plain=plain)


def list_folder(folder: Path) -> Listed:
    """The pictures of a folder with class folders in it.

    Raises:
        DataError: no class folders, or one that is empty or cannot be read.
    """
    left_out: Counter[str] = Counter()
    entries: list[Entry] = []
    for path in _folders(folder):
        name, others = plain_name(path.name), Counter[str]()
        found = [Entry(file, name, key_below(file, path)) for file in pictures_below(str(path), others)]
        if not found:
            told = f" (left out: {told_left_out(others)})" if others else ""
            raise DataError(f"{path}: the class folder holds no pictures{told}; put some in, or remove it")
        entries += found
        left_out += others
    loose = sum(1 for item in visible(folder) if not is_folder(item))
    if loose:
        left_out[LOOSE] += loose
    if not entries:
        told = f" ({loose} {LOOSE})" if loose else ""
        raise DataError(f"{folder}: no class folders{told}; pictures are expected in {folder}/<class>/")
    return Listed(str(folder), entries, left_out=dict(left_out))


def told_left_out(left_out: Counter[str] | dict[str, int]) -> str:
    """`.heic 3, .txt 1`, the greatest numbers first."""
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    return examples((f"{kind} {count}" for kind, count in ordered), most=8)


def _folders(folder: Path) -> Iterator[Path]:
    return (Path(item.path) for item in visible(folder) if is_folder(item))


def key_below(file: str, folder: Path) -> str:
    """A picture's own path below its class folder."""
    return plain_name(file[len(str(folder)) + 1 :].replace(os.sep, "/"))
