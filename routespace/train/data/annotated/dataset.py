"""Annotated pictures as datasets: (image, target), see `recipe/targets.py`.

An item is a pure function of (seed, epoch, index), as those of `pictures.py` are.

Shapes: C channels · N objects · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import lt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from routespace.pictures import read_picture
from routespace.preprocess import Preprocess
from routespace.train.data.annotated.truth import Annotated, Annotations, Truth, require_size
from routespace.train.data.annotated.vary import OF_OBJECTS, Change, Resized, Sample, resized, sample_of
from routespace.train.data.augment import seeded
from routespace.train.data.draws import uniform
from routespace.train.data.own_masks import packed_masks
from routespace.train.recipe.targets import IGNORE

SIDE = 1  # what is drawn by `uniform`: the side that a picture is resized to


class AnnotatedImages(Dataset[tuple[Tensor, Any]]):
    """Some pictures as (image (C, H, W) float normalised, target).

    Objects are told in pixels of the image as it is fed. So are pixels while training; held-out ones have the
    picture's own size, in which they are judged.

    Args:
        images: the pictures.
        annotations: reads their truth.
        labels: label in the data → the network's.
        preprocess: how evaluation feeds the network.
        varied: how training varies them; None as in evaluation.
        seed: of what is drawn.
        resize: how `varied` resizes to sizes that are known beforehand; None where it does otherwise.
        group: a step's pictures shall be of few sizes; see `fed_sizes`.

    Raises:
        DataError: by an item, that its picture or truth cannot be read.
    """

    def __init__(
        self,
        images: Sequence[Annotated],
        annotations: Annotations,
        labels: Sequence[int],
        *,
        preprocess: Preprocess,
        varied: Change | None = None,
        seed: int = 0,
        resize: Resized | None = None,
        group: bool = False,
    ) -> None:
        self.images, self.annotations, self.preprocess, self.seed = images, annotations, preprocess, seed
        self.labels: NDArray[np.int64] = np.full(IGNORE + 1, IGNORE, np.int64)
        if len(labels) > IGNORE:
            self.labels = np.full(len(labels) + 1, IGNORE, np.int64)
        self.labels[: len(labels)] = labels
        self.varied, self.resize, self.group = varied, resize, group
        # Shared memory: a persistent worker holds a copy of this object that a plain int would not reach.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the draws of the variation."""
        self._epoch.fill_(epoch)

    def fed_sizes(self, epoch: int) -> list[tuple[int, int]] | None:
        """(H, W) of each picture as an epoch feeds it; None where nobody asks for it, or its own is unknown."""
        resize, sizes = self.resize, self._own_sizes()
        if resize is None or sizes is None or not self.group:
            return None
        drawn = self._drawn(epoch, np.arange(len(sizes))).tolist()
        return [resize.size(size, draw) for size, draw in zip(sizes, drawn, strict=True)]

    def largest(self) -> tuple[int, int] | None:
        """(H, W) of the largest picture that training feeds; None for that of the recipe's grid."""
        if self.resize is None:
            return None
        sizes = self._own_sizes()
        found = {self.resize.largest()} if sizes is None else {self.resize.largest(size) for size in set(sizes)}
        return max(found, key=lambda size: (size[0] * size[1], size))

    def _own_sizes(self) -> list[tuple[int, int]] | None:
        """(H, W) of the pictures; None where some are not known before they are read."""
        sizes = [image.size for image in self.images if image.size is not None]
        return sizes if len(sizes) == len(self.images) else None

    def _drawn(self, epoch: int, index: NDArray[np.int64]) -> NDArray[np.float64]:
        return uniform(self.seed, epoch, index, SIDE)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, fed = self.images[index], self.preprocess
        picture = read_picture(image.place, fed.channels, background=fed.background)
        size = (picture.height, picture.width)
        require_size(image, size)
        truth = self._named(self.annotations.truth(image))
        sample = sample_of(picture, truth)
        if self.varied is not None:
            if self.resize is not None:
                sample["drawn"] = float(self._drawn(int(self._epoch), np.array([index]))[0])
            with seeded(self.seed, int(self._epoch), index):
                sample = self.varied(sample)
            numbers = fed.numbers(sample["image"])
        else:
            del sample["image"]  # that is resized by the way of evaluation
            if "pixels" not in sample:
                sample = resized(sample, fed.fed_size(*size), fed.interpolation)
            numbers = fed(picture)
        target = target_of_sample(sample, image.image_id, size, numbers.shape[1:])
        if truth.masks is not None and self.varied is None and any(map(lt, numbers.shape[1:], size)):
            target["own_masks"] = packed_masks(truth.masks)
        return torch.from_numpy(numbers), target

    def _named(self, truth: Truth) -> Truth:
        """The truth with the network's labels."""
        if truth.pixels is not None:
            return Truth(pixels=self.labels[truth.pixels].astype(np.uint8))
        return Truth(truth.boxes, self.labels[truth.labels], truth.crowd, truth.area, truth.masks)


def target_of_sample(sample: Sample, image_id: int, size: tuple[int, int], fed: Sequence[int]) -> Any:
    """A sample's target; `size` is the picture's own (H, W), `fed` that of what is fed."""
    if "pixels" in sample:
        return sample["pixels"].as_subclass(Tensor).long()
    found: dict[str, Tensor] = {
        "boxes": sample["boxes"].as_subclass(Tensor),
        **{name: sample[name] for name in OF_OBJECTS},
        "image_id": torch.tensor(image_id),
        "size": torch.tensor(size),
        "fed": torch.tensor(tuple(fed)),
    }
    if "masks" in sample:
        found["masks"] = sample["masks"].as_subclass(Tensor)
    return found
