"""The digits data: real handwritten digits at many scales on real photographs, rendered as asked for.

    Scenes               the scenes of one split: a pure function of (settings, epoch, index)
    DigitsDataset        `count` scenes as normalised tensors, fresh in every epoch of the train split
    write_image_folder   the same scenes as PNG files, for loaders of image folders

    loader = DataLoader(DigitsDataset(Scenes("train"), 12_000), batch_size=64, shuffle=True)

Digits and photographs come with scikit-learn, nothing is downloaded; `digits_render` paints one digit.

Shapes: B scenes · H, W image rows and columns in pixels · N digits of one scene · K the most digits a
scene may hold · F random fields of a scene · D of one digit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from routespace.errors import DataError, SpecError
from routespace.files import replaced_folder
from routespace.preprocess import Preprocess
from routespace.train.data.catalogue import Split
from routespace.train.data.digits_render import (
    CLASSES,
    MIN_DIGIT_PX,
    SPLITS,
    STROKE_LEVELS,
    Digit,
    RenderedScenes,
    outline,
    paint,
    split_digits,
    split_photos,
)
from routespace.train.data.draws import uniform
from routespace.train.data.objects import Objects
from routespace.train.data.objects_target import target_of
from routespace.train.recipe.targets import Target

__all__ = ["CLASSES", "DigitsDataset", "Objects", "RenderedScenes", "Scenes", "write_image_folder"]
TRIES, SHRINK = 24, 0.85  # places tried for a digit among others; each try is smaller by this factor
SCENE_FIELDS = 4  # photograph, top, left, number of digits
DIGIT_FIELDS = 5  # class, which digit of it, side, pole, level; then a (top, left) pair for each try
_CHUNK = 256  # scenes rendered at a time when writing files: bounds memory


@dataclass(frozen=True)
class Scenes:
    """The endless scenes of one split; a value, cheap to make, copy and send to a worker.

    split: which digits and photograph regions; no two splits share any.
    image_size: (H, W).  digit_px: least and greatest side of a digit's square, drawn log-uniformly.
    strokes: "light" on a darkened surround, or "both" light and dark, much slower for a transformer to learn.
    digits_per_scene: least and greatest number; one that finds no room (smaller at each try) is left out.
    Raises `SpecError` for settings that cannot be rendered.
    """

    split: Split
    image_size: tuple[int, int] = (64, 64)
    seed: int = 0
    digit_px: tuple[int, int] = (10, 48)
    digits_per_scene: tuple[int, int] = (1, 1)
    strokes: Literal["light", "both"] = "light"

    def __post_init__(self) -> None:
        low, high = self.digit_px
        if self.split not in SPLITS:
            raise SpecError(f"split {self.split!r} is unknown; use one of {', '.join(SPLITS)}")
        if not 0 <= self.seed < 2**63:
            raise SpecError(f"seed {self.seed} must be 0 <= seed < 2**63")
        if not MIN_DIGIT_PX <= low <= high:
            raise SpecError(f"digit_px {self.digit_px} must be (least, greatest), least >= {MIN_DIGIT_PX}")
        if high > min(self.image_size):
            raise SpecError(
                f"digit_px {self.digit_px} does not fit image_size {self.image_size}; "
                f"use at most {min(self.image_size)} or larger images"
            )
        if self.strokes not in ("light", "both"):
            raise SpecError(f"strokes {self.strokes!r} is unknown; use light or both")
        if not 1 <= self.digits_per_scene[0] <= self.digits_per_scene[1]:
            raise SpecError(f"digits_per_scene {self.digits_per_scene} must be (least, greatest), least >= 1")

    def render(
        self, indices: Sequence[int] | NDArray[np.int64], epoch: int = 0, *, objects: bool = False
    ) -> RenderedScenes:
        """Render the scenes of `indices` (B,), the same in whatever batch, order or process.

        epoch: gives fresh scenes of the train split; val and test are the same in every epoch.
        Any ten scenes 10 k .. 10 k + 9 of one digit each hold every class once.
        """
        index_B = np.asarray(indices, dtype=np.int64).reshape(-1)
        if epoch < 0 or (index_B.size and index_B.min() < 0):
            raise SpecError("scene indices and epoch must be 0 or more")
        images = np.empty((len(index_B), *self.image_size, 3), np.uint8)
        labels = np.empty(len(index_B), np.int64)
        found = []
        inks, _, _ = split_digits(self.split)
        for b, (scene, draws) in enumerate(self._draw(index_B, epoch)):
            self._crop(images[b], scene)
            digits = self._place(scene, draws)
            opacities = [paint(images[b], digit, inks[digit.row]) for digit in digits]
            labels[b] = max(digits, key=lambda digit: digit.side).label
            if objects:
                found.append(outline(digits, opacities, self.image_size))
        return RenderedScenes(images, labels, tuple(found))

    def digits(self, index_B: NDArray[np.int64], epoch: int = 0) -> list[list[Digit]]:
        """Where the digits of each scene (B,) lie, and which they are, without rendering it."""
        return [self._place(scene, draws) for scene, draws in self._draw(index_B, epoch)]

    def _draw(self, index_B: NDArray[np.int64], epoch: int) -> list[tuple[list[float], list[list[float]]]]:
        """For each scene its scene fields and its K rows of digit fields, all uniform in [0, 1)."""
        words = (self.seed, SPLITS.index(self.split), epoch if self.split == "train" else 0)
        most = self.digits_per_scene[1]
        width = DIGIT_FIELDS + 2 * (TRIES if most > 1 else 1)
        fields = np.arange(SCENE_FIELDS + most * width)
        draws_BF = uniform(*words, 0, index_B[:, None], fields)
        # The first digit's class is (step i + shift) mod 10, with step and shift drawn for each ten
        # scenes: classes are balanced in any part of the data, so that no folder of a class stays empty.
        ten = uniform(*words, 1, index_B[:, None] // CLASSES, np.arange(2))
        step = np.array([1, 3, 7, 9])[(ten[:, 0] * 4).astype(np.int64)]  # units modulo 10
        label_B = (step * index_B + (ten[:, 1] * CLASSES).astype(np.int64)) % CLASSES
        digits_BKF = draws_BF[:, SCENE_FIELDS:].reshape(-1, most, width)
        digits_BKF[:, 0, 0] = (label_B + 0.5) / CLASSES
        return list(zip(draws_BF[:, :SCENE_FIELDS].tolist(), digits_BKF.tolist(), strict=True))

    def _crop(self, image: NDArray[np.uint8], scene: list[float]) -> None:
        """Fill image (H, W, 3) with a crop of one photograph's band."""
        photos = split_photos(self.split, self.image_size)
        photo, (height, width) = photos[int(scene[0] * len(photos))], self.image_size
        top = int(scene[1] * (photo.shape[0] - height + 1))
        left = int(scene[2] * (photo.shape[1] - width + 1))
        image[:] = photo[top : top + height, left : left + width]

    def _place(self, scene: list[float], draws: list[list[float]]) -> list[Digit]:
        """From draws (K, D): each digit's class, square and grey levels; the first always finds room."""
        _, _, start = split_digits(self.split)
        (low, high), (fewest, most) = self.digit_px, self.digits_per_scene
        placed: list[Digit] = []
        count = fewest + int(scene[3] * (most - fewest + 1))
        for label_u, row_u, side_u, pole_u, level_u, *places in draws[:count]:
            label = int(label_u * CLASSES)
            row = start[label] + int(row_u * (start[label + 1] - start[label]))
            wanted = low * ((high + 1) / low) ** side_u  # log-uniform; its floor is any side low .. high
            faint = level_u * STROKE_LEVELS
            dark = self.strokes == "both" and pole_u < 0.5
            pole, level = (255, faint) if dark else (0, 255 - faint)
            for attempt, (top_u, left_u) in enumerate(zip(places[::2], places[1::2], strict=True)):
                side = min(high, max(low, int(wanted * SHRINK**attempt)))
                top = int(top_u * (self.image_size[0] - side + 1))
                left = int(left_u * (self.image_size[1] - side + 1))
                digit = Digit(row=row, label=label, top=top, left=left, side=side, pole=pole, level=level)
                if digit.clear_of(placed):
                    placed.append(digit)
                    break
        return placed


