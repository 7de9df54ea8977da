"""Scenes as a source: as many as a recipe asks for, composed while training goes on.

    source = ScenesSource(spec, preprocess, seed=0)
    source.train().objects(7)          # boxes, classes and masks of a scene

Shape legend: B scenes · C channels · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from routespace.preprocess import Preprocess
from routespace.train.data.catalogue import Entry, Split
from routespace.train.data.digits_render import SPLITS
from routespace.train.data.objects import Objects
from routespace.train.data.objects_target import target_of
from routespace.train.data.record import DataRecord
from routespace.train.data.rendered import RenderedSource
from routespace.train.data.scenes.compose import Composed, compose, to_device
from routespace.train.data.scenes.files import class_names, scene_files
from routespace.train.data.scenes.layout import draw_layout
from routespace.train.data.scenes.pictures import material_of
from routespace.train.recipe.scenes import ScenesSpec
from routespace.train.recipe.targets import Target


class ScenesDataset(Dataset[tuple[Tensor, Any]]):
    """`count` scenes: item i is (image (3, H, W) normalised, target), a label that of the largest object.

    Args:
        spec: what may stand in a scene.
        split: train scenes are fresh in each epoch; val and test are the same.
        count: how many.
        preprocess: size and normalisation.
        seed: of what is drawn.
        target: what is given with an image; see `recipe/targets.py`.

    Raises:
        DataError: cut-outs or photographs are missing or damaged.
    """

    def __init__(
        self,
        spec: ScenesSpec,
        split: Split,
        count: int,
        preprocess: Preprocess,
        *,
        seed: int,
        target: Target = "label",
    ) -> None:
        self.spec, self.split, self.count, self.seed, self.target = spec, split, count, seed, target
        self.preprocess = preprocess
        _ = material_of(spec, split, preprocess.size)
        # Shared memory: a persistent worker holds a copy of this object that a plain int would not reach.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the scenes of the train split; no effect on val and test."""
        self._epoch.fill_(epoch if self.split == "train" else 0)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Any]]:
        """A whole batch at once; a DataLoader calls this where it exists."""
        made = self.compose(indices)
        targets: list[Any] = made.layout.labels.tolist()
        if self.target != "label":
            targets = [target_of(made.objects(b), self.target, image_id=i) for b, i in enumerate(indices)]
        return list(zip(self._normalised(made.images).unbind(), targets, strict=True))

    def batch(self, indices: Sequence[int], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W), normalised, and labels (B,), composed on a device."""
        made = self.compose(indices, device)
        return self._normalised(made.images), to_device(made.layout.labels, device)

    def known_batch(
        self, indices: Sequence[int], device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor, list[Objects]]:
        """The same, with what is known of each scene's objects."""
        made = self.compose(indices, device)
        objects = [made.objects(scene) for scene in range(len(indices))]
        return self._normalised(made.images), to_device(made.layout.labels, device), objects

    def _normalised(self, pictures: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) → (B, 3, H, W)."""
        factor, less = _normalising(tuple(self.preprocess.mean), tuple(self.preprocess.std), pictures.device)
        images = pictures.permute(0, 3, 1, 2).float()
        return images.mul_(factor).sub_(less).contiguous()

    def compose(self, indices: Sequence[int], device: torch.device | str = "cpu") -> Composed:
        """The scenes of `indices` (B,), with everything that is known of them.

        Raises:
            IndexError: there are not so many scenes.
        """
        if not all(0 <= index < self.count for index in indices):
            raise IndexError(f"scene index outside 0..{self.count - 1}")
        material = material_of(self.spec, self.split, self.preprocess.size, device)
        words = (self.seed, SPLITS.index(self.split), int(self._epoch))
        layout = draw_layout(self.spec, material.library, self.preprocess.size, indices, words)
        return compose(layout, material.cutouts, material.photos)

    def objects(self, index: int) -> Objects:
        """Boxes, classes and masks of a scene's objects."""
        return self.compose([index]).objects(0)


@lru_cache(maxsize=8)
def _normalising(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(3, 1, 1) each: what bytes are multiplied by, and what is taken off then; made once: a GPU waits for it."""
    with torch.inference_mode(False):  # whoever asks next may be training
        middle, spread = (torch.tensor(x, device=device).view(3, 1, 1) for x in (mean, std))
        return 1 / (255 * spread), middle / spread


class ScenesSource(RenderedSource):
    """Scenes of a recipe; see `RenderedSource`.

    Raises:
        DataError: the cut-outs are missing.
    """

    def __init__(self, spec: ScenesSpec, preprocess: Preprocess, *, seed: int, target: Target = "label") -> None:
        super().__init__(spec, preprocess, seed=seed, objects=class_names(spec), target=target)

    def scenes(self, split: Split, count: int, seed: int) -> ScenesDataset:
        """Scenes as normalised tensors."""
        return ScenesDataset(self.spec, split, count, self.preprocess, seed=seed, target=self.target)

    @property
    def record(self) -> DataRecord | None:
        """The cut-outs and photographs of train and val; None where they are scikit-learn's."""
        if self.spec.cutouts is None and self.spec.backgrounds is None:
            return None
        parts: dict[str, list[Entry]] = {}
        for split in SPLITS[:2]:
            chosen = scene_files(self.spec, split)
            parts[split] = [*chosen.cutouts, *(entry._replace(name="(photographs)") for entry in chosen.photos)]
        return DataRecord.of(parts, self.classes)
