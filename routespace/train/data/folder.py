"""Image folders: root/train/<class>/*.jpg, and root/test or root/val for `evaluate` alone.

Files are found by timm's `create_dataset`, augmented by timm's `create_transform`. An item is a pure function of
(seed, epoch, index): augmentation draws from its own seeded generators, so a resumed run, another number of
workers or of processes sees the same images. A file that cannot be read is an error that names it, never skipped.

Shapes: H, W image rows and columns in pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.dataset_factory import create_dataset
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import Dataset

from routespace.errors import DataError
from routespace.train.data.digits import MEAN, STD
from routespace.train.recipe.parts import DataSpec

TEST_NAMES = ("test", "val", "validation")
SPLIT_SEED = 20230806  # of the validation cut: the same images are held out in every run of a folder
Transform = Callable[[Any], Any]


class FolderImages(Dataset[tuple[Tensor, int]]):
    """Some files of a folder as (image (3, H, W) float normalised, label).

    Args:
        files: (path, label) pairs.
        transform: PIL image → tensor.
        seed: of the augmentation.
    """

    def __init__(self, files: Sequence[tuple[str, int]], transform: Transform, seed: int) -> None:
        self.files = list(files)
        self.transform = transform
        self.seed = seed
        # Shared memory: a persistent worker holds a copy of this object that a plain int would not reach.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Choose the augmentation's draws."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: missing or corrupt image ({error}); replace or remove it") from error
        with seeded(self.seed, int(self._epoch), index):
            return self.transform(image), label


@contextmanager
def seeded(*words: int) -> Iterator[None]:
    """Seed the global generators that timm's augmentation draws from, and put them back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seeds = np.random.SeedSequence(words).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))
    torch.default_generator.manual_seed(int(seeds[2]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class Folder:
    """The splits of an image folder.

    Args:
        spec: with `root`, `val_fraction` and the augmentation.
        image_size: (H, W) of what the network reads.
        seed: of the augmentation.

    Attributes:
        classes: class name → label, by the train folder's subfolders.

    Raises:
        DataError: the folder is not there, or holds too few images to cut a validation split.
    """

    def __init__(self, spec: DataSpec, image_size: tuple[int, int], seed: int) -> None:
        if spec.root is None:
            raise DataError("data.root: missing; give the image folder, with train/<class>/ in it (--data DIR)")
        self.spec, self.image_size, self.seed = spec, image_size, seed
        self.root = Path(spec.root)
        files, self.classes = _find(self.root / "train")
        held_out = max(1, round(spec.val_fraction * len(files)))
        if held_out >= len(files):
            raise DataError(f"{self.root / 'train'}: {len(files)} images are too few to train and validate with")
        generator = torch.Generator().manual_seed(SPLIT_SEED)
        order = torch.randperm(len(files), generator=generator).tolist()
        self._val = [files[i] for i in sorted(order[:held_out])]
        self._train = [files[i] for i in sorted(order[held_out:])]

    def train(self) -> FolderImages:
        """Training images, augmented."""
        spec = self.spec
        transform = create_transform(
            self._size,
            is_training=True,
            scale=(spec.scale, 1.0),
            hflip=spec.hflip,
            color_jitter=spec.color_jitter,
            auto_augment=spec.auto_augment,
            interpolation=spec.interpolation,
            re_prob=spec.erasing,
            re_mode="pixel",
            mean=MEAN,
            std=STD,
        )
        return FolderImages(self._train, transform, self.seed)

    def val(self) -> FolderImages:
        """The part of the train folder that is held out."""
        return FolderImages(self._val, self._plain(), self.seed)

    def test(self) -> FolderImages:
        """root/test, or else root/val.

        Raises:
            DataError: neither is there, or they hold a class that the train folder lacks.
        """
        for name in TEST_NAMES:
            if (self.root / name).is_dir():
                files, classes = _find(self.root / name)
                break
        else:
            raise DataError(f"{self.root}: no test images; put them into {self.root / 'test'}/<class>/")
        unknown = sorted(set(classes) - set(self.classes))
        if unknown:
            raise DataError(f"{self.root / name}: class {unknown[0]!r} is not in the train folder; remove it")
        names = {label: name for name, label in classes.items()}
        relabelled = [(path, self.classes[names[label]]) for path, label in files]
        return FolderImages(relabelled, self._plain(), self.seed)

    @property
    def _size(self) -> tuple[int, int, int]:
        return (3, *self.image_size)

    def _plain(self) -> Transform:
        spec = self.spec
        return create_transform(
            self._size, crop_pct=spec.crop_pct, interpolation=spec.interpolation, mean=MEAN, std=STD
        )


def _find(folder: Path) -> tuple[list[tuple[str, int]], dict[str, int]]:
    """(path, label) of every image in class folders, and class name → label."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; images are expected in {folder}/<class>/")
    try:
        reader = create_dataset("", root=str(folder), split="train", search_split=False).reader
    except RuntimeError as error:  # timm's word for a folder without images
        raise DataError(f"{folder}: no images in class folders; put them into {folder}/<class>/") from error
    classes = dict(reader.class_to_idx)
    if len(classes) < 2:
        raise DataError(f"{folder}: {len(classes)} class folder; a classifier needs two or more")
    return [(str(path), int(label)) for path, label in reader.samples], classes
