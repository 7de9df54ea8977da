"""The digits data as a source: as many scenes as a recipe asks for."""

from __future__ import annotations

from routespace.preprocess import Preprocess
from routespace.train.data.catalogue import Split
from routespace.train.data.digits import CLASSES, DigitsDataset, Scenes
from routespace.train.data.rendered import RenderedSource
from routespace.train.recipe.data import DigitsSpec
from routespace.train.recipe.targets import Target


class DigitsSource(RenderedSource):
    """Scenes of a recipe; see `RenderedSource`."""

    def __init__(self, spec: DigitsSpec, preprocess: Preprocess, *, seed: int, target: Target = "label") -> None:
        super().__init__(spec, preprocess, seed=seed, objects=tuple(map(str, range(CLASSES))), target=target)

    def scenes(self, split: Split, count: int, seed: int) -> DigitsDataset:
        """Scenes as normalised tensors."""
        wanted = Scenes(split, self.preprocess.size, seed, self.spec.digit_px, self.spec.digits_per_scene)
        return DigitsDataset(wanted, count, self.preprocess, target=self.target)
