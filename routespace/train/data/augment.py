"""How training pictures are varied: timm's augmentation, drawn from generators of its own."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment
from timm.data.transforms_factory import create_transform
from torch import Tensor

from routespace.preprocess import Preprocess
from routespace.train.recipe.data import PicturesSpec

Transform = Callable[[Any], Tensor]


def augmentation(spec: PicturesSpec, preprocess: Preprocess) -> Transform:
    """PIL image in the network's channels → (C, H, W) float, cut, varied and normalised."""
    transform: Transform = create_transform(
        (preprocess.channels, *preprocess.size),
        is_training=True,
        scale=(spec.scale, 1.0),
        ratio=spec.ratio,
        hflip=spec.hflip,
        vflip=spec.vflip,
        color_jitter=spec.color_jitter,
        grayscale_prob=spec.grayscale,
        gaussian_blur_prob=spec.blur,
        auto_augment=spec.auto_augment,
        interpolation=preprocess.interpolation,
        re_prob=spec.erasing,
        re_mode="pixel",
        mean=preprocess.mean,
        std=preprocess.std,
    )
    for operation in _operations(transform):
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = _posterize
    return transform


def _operations(transform: Any) -> Iterator[Any]:
    """timm's single operations inside a composed transform with a policy."""
    for step in transform.transforms:
        if isinstance(step, auto_augment.AutoAugment):
            yield from itertools.chain.from_iterable(step.policy)
        elif isinstance(step, auto_augment.RandAugment | auto_augment.AugMixAugment):
            yield from step.ops


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """At full strength timm asks for no bits at all, which Pillow refuses since version 13: one is kept."""
    return image if bits >= 8 else ImageOps.posterize(image, max(1, bits))


def needed_px(spec: PicturesSpec, preprocess: Preprocess) -> int:
    """Pixels of a picture's shorter side with which even the smallest, narrowest crop is not enlarged."""
    narrowest = min(spec.ratio[0], 1 / spec.ratio[1])
    return math.ceil(max(preprocess.size) / math.sqrt(spec.scale * narrowest))


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
