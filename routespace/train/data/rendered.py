"""What sources share whose images are made as they are asked for."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, Self

from torch.utils.data import Dataset

from routespace.preprocess import Preprocess
from routespace.train.data.catalogue import Split
from routespace.train.data.record import DataRecord, Summary, in_turn
from routespace.train.recipe.targets import BACKGROUND, Target

EVAL_SEED = 0  # validation and test scenes are the same for every recipe seed


class RenderedSource(ABC):
    """As many scenes as a recipe asks for; see `Source`.

    Args:
        spec: its `train_size`, `val_size` and `test_size` say how many.
        preprocess: image size and normalisation.
        seed: of the training scenes; those of val and test are the same for every seed.
        objects: names of their classes.
        target: what is given with an image.
    """

    fresh_each_epoch = True
    beside_training = True  # rendering draws no numbers from global generators

    def __init__(
        self, spec: Any, preprocess: Preprocess, *, seed: int, objects: tuple[str, ...], target: Target = "label"
    ) -> None:
        self.spec, self.preprocess, self.seed, self.target = spec, preprocess, seed, target
        self.objects = objects
        self.classes = (BACKGROUND, *objects) if target == "pixels" else objects

    @abstractmethod
    def scenes(self, split: Split, count: int, seed: int) -> Dataset[Any]:
        """`count` scenes of a split."""

    def giving(self, target: Target) -> Self:
        """The same scenes with another target."""
        other = copy.copy(self)
        other.target = target
        other.classes = (BACKGROUND, *self.objects) if target == "pixels" else self.objects
        return other

    def train(self) -> Dataset[Any]:
        """Training scenes, fresh in each epoch."""
        return self.scenes("train", self.spec.train_size, self.seed)

    def val(self) -> Dataset[Any]:
        """Validation scenes."""
        return self.scenes("val", self.spec.val_size, EVAL_SEED)

    def test(self) -> Dataset[Any]:
        """Test scenes."""
        return self.scenes("test", self.spec.test_size, EVAL_SEED)

    @property
    def summary(self) -> Summary:
        """How many scenes of each class: they come in turn."""
        sizes = {"train": self.spec.train_size, "val": self.spec.val_size}
        return Summary({part: in_turn(size, self.objects) for part, size in sizes.items()})

    @property
    def record(self) -> DataRecord | None:
        """None: the recipe says it all."""
        return None

    def quick_check(self) -> tuple[str, ...]:
        """Nothing: there are no files, or all of them are read before the first epoch."""
        return ()