class DigitsDataset(Dataset[tuple[Tensor, Any]]):
    """`count` scenes: item i is (image, target), a label that of the largest digit.

    image: (3, H, W) float32, RGB in 0..1 normalised by the preprocess (None: ImageNet's mean and std).
    target: what is given with an image, a label 0..9 unless told; see `recipe/targets.py`.
    `set_epoch` reaches the workers of a DataLoader, persistent ones too.
    Raises `SpecError` for count < 1.
    """

    def __init__(
        self, scenes: Scenes, count: int, preprocess: Preprocess | None = None, *, target: Target = "label"
    ) -> None:
        if count < 1:
            raise SpecError(f"count {count} must be 1 or more")
        self.scenes = scenes
        self.count = count
        self.target = target
        # Shared memory: a persistent worker holds a copy of this object that a plain int would not reach.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()
        fed = preprocess or Preprocess(size=scenes.image_size)
        std = 255 * torch.tensor(fed.std)
        self._scale = (1 / std).reshape(3, 1, 1)
        self._shift = (-255 * torch.tensor(fed.mean) / std).reshape(3, 1, 1)

    def set_epoch(self, epoch: int) -> None:
        """Choose the scenes of the train split; no effect on val and test."""
        if epoch < 0:
            raise SpecError(f"epoch {epoch} must be 0 or more")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Any]]:
        """A whole batch at once; a DataLoader calls this where it exists."""
        if not all(0 <= index < self.count for index in indices):
            raise IndexError(f"scene index outside 0..{self.count - 1}")
        batch = self.scenes.render(indices, int(self._epoch), objects=self.target != "label")
        images_BCHW = torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous()
        images_BCHW = images_BCHW.float().mul_(self._scale).add_(self._shift)
        targets: list[Any] = batch.labels.tolist()
        if self.target != "label":
            found = zip(batch.objects, indices, strict=True)
            targets = [target_of(objects, self.target, image_id=index) for objects, index in found]
        return list(zip(images_BCHW.unbind(), targets, strict=True))


