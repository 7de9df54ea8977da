"""Whether the pictures of a recipe are there at all, asked before torch is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from routespace.train.data.annotated.kinds import ANNOTATIONS
from routespace.train.data.catalogue import Catalogue, require_root
from routespace.train.data.folder import FolderCatalogue
from routespace.train.data.scenes.files import scene_files
from routespace.train.data.shards import ShardCatalogue
from routespace.train.data.table import TableCatalogue
from routespace.train.recipe.data import CsvSpec, FolderSpec, WebDatasetSpec
from routespace.train.recipe.data_kinds import spec_at
from routespace.train.recipe.scenes import ScenesSpec

# Catalogues that need no other library. timm's is in `source.py`.
CATALOGUES: dict[type, Callable[[Any], Catalogue]] = {
    FolderSpec: FolderCatalogue,
    CsvSpec: TableCatalogue,
    WebDatasetSpec: ShardCatalogue,
}


def require_at(path: str | Path) -> None:
    """Look for what `--data PATH` names, as far as the path itself tells.

    Raises:
        DataError: it leads nowhere, or to a damaged table.
    """
    spec = spec_at(path)
    if isinstance(spec, FolderSpec):  # or the root of a kind that only a recipe names
        require_root(spec.root, "a folder of images, or their annotations")
    else:
        require_pictures(spec)


def require_pictures(spec: object) -> None:
    """Look for the pictures that a recipe's data section names; other kinds of data are not looked for.

    Raises:
        DataError: their folder or table is missing or damaged.
    """
    if isinstance(spec, ScenesSpec):
        scene_files(spec, "train")
    catalogue = CATALOGUES.get(type(spec))
    if catalogue is not None:
        catalogue(spec)
    annotations = ANNOTATIONS.get(type(spec))
    if annotations is not None:
        annotations(spec, "pixels")
