"""How annotated pictures are resized and varied, by torchvision's transforms v2: boxes and masks follow.

A sample is a dict: `image` (PIL, in the network's channels) and either `boxes`, `labels`, `crowd`, `area` and
perhaps `masks`, or `pixels`. What is drawn is drawn from torch's global generator: call it inside `seeded`. The
side that a picture is resized to may be drawn before, so that its size is known beforehand: `drawn`, from 0 to 1.

Shapes: N objects · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from routespace.preprocess import Preprocess, inside_size
from routespace.train.data.annotated.truth import Truth
from routespace.train.recipe.annotated import AnnotatedSpec
from routespace.train.recipe.targets import IGNORE, Target

Sample = dict[str, Any]
Change = Callable[[Sample], Sample]
MOST_OF_ONE, WINDOWS = 0.75, 10  # share of one class in a window, and how many are tried to stay below (mmseg's)
OF_OBJECTS = ("labels", "crowd", "area")


def sample_of(image: Any, truth: Truth) -> Sample:
    """A sample of a PIL image and what is known of it."""
    size = (image.height, image.width)
    if truth.pixels is not None:
        return {"image": image, "pixels": tv_tensors.Mask(torch.from_numpy(truth.pixels))}
    found: Sample = {name: torch.from_numpy(getattr(truth, name)) for name in OF_OBJECTS}
    boxes = torch.from_numpy(truth.boxes)
    found["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
    if truth.masks is not None:
        found["masks"] = tv_tensors.Mask(torch.from_numpy(truth.masks))
    return {"image": image, **found}


def variation(spec: AnnotatedSpec, preprocess: Preprocess, window: tuple[int, int], target: Target) -> Change:
    """How training pictures are varied.

    Args:
        spec: which changes.
        preprocess: how evaluation feeds the network.
        window: (H, W) of what is cut out where the target is pixels.
        target: what is asked of each picture.
    """
    steps: list[Change] = []
    if target == "pixels":
        steps += [Zoomed(preprocess, spec.resize, window)]
    else:
        steps += [Resized(preprocess, spec.shorter_sides)]
    steps.append(v2.RandomHorizontalFlip(spec.hflip))
    if spec.photometric:
        steps.append(v2.RandomPhotometricDistort())
    if target != "pixels":
        steps += [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(labels_getter=_of_objects)]
    composed: Change = v2.Compose(steps)
    return composed


def _of_objects(sample: Sample) -> tuple[Tensor, ...]:
    return tuple(sample[name] for name in OF_OBJECTS)


class Resized:
    """To the size of evaluation, or with one of several shorter sides, drawn.

    Args:
        preprocess: the size of evaluation, and how pictures are resized.
        shorter_sides: to draw from; none for that of evaluation.
    """

    def __init__(self, preprocess: Preprocess, shorter_sides: tuple[int, ...] = ()) -> None:
        self.preprocess, self.shorter_sides = preprocess, shorter_sides

    def __call__(self, sample: Sample) -> Sample:
        drawn = sample.pop("drawn") if "drawn" in sample else float(torch.rand((), dtype=torch.float64))
        size = self.size((sample["image"].height, sample["image"].width), drawn)
        return resized(sample, size, self.preprocess.interpolation)

    def largest(self, picture: tuple[int, int] | None = None) -> tuple[int, int]:
        """(H, W) that a picture of (H, W) pixels, or one of any size, is resized to at most."""
        limits = max(self.shorter_sides, default=min(self.preprocess.size)), max(self.preprocess.size)
        return inside_size(picture or limits, limits, self.preprocess.multiple)

    def size(self, picture: tuple[int, int], drawn: float) -> tuple[int, int]:
        """What a picture of (H, W) pixels is resized to; `drawn`, from 0 to 1, chooses one of the sides."""
        shorter, longer = min(self.preprocess.size), max(self.preprocess.size)
        if self.shorter_sides:
            shorter = self.shorter_sides[int(drawn * len(self.shorter_sides))]
        return inside_size(picture, (shorter, longer), self.preprocess.multiple)


class Zoomed:
    """A window of a picture that is larger or smaller than in evaluation.

    The window shrinks where the picture does, by whole tokens, so that nothing is padded.

    Args:
        preprocess: the size of evaluation, and how pictures are resized.
        factors: least and greatest factor.
        window: (H, W) at the factor 1 and above.
    """

    def __init__(self, preprocess: Preprocess, factors: tuple[float, float], window: tuple[int, int]) -> None:
        self.preprocess, self.factors, self.window = preprocess, factors, window

    def __call__(self, sample: Sample) -> Sample:
        low, high = self.factors
        drawn = low + (high - low) * float(torch.rand((), dtype=torch.float64))
        picture = (sample["image"].height, sample["image"].width)
        limits, token = self.preprocess.size, self.preprocess.multiple
        factor = drawn * min(min(limits) / min(picture), max(limits) / max(picture))
        size = [max(token, round(side * factor)) for side in picture]
        sample = resized(sample, (size[0], size[1]), self.preprocess.interpolation)
        cut = [self._cut(wanted, side, drawn) for wanted, side in zip(self.window, size, strict=True)]
        for _ in range(WINDOWS):
            place = [int(torch.randint(side - part + 1, ())) for side, part in zip(size, cut, strict=True)]
            found = sample["pixels"][place[0] : place[0] + cut[0], place[1] : place[1] + cut[1]]
            if _is_mixed(found):
                break
        return {name: F.crop(value, *place, *cut) for name, value in sample.items()}

    def _cut(self, wanted: int, side: int, drawn: float) -> int:
        """The window's side in a picture's side."""
        if drawn >= 1 and wanted <= side:
            return wanted
        token = self.preprocess.multiple
        return max(token, int(min(wanted * min(drawn, 1.0), side)) // token * token)


def _is_mixed(pixels: Tensor) -> bool:
    """Whether no class has most of the pixels."""
    counts = torch.bincount(pixels.as_subclass(Tensor).flatten().long(), minlength=IGNORE + 1)[:IGNORE]
    return bool(counts.max() < MOST_OF_ONE * counts.sum())


def resized(sample: Sample, size: tuple[int, int], interpolation: str) -> Sample:
    """A sample at another size: boxes are scaled, masks and pixels take the nearest value."""
    found = {}
    for name, value in sample.items():
        if name == "image":
            found[name] = F.resize(value, list(size), interpolation=InterpolationMode(interpolation))
        elif name in ("masks", "pixels"):
            found[name] = tv_tensors.Mask(_nearest(value.as_subclass(Tensor), size))
        elif name == "boxes":
            found[name] = F.resize(value, list(size))
        else:
            found[name] = value
    return found


def _nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    """(…, H, W) → (…, h, w): the values that lie nearest, as torch's `nearest-exact` takes them.

    v2's own rounds places down, a quarter of a pixel beside the picture. Columns are copied, and then whole rows,
    in numpy: about four times as fast as interpolating each mask.
    """
    found = values.numpy()
    for axis, side in ((-1, size[1]), (-2, size[0])):
        places = torch.arange(found.shape[axis], dtype=torch.float32)[None, None]
        at = torch.nn.functional.interpolate(places, size=side, mode="nearest-exact")[0, 0].long()
        found = np.take(found, at.numpy(), axis=axis)
    return torch.from_numpy(found)