def write_image_folder(root: str | Path, *, counts: Mapping[str, int], scenes: Scenes) -> None:
    """Write scenes as `root/<split>/<class>/<index>.png`, the layout of torchvision's and timm's folders.

    counts: scenes for each split, such as {"train": 1000, "val": 200}.
    scenes: the settings of all of them; its own split is replaced by each of `counts`.
    A split appears under its name when it is complete, never in parts. Raises `SpecError` for counts that
    cannot be written or leave a class without scenes, `DataError` for a split that is already there.
    """
    root = Path(root)
    plan = {split: replace(scenes, split=cast(Split, split)) for split in counts}  # refuses unknown splits
    for split, count in counts.items():
        if count < 1:
            raise SpecError(f"counts: {split} is {count}, must be 1 or more")
        if (root / split).exists():
            raise DataError(f"{root / split} exists already; remove it or choose another folder")
    for split, count in counts.items():
        with replaced_folder(root / split) as partial:
            _write_split(partial, plan[split], count)


def _write_split(folder: Path, scenes: Scenes, count: int) -> None:
    """Write `count` scenes into class folders, and refuse to leave one of the ten out."""
    written = np.zeros(CLASSES, np.int64)
    for label in range(CLASSES):
        (folder / str(label)).mkdir()
    for first in range(0, count, _CHUNK):
        indices = np.arange(first, min(first + _CHUNK, count))
        batch = scenes.render(indices)
        for index, image, label in zip(indices, batch.images, batch.labels, strict=True):
            Image.fromarray(image).save(folder / str(label) / f"{index:06d}.png", compress_level=1)
        written += np.bincount(batch.labels, minlength=CLASSES)
    if not written.all():
        # A loader numbers the folders it finds: without this one the labels of the others would shift.
        missing = ", ".join(map(str, np.flatnonzero(written == 0)))
        raise SpecError(f"counts: {count} scenes of {scenes.split} leave class {missing} empty; ask for more")
