"""Loaders of a recipe: images (B, C, H, W) float normalised and what is to be learned of them.

A step's batch is a tuple of groups, of which each holds images of one size; held-out images come group by group.

Which images a step sees is a pure function of (seed, epoch, step): training may stop anywhere and go on as if
it had not. Several processes share each batch; validation and test images are dealt out among them.

Shape legend: B images of one process and step · C channels · H, W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from routespace.errors import DataError
from routespace.train.data.prefetch import Prefetch
from routespace.train.data.skipping import Batches, Group, Guarded, Skipped, Steps, collate
from routespace.train.data.source import Source, make_source
from routespace.train.recipe.data import FilesSpec
from routespace.train.recipe.parts import AUTO
from routespace.train.recipe.recipe import Recipe

CALIBRATION_IMAGES = 2048  # their mean MACs are known to less than half a percent
CALIBRATION_SEED = 0
Size = tuple[int, int]
Sizes = Callable[[int], Sequence[Size] | None]


@dataclass(frozen=True)
class ProcessShare:
    """This process among those that train together."""

    rank: int = 0
    world: int = 1


class TrainBatches(Sampler[list[int]]):
    """Indices of each step's images: a new order each epoch, whole batches only, this process's part.

    Args:
        count: training images.
        batch_size: images of one step, all processes together.
        part: this process.
        seed: of the order; None keeps it (scenes that are fresh each epoch need no shuffling).
        sizes: epoch → (H, W) of each image; images of one size then share a step as far as there are enough of
            them. None, or what gives None, makes steps of whatever comes.

    Attributes:
        epoch: whose order is drawn.
        start: steps to leave out at the front, after a resume in mid-epoch.
    """

    def __init__(
        self, count: int, batch_size: int, part: ProcessShare, seed: int | None, *, sizes: Sizes | None = None
    ) -> None:
        self.count, self.batch_size, self.part, self.seed, self.sizes = count, batch_size, part, seed, sizes
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.count // self.batch_size - self.start

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.of_epoch(self.epoch)[self.start :]:
            yield batch[self.part.rank :: self.part.world]

    def of_epoch(self, epoch: int) -> list[list[int]]:
        """The images of each of an epoch's steps, of all processes."""
        order, generator = torch.arange(self.count, device="cpu"), torch.Generator()
        if self.seed is not None:
            generator.manual_seed((self.seed << 20) + epoch)
            order = torch.randperm(self.count, generator=generator, device="cpu")
        images = order[: self.count // self.batch_size * self.batch_size].tolist()
        sizes = None if self.sizes is None else self.sizes(epoch)
        if sizes is None or self.seed is None:
            return _chunks(images, self.batch_size)
        steps = by_size(images, sizes, self.batch_size)
        return [steps[place] for place in torch.randperm(len(steps), generator=generator, device="cpu").tolist()]

    def groups(self, epoch: int) -> float | None:
        """Sizes among the images of a step, on average; None where sizes are not known."""
        sizes, steps = None if self.sizes is None else self.sizes(epoch), self.of_epoch(epoch)
        if sizes is None or not steps:
            return None
        return sum(len({sizes[image] for image in batch}) for batch in steps) / len(steps)


def by_size(images: Sequence[int], sizes: Sequence[Size], batch_size: int) -> list[list[int]]:
    """Steps of one size as far as there are enough images; the rest by shape and area, so that few sizes meet.

    Args:
        images: whole batches of them, in a random order.
        sizes: (H, W) of each image there is.
        batch_size: images of a step.
    """
    buckets: dict[Size, list[int]] = {}
    for image in images:
        buckets.setdefault(sizes[image], []).append(image)
    whole, rest = list[list[int]](), list[int]()
    for size in sorted(buckets, key=lambda hw: (hw[0] / hw[1], hw)):
        some = buckets[size]
        full = len(some) // batch_size * batch_size
        whole += _chunks(some[:full], batch_size)
        rest += some[full:]
    return whole + _chunks(rest, batch_size)


def _chunks(images: Sequence[int], batch_size: int) -> list[list[int]]:
    return [list(images[first : first + batch_size]) for first in range(0, len(images), batch_size)]


class Loaders:
    """What a recipe trains, validates and tests with; iterate `train`, `val`, `test` for batches.

    Args:
        recipe: batch size, seed, workers and how many unreadable pictures may be left out.
        source: where the images come from.
        part: this process among those that train together.
    """

    def __init__(self, recipe: Recipe, source: Source, part: ProcessShare = ProcessShare()) -> None:
        self.recipe, self.source, self.part = recipe, source, part
        data = recipe.data
        self._skipped = Skipped(data.skip_bad if isinstance(data, FilesSpec) else 0)
        self._workers = min(data.workers, _cores())  # more would only be slower, as torch warns

    @property
    def classes(self) -> int:
        """Number of classes in the data."""
        return len(self.source.classes)

    @property
    def images(self) -> int:
        """Number of training images."""
        return self.batches.count

    @property
    def largest(self) -> Size:
        """(H, W) of the largest pictures that a step trains on."""
        told = getattr(self.train_set, "largest", None)
        found: Size | None = None if told is None else told()
        return self.recipe.grid.image_size if found is None else found

    def of(self, recipe: Recipe) -> Loaders:
        """The same images by another recipe, such as one of another batch size.

        Raises:
            DataError: more images in a batch than there are.
        """
        if recipe == self.recipe:
            return self
        loaders = type(self)(recipe, self.source, self.part)
        loaders.check()
        return loaders

    @property
    def steps(self) -> int:
        """Optimiser steps of one epoch."""
        return self.batches.count // self.batches.batch_size

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that `train` gives, from step `start` on."""
        self.batches.epoch, self.batches.start = epoch, start
        cast(Any, self.train_set).set_epoch(epoch)

    def check(self) -> None:
        """Raise DataError unless the training images fill a batch that all processes share evenly."""
        count, batch_size = self.batches.count, self.recipe.train.batch
        if self.recipe.train.batch_size == AUTO and count:  # a number will be chosen that fits them
            return
        if count < batch_size:
            raise DataError(f"train.batch_size: {batch_size} is more than the {count} training images; give fewer")
        if batch_size % self.part.world:
            raise DataError(f"train.batch_size: {batch_size} is not shared evenly by {self.part.world} processes")

    @cached_property
    def train(self) -> Iterable[tuple[Group, ...]]:
        """This process's part of the batches of the epoch that was set."""
        loader: DataLoader[Any] = DataLoader(
            Guarded(self.train_set, replace=self._skipped.most > 0),
            batch_sampler=self.batches,
            collate_fn=collate,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # of its own: starting an epoch must not move the global one
        )
        steps = Steps(loader, self._skipped)
        return Prefetch(steps) if self._workers == 0 and self.source.beside_training else steps

    @cached_property
    def val(self) -> Batches:
        """Validation images, the same in every epoch."""
        return self.held_out(self.source.val())

    @cached_property
    def test(self) -> Batches:
        """Test images, for `evaluate` alone; they are not even looked for before.

        Raises:
            DataError: data without test images.
        """
        return self.held_out(self.source.test())

    @cached_property
    def calibration(self) -> Batches:
        """Some validation images, drawn once, to set the gates' threshold with."""
        return self.held_out(self.source.val(), most=CALIBRATION_IMAGES)

    @cached_property
    def train_set(self) -> Dataset[Any]:
        """Training images, one by one."""
        return self.source.train()

    @cached_property
    def batches(self) -> TrainBatches:
        """Which images each step of the epoch that was set trains on."""
        seed = None if self.source.fresh_each_epoch else self.recipe.seed
        sizes = getattr(self.train_set, "fed_sizes", None)
        count = len(cast(Sized, self.train_set))
        return TrainBatches(count, self.recipe.train.batch, self.part, seed, sizes=sizes)

    def held_out(self, dataset: Dataset[Any], most: int | None = None) -> Batches:
        """This process's part of the images of a set, or of some of them."""
        count = len(cast(Sized, dataset))
        chosen = list(range(count))
        if most is not None and count > most:  # folders are in the order of their classes
            generator = torch.Generator().manual_seed(CALIBRATION_SEED)
            chosen = torch.randperm(count, generator=generator, device="cpu")[:most].tolist()
        mine = chosen[self.part.rank :: self.part.world]
        loader: DataLoader[Any] = DataLoader(
            Subset(Guarded(dataset, replace=False), mine),
            batch_size=max(1, self.recipe.train.batch // self.part.world),
            collate_fn=collate,
            num_workers=self._workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )
        return Batches(loader, self._skipped)


def make_loaders(recipe: Recipe, part: ProcessShare = ProcessShare(), *, kind: type[Loaders] = Loaders) -> Loaders:
    """The loaders of a recipe.

    Args:
        recipe: its data, batch size, seed and image size.
        part: this process among those that train together.
        kind: of loaders, such as one that makes images on a device.

    Raises:
        DataError: data that is missing or does not fit the recipe; more images in a batch than there are.
    """
    loaders = kind(recipe, make_source(recipe), part)
    loaders.check()
    return loaders


def _cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
