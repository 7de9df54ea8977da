"""Loaders of a recipe: batches of images (B, C, H, W) float normalised and labels (B,).

Which images a step sees is a pure function of (seed, epoch, step): training may stop anywhere and go on as if
it had not. Several processes share each batch; validation and test images are dealt out among them.

Shape legend: B images of one process and step · C channels · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from routespace.errors import DataError
from routespace.train.data.digits import DigitsDataset, Scenes
from routespace.train.data.digits_render import Split
from routespace.train.data.folder import Folder
from routespace.train.data.prefetch import Prefetch
from routespace.train.recipe.recipe import Recipe

Batch = tuple[Tensor, Tensor]
CALIBRATION_IMAGES = 2048  # their mean MACs are known to less than half a percent
EVAL_SEED = 0  # validation and test scenes are the same for every recipe seed


@dataclass(frozen=True)
class Part:
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

    Attributes:
        epoch: whose order is drawn.
        start: steps to leave out at the front, after a resume in mid-epoch.
    """

    def __init__(self, count: int, batch_size: int, part: Part, seed: int | None) -> None:
        self.count, self.batch_size, self.part, self.seed = count, batch_size, part, seed
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.count // self.batch_size - self.start

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(self.count)
        if self.seed is not None:
            generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
            order = torch.randperm(self.count, generator=generator)
        for step in range(self.start, self.count // self.batch_size):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield batch[self.part.rank :: self.part.world].tolist()


@dataclass
class Loaders:
    """What a recipe trains, validates and tests with; iterate `train`, `val`, `test` for batches.

    Attributes:
        steps: optimiser steps of one epoch.
        classes: number of classes in the data.
    """

    steps: int
    classes: int
    part: Part
    _train: Dataset[Any] = field(repr=False)
    _batches: TrainBatches = field(repr=False)
    _others: dict[str, Callable[[], Dataset[Any]]] = field(repr=False)
    _recipe: Recipe = field(repr=False)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that `train` gives, from step `start` on."""
        self._batches.epoch, self._batches.start = epoch, start
        self._train.set_epoch(epoch)  # type: ignore[attr-defined]

    @cached_property
    def train(self) -> Iterable[Batch]:
        """This process's part of the batches of the epoch that was set."""
        workers = self._recipe.data.workers
        loader: DataLoader[Any] = DataLoader(
            self._train,
            batch_sampler=self._batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # of its own: starting an epoch must not move the global one
        )
        # Rendering draws no global random numbers, so it may run beside the training; augmentation may not.
        beside = workers == 0 and isinstance(self._train, DigitsDataset)
        return Prefetch(loader) if beside else loader

    @cached_property
    def val(self) -> DataLoader[Any]:
        """Validation images, the same in every epoch."""
        return self._plain("val")

    @cached_property
    def test(self) -> DataLoader[Any]:
        """Test images, for `evaluate` alone; they are not even looked for before.

        Raises:
            DataError: an image folder without test images.
        """
        return self._plain("test")

    @cached_property
    def calibration(self) -> DataLoader[Any]:
        """Some validation images, drawn once, to set the gates' threshold with."""
        return self._plain("val", most=CALIBRATION_IMAGES)

    def _plain(self, name: str, most: int | None = None) -> DataLoader[Any]:
        dataset = self._others[name]()
        count = len(dataset)  # type: ignore[arg-type]
        chosen = list(range(count))
        if most is not None and count > most:  # folders are in the order of their classes
            generator = torch.Generator().manual_seed(EVAL_SEED)
            chosen = torch.randperm(count, generator=generator)[:most].tolist()
        mine = chosen[self.part.rank :: self.part.world]
        return DataLoader(
            torch.utils.data.Subset(dataset, mine),
            batch_size=max(1, self._recipe.train.batch_size // self.part.world),
            num_workers=self._recipe.data.workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )


def make_loaders(recipe: Recipe, part: Part = Part()) -> Loaders:
    """The loaders of a recipe.

    Args:
        recipe: its data, batch size, seed and image size.
        part: this process among those that train together.

    Raises:
        DataError: a folder that is missing or does not fit the recipe; more images in a batch than there are.
    """
    train, others, classes = _digits(recipe) if recipe.data.kind == "digits" else _folder(recipe)
    count, batch_size = len(train), recipe.train.batch_size  # type: ignore[arg-type]
    if count < batch_size:
        raise DataError(f"train.batch_size: {batch_size} is more than the {count} training images; give fewer")
    if batch_size % part.world:
        raise DataError(f"train.batch_size: {batch_size} is not shared evenly by {part.world} processes")
    seed = None if recipe.data.kind == "digits" else recipe.seed
    batches = TrainBatches(count, batch_size, part, seed)
    return Loaders(count // batch_size, classes, part, train, batches, others, recipe)


Sources = tuple[Dataset[Any], dict[str, Callable[[], Dataset[Any]]], int]


def _digits(recipe: Recipe) -> Sources:
    data = recipe.data

    def scenes(split: Split, count: int, seed: int) -> DigitsDataset:
        made = Scenes(split, recipe.grid.image_size, seed, data.digit_px, data.digits_per_scene)
        return DigitsDataset(made, count)

    others: dict[str, Callable[[], Dataset[Any]]] = {
        "val": lambda: scenes("val", data.val_size, EVAL_SEED),
        "test": lambda: scenes("test", data.test_size, EVAL_SEED),
    }
    return scenes("train", data.train_size, recipe.seed), others, recipe.grid.num_classes


def _folder(recipe: Recipe) -> Sources:
    folder = Folder(recipe.data, recipe.grid.image_size, recipe.seed)
    if len(folder.classes) != recipe.grid.num_classes:
        raise DataError(
            f"grid.num_classes: {recipe.grid.num_classes}, but {folder.root / 'train'} has "
            f"{len(folder.classes)} class folders; set grid.num_classes={len(folder.classes)}"
        )
    others: dict[str, Callable[[], Dataset[Any]]] = {
        "val": folder.val,
        "test": folder.test,
    }
    return folder.train(), others, len(folder.classes)
