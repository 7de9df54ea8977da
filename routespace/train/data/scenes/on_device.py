"""Batches of scenes that are composed where the network is: nothing is rendered on the CPU and nothing is copied.

    train_recipe(recipe, out, loaders=on_device("cuda"))      # data.kind: scenes
    loaders_for(recipe, device)                               # what a training takes by itself

Shape legend: B scenes · C channels · H, W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from functools import cached_property
from typing import Any, cast

import torch
from torch.utils.data import Dataset

from routespace.errors import SpecError
from routespace.train.data.loaders import Loaders
from routespace.train.data.scenes.source import ScenesDataset
from routespace.train.data.skipping import Group
from routespace.train.recipe.recipe import Recipe
from routespace.train.recipe.scenes import ScenesSpec

AHEAD_PX = 1 << 23  # pixels that a GPU composes at once, of several batches: each call takes its time there


class Composed(Iterable[Group]):
    """Scenes (B, C, H, W) and labels (B,), batch by batch, on a device.

    Args:
        dataset: of scenes.
        batches: indices of the scenes of each batch.
        device: where they are composed.
        ahead_px: pixels of all scenes that are composed at once: as many whole batches, at least one.
    """

    def __init__(
        self,
        dataset: ScenesDataset,
        batches: Iterable[Sequence[int]],
        device: torch.device,
        *,
        ahead_px: int = 0,
    ) -> None:
        self._dataset, self._batches, self._device = dataset, batches, device
        self._most = ahead_px // math.prod(dataset.preprocess.size)  # scenes

    def __len__(self) -> int:
        return len(cast(Sized, self._batches))

    def __iter__(self) -> Iterator[Group]:
        some, scenes = list[Sequence[int]](), 0
        for indices in self._batches:
            if some and scenes + len(indices) > self._most:
                yield from self._together(some)
                some, scenes = [], 0
            some.append(indices)
            scenes += len(indices)
        if some:
            yield from self._together(some)

    def _together(self, batches: Sequence[Sequence[int]]) -> Iterator[Group]:
        """Some batches, composed at once."""
        images, labels = self._dataset.batch([index for batch in batches for index in batch], self._device)
        sizes = [len(batch) for batch in batches]
        for own, theirs in zip(images.split(sizes), labels.split(sizes), strict=True):
            yield Group(own, theirs)


class Steps(Composed):
    """The same for training: each batch is one group."""

    def __iter__(self) -> Iterator[Any]:
        for group in super().__iter__():
            yield (group,)


class DeviceLoaders(Loaders):
    """Loaders of scenes that are composed on `device`; their scenes are those of the ordinary ones.

    Raises:
        SpecError: data of another kind, which cannot be made there.
    """

    device = torch.device("cpu")
    ahead_px = 0

    @cached_property
    def train(self) -> Iterable[Any]:
        """The batches of the epoch that was set."""
        return Steps(self._scenes(self.train_set), self.batches, self.device, ahead_px=self.ahead_px)

    def held_out(self, dataset: Dataset[Any], most: int | None = None) -> Any:
        """The first images of a set, of which no two are alike."""
        scenes = self._scenes(dataset)
        count = len(scenes) if most is None else min(len(scenes), most)
        mine = range(self.part.rank, count, self.part.world)
        size = max(1, self.recipe.train.batch // self.part.world)
        batches = [mine[begin : begin + size] for begin in range(0, len(mine), size)]
        return Composed(scenes, batches, self.device, ahead_px=self.ahead_px)

    def _scenes(self, dataset: Dataset[Any]) -> ScenesDataset:
        if not isinstance(dataset, ScenesDataset) or dataset.target != "label":
            raise SpecError(
                f"data.kind: {self.recipe.data.kind!r} with task {self.recipe.task.kind!r} cannot be composed on "
                f"a device; give kind 'scenes' and task 'classify', or leave out on_device"
            )
        return dataset


def on_device(device: torch.device | str) -> type[DeviceLoaders]:
    """The kind of loaders that compose scenes on a device; a GPU composes several batches at once."""
    where = torch.device(device)
    ahead = {"ahead_px": AHEAD_PX if where.type == "cuda" else 0}
    return type("DeviceLoaders", (DeviceLoaders,), {"device": where, **ahead})


def loaders_for(recipe: Recipe, device: torch.device) -> type[Loaders]:
    """What makes the batches of a training: scenes are composed on the GPU that learns to classify them.

    Who asks for loader processes (`data.workers`) gets them.
    """
    data = recipe.data
    there = device.type == "cuda" and isinstance(data, ScenesSpec) and not data.workers
    return on_device(device) if there and recipe.task.target == "label" else Loaders
