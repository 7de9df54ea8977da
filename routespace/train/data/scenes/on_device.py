"""Batches of scenes that are composed where the network is: nothing is rendered on the CPU and nothing is copied.

    train_recipe(recipe, out, loaders=on_device("cuda"))      # data.kind: scenes

Shape legend: B scenes · C channels · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from functools import cached_property
from typing import Any, cast

import torch
from torch.utils.data import Dataset

from routespace.errors import SpecError
from routespace.train.data.loaders import Loaders
from routespace.train.data.scenes.source import ScenesDataset
from routespace.train.data.skipping import Group


class Composed(Iterable[Group]):
    """Scenes (B, C, H, W) and labels (B,), batch by batch, on a device.

    Args:
        dataset: of scenes.
        batches: indices of the scenes of each batch.
        device: where they are composed.
    """

    def __init__(self, dataset: ScenesDataset, batches: Iterable[Sequence[int]], device: torch.device) -> None:
        self._dataset, self._batches, self._device = dataset, batches, device

    def __len__(self) -> int:
        return len(cast(Sized, self._batches))

    def __iter__(self) -> Iterator[Group]:
        for indices in self._batches:
            yield Group(*self._dataset.batch(indices, self._device))


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

    @cached_property
    def train(self) -> Iterable[Any]:
        """The batches of the epoch that was set."""
        return Steps(self._scenes(self.train_set), self.batches, self.device)

    def held_out(self, dataset: Dataset[Any], most: int | None = None) -> Any:
        """The first images of a set, of which no two are alike."""
        scenes = self._scenes(dataset)
        count = len(scenes) if most is None else min(len(scenes), most)
        mine = range(self.part.rank, count, self.part.world)
        size = max(1, self.recipe.train.batch // self.part.world)
        return Composed(scenes, [mine[begin : begin + size] for begin in range(0, len(mine), size)], self.device)

    def _scenes(self, dataset: Dataset[Any]) -> ScenesDataset:
        if not isinstance(dataset, ScenesDataset) or dataset.target != "label":
            raise SpecError(
                f"data.kind: {self.recipe.data.kind!r} with task {self.recipe.task.kind!r} cannot be composed on "
                f"a device; give kind 'scenes' and task 'classify', or leave out on_device"
            )
        return dataset


def on_device(device: torch.device | str) -> type[DeviceLoaders]:
    """The kind of loaders that compose scenes on a device."""
    return type("DeviceLoaders", (DeviceLoaders,), {"device": torch.device(device)})
