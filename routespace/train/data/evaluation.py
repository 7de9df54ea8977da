"""Images to evaluate a network on that exists: fed as it was trained, labelled by the names of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from routespace.errors import DataError
from routespace.grid.spec import GridSpec
from routespace.preprocess import Preprocess
from routespace.train.data.loaders import Loaders
from routespace.train.data.source import make_source
from routespace.train.recipe.data import FilesSpec
from routespace.train.recipe.data_kinds import data_at
from routespace.train.recipe.recipe import Recipe


def evaluation_loaders(
    recipe: Recipe,
    spec: GridSpec,
    *,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] | None = None,
    data: Path | str | None = None,
) -> Loaders:
    """The loaders of validation and test images for a network.

    Class folders are told apart by their names, whichever of the network's are there and wherever they stand in
    the alphabet; training images need not be there. A folder of pictures without test/ (or val/) is taken as a
    whole, unless it is the one that the recipe trains on.

    Args:
        recipe: of the data, and its batch size.
        spec: of the network: channels, image size and number of classes.
        preprocess, classes: how the network was fed, and its class names in output order, as `load_preprocess`
            gives them; None for a network of before they were kept: the recipe's, and the training images'.
        data: a folder or table in place of the recipe's data.

    Raises:
        DataError: no such images, a class that is none of the network's, or another number of classes.
        SpecError: data that the network cannot read.
    """
    own = recipe.data.root if isinstance(recipe.data, FilesSpec) else None
    changes = data_at(data, recipe.data) if data is not None else {}
    whole = data is not None and (own is None or Path(own).resolve() != Path(changes["data.root"]).resolve())
    for field in ("in_channels", "num_classes", "image_size"):
        wanted = getattr(spec, field)
        if wanted != getattr(recipe.grid, field):
            changes[f"grid.{field}"] = list(wanted) if isinstance(wanted, tuple) else wanted
    if "grid.num_classes" in changes and data is None:
        raise DataError(
            f"recipe: {recipe.name} is about {recipe.grid.num_classes} classes, the network has "
            f"{spec.num_classes} outputs; give the recipe it was trained with, or evaluate images by --data"
        )
    chosen = recipe.override(changes) if changes else recipe
    return Loaders(chosen, make_source(chosen, preprocess=preprocess, classes=classes, whole=whole))
