"""What a teacher of another image size sees: a step's images, made a second time at its own size.

    own = own_images(recipe, loaders, teacher)          # None where the teacher sees what the network sees
    own.set_epoch(epoch, start)
    own.take(device)                                    # once for each step

Which scene a step trains on, how a picture is cut out and how it is varied are pure functions of seed, epoch and
index, whatever the size; so a second loader, read in step with the first one, gives the same images.

Shape legend: B images of one process and step · C channels · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from routespace.errors import SpecError
from routespace.train.data.loaders import Loaders, make_loaders
from routespace.train.data.pictures import Pictures, PictureSource
from routespace.train.data.rendered import RenderedSource
from routespace.train.recipe.recipe import Recipe
from routespace.train.recipe.resizing import size_changes
from routespace.train.teacher import Teacher


class OwnImages:
    """A step's images as the teacher sees them.

    Args:
        loaders: of the same images at the teacher's size.
    """

    def __init__(self, loaders: Loaders) -> None:
        self.loaders = loaders
        self._batches: Iterator[Any] = iter(())

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that `take` goes through, from step `start` on."""
        self.loaders.set_epoch(epoch, start)
        self._batches = iter(self.loaders.train)

    def take(self, device: torch.device) -> list[Tensor]:
        """Those of the next step: (B, C, H, W) of each group."""
        return [group.images.to(device, non_blocking=True) for group in next(self._batches)]


def own_images(recipe: Recipe, loaders: Loaders, teacher: Teacher | None) -> OwnImages | None:
    """The images of a phase at its teacher's size, where the recipe wants that and the size is another one.

    Args:
        recipe: of the phase.
        loaders: of its images.
        teacher: what is to see them.

    Raises:
        SpecError: images that are not the same when they are made twice, or a teacher without a size of its own.
    """
    if teacher is None or recipe.train.teacher_images != "own":
        return None
    where = "train.teacher_images: 'own'"
    if teacher.size is None:
        raise SpecError(f"{where} needs a teacher with an image size of its own; this one has none, leave it out")
    if not isinstance(loaders.source, RenderedSource | PictureSource):
        raise SpecError(
            f"{where} needs scenes that are made here or pictures of classes; data.kind {recipe.data.kind!r} "
            f"gives neither, leave it out"
        )
    if teacher.size == recipe.grid.image_size:
        return None
    try:
        larger = recipe.override(size_changes(recipe, teacher.size))
    except SpecError as error:
        raise SpecError(f"{where}: at the teacher's size: {error}") from error
    found = make_loaders(larger, loaders.part, kind=type(loaders))
    _read_alike(loaders.train_set, found.train_set)
    return OwnImages(found)


def _read_alike(ours: Any, theirs: Any) -> None:
    """Decode files to the same pixels for both: a crop is drawn in pixels of what was decoded."""
    if isinstance(ours, Pictures) and isinstance(theirs, Pictures):
        least = ours.at_least, theirs.at_least  # None: files are never decoded at a part of their size
        ours.at_least = theirs.at_least = None if None in least else max(filter(None, least))
