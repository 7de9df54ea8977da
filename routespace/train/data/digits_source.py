"""The digits data as a source: as many scenes as a recipe asks for."""

from __future__ import annotations

from routespace.preprocess import Preprocess
from routespace.train.data.digits import CLASSES, DigitsDataset, Scenes
from routespace.train.data.digits_render import Split
from routespace.train.data.record import Summary, in_turn
from routespace.train.recipe.data import DigitsSpec

EVAL_SEED = 0  # validation and test scenes are the same for every recipe seed


class DigitsSource:
    """Scenes of a recipe; see `Source`.

    Args:
        spec: how many scenes, and what is in them.
        preprocess: image size and normalisation.
        seed: of the training scenes; those of val and test are the same for every seed.
    """

    fresh_each_epoch = True
    beside_training = True  # rendering draws no numbers from global generators
    classes = tuple(map(str, range(CLASSES)))
    record = None

    def __init__(self, spec: DigitsSpec, preprocess: Preprocess, *, seed: int) -> None:
        self.spec, self.preprocess, self.seed = spec, preprocess, seed

    def train(self) -> DigitsDataset:
        """Training scenes, fresh in each epoch."""
        return self._scenes("train", self.spec.train_size, self.seed)

    def val(self) -> DigitsDataset:
        """Validation scenes."""
        return self._scenes("val", self.spec.val_size, EVAL_SEED)

    def test(self) -> DigitsDataset:
        """Test scenes."""
        return self._scenes("test", self.spec.test_size, EVAL_SEED)

    @property
    def summary(self) -> Summary:
        """How many scenes of each class: they come in turn."""
        sizes = {"train": self.spec.train_size, "val": self.spec.val_size}
        return Summary({part: in_turn(size, self.classes) for part, size in sizes.items()})

    def quick_check(self) -> tuple[str, ...]:
        """Nothing: there are no files."""
        return ()

    def _scenes(self, split: Split, count: int, seed: int) -> DigitsDataset:
        size, spec = self.preprocess.size, self.spec
        return DigitsDataset(
            Scenes(split, size, seed, spec.digit_px, spec.digits_per_scene), count, self.preprocess
        )
