"""Painting a layout: photographs, then piece after piece, all scenes of a batch at once, on any device.

Shape legend: B scenes · K pieces of a scene · H, W pixels · P pixels of the pieces of one slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from routespace.train.data.objects import Objects
from routespace.train.data.scenes.atlas import Atlas, level_of
from routespace.train.data.scenes.layout import SceneLayout

SOLID = 0.5  # opacity from which a pixel belongs to an object
FLOATS = (
    *("photo_top", "photo_left", "zoom", "light", "y", "x", "height", "width", "angle"),
    *("brightness", "contrast", "saturation"),
)
WHOLES = ("photo", "photo_mirrored", "cutout", "mirrored", "texture")


@dataclass(frozen=True)
class Composed:
    """Painted scenes.

    Attributes:
        images: (B, H, W, 3) uint8, RGB.
        owner: (B, H, W) int16, which piece of its scene a pixel belongs to; −1 for none.
        layout: what was painted.
    """

    images: Tensor
    owner: Tensor
    layout: SceneLayout

    def objects(self, scene: int) -> Objects:
        """Boxes, classes and masks of one scene's labelled objects."""
        owner, labels = self._owner[scene], self.layout.label[scene]
        pieces = [k for k in np.flatnonzero(labels >= 0) if (owner == k).any()]
        masks = np.stack([owner == k for k in pieces]) if pieces else np.zeros((0, *owner.shape), np.bool_)
        return Objects.of(masks, labels[pieces])

    @cached_property
    def _owner(self) -> NDArray[np.int16]:
        """`owner` on the host, copied once."""
        owner: NDArray[np.int16] = self.owner.cpu().numpy()
        return owner


def compose(layout: SceneLayout, cutouts: Atlas, photos: Atlas) -> Composed:
    """Paint a batch.

    Args:
        layout: of its scenes.
        cutouts, photos: the pictures that it speaks of, on the device that shall paint.
    """
    brush = _Brush(layout, cutouts, photos)
    canvas = brush.photographs()
    owner = torch.full((len(canvas),), -1, dtype=torch.int16, device=canvas.device)
    for k in range(layout.cutout.shape[1]):
        brush.piece(k, canvas, owner)
    shape = (len(layout.photo), *layout.size)
    images = canvas.mul_(255).add_(0.5).to(torch.uint8)
    return Composed(images.view(*shape, 3), owner.view(shape), layout)


class _Brush:
    """A layout's numbers as tensors of the device that paints, sent there in one go; nothing waits for it."""

    def __init__(self, layout: SceneLayout, cutouts: Atlas, photos: Atlas) -> None:
        self.layout, self.cutouts, self.photos = layout, cutouts, photos
        self.device = photos.pixels.device
        there, (high, wide) = layout.cutout >= 0, layout.size
        (top, bottom), (left, right) = (
            _span(centre, reach, side)
            for centre, reach, side in zip((layout.y, layout.x), layout.reach, (high, wide), strict=True)
        )
        counts = np.where(there, (bottom - top) * (right - left), 0)
        self.pixels = counts.sum(0)  # (K,), on the host
        self.numbers = _sent(
            {name: getattr(layout, name) for name in FLOATS}
            | {name: getattr(layout, name) for name in WHOLES}
            | {"top": top, "left": left, "across": right - left, "pixels": counts},
            self.device,
        )

    def photographs(self) -> Tensor:
        """(B·H·W, 3) in 0…1: each scene's window of its photograph."""
        given, (height, width) = self.numbers, self.layout.size
        which, zoom = given["photo"], given["zoom"]
        level = level_of(zoom)
        tall, wide = self.photos.heights[which, 0], self.photos.widths[which, 0]
        rows = torch.arange(height, device=self.device) + 0.5
        columns = torch.arange(width, device=self.device) + 0.5
        y = (given["photo_top"][:, None] + rows * zoom[:, None]) / tall[:, None]
        x = (given["photo_left"][:, None] + columns * zoom[:, None]) / wide[:, None]
        x = torch.where(given["photo_mirrored"][:, None] > 0, x.flip(1), x)
        found = self.photos.read_grid(which, level, y, x)
        return (found * given["light"][:, None, None, None]).clamp_(0, 1).view(-1, 3)

    def piece(self, k: int, canvas: Tensor, owner: Tensor) -> None:
        """Paint the k-th piece of every scene that has one, in place."""
        total, (high, wide) = int(self.pixels[k]), self.layout.size
        if not total:
            return
        given = {name: numbers[:, k] for name, numbers in self.numbers.items() if numbers.ndim == 2}
        counts = given["pixels"]
        which = torch.arange(len(counts), device=self.device).repeat_interleave(counts, output_size=total)  # (P,)
        place = torch.arange(total, device=self.device) - (counts.cumsum(0) - counts)[which]
        across = given["across"][which]
        row, column = given["top"][which] + place // across, given["left"][which] + place % across
        pixel = (which * high + row) * wide + column
        v, u = _inside(given, which, row, column)
        cutout = given["cutout"]
        level = level_of(self.cutouts.heights[cutout, 0] / given["height"])
        found = self.cutouts.read(cutout[which], level[which], v, u)
        colour, opacity = found[:, :3], found[:, 3:]
        if k < self.layout.distractors:
            colour = self._texture(given, which, v, u) * opacity
        colour = _lit(given, colour, opacity, which)
        canvas[pixel] = canvas[pixel] * (1 - opacity) + colour
        owner[pixel] = torch.where(opacity[:, 0] > SOLID, k, owner[pixel])

    def _texture(self, given: Mapping[str, Tensor], which: Tensor, v: Tensor, u: Tensor) -> Tensor:
        """(P, 3): what fills a distractor, a part of another photograph."""
        photo = given["texture"][which]
        level = torch.ones_like(photo)
        share = [
            given[side][which] / sides[photo, 1]
            for side, sides in (("height", self.photos.heights), ("width", self.photos.widths))
        ]
        return self.photos.read(
            photo, level, 0.25 + v * share[0].clamp(max=0.5), 0.25 + u * share[1].clamp(max=0.5)
        )[:, :3]


def _inside(given: Mapping[str, Tensor], which: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """(P,) each: a pixel's place in the cut-out, 0…1 from its top and from its left."""
    y, x, height, width, angle = (given[name][which] for name in ("y", "x", "height", "width", "angle"))
    down, across = row + 0.5 - y, column + 0.5 - x
    cos, sin = angle.cos(), angle.sin()
    u = (across * cos + down * sin) / width + 0.5
    v = (down * cos - across * sin) / height + 0.5
    return v, torch.where(given["mirrored"][which] > 0, 1 - u, u)


def _lit(given: Mapping[str, Tensor], colour: Tensor, opacity: Tensor, which: Tensor) -> Tensor:
    """(P, 3) colours times opacity, with the piece's brightness, contrast and saturation."""
    brightness, contrast, saturation = (
        given[name][which].unsqueeze(1) for name in ("brightness", "contrast", "saturation")
    )
    grey = colour.mean(1, keepdim=True)
    colour = grey + (colour - grey) * saturation
    colour = (colour * contrast + 0.5 * opacity * (1 - contrast)) * brightness
    return torch.minimum(colour.clamp_(min=0), opacity)


def _sent(arrays: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, Tensor]:
    """Arrays (B,) and (B, K) as tensors of a device, int64 or float32, copied there in one piece."""
    sheet = np.concatenate([array.reshape(len(array), -1).astype(np.float64) for array in arrays.values()], axis=1)
    sent = to_device(sheet, device)
    columns = sent.split([array.size // len(array) for array in arrays.values()], dim=1)
    return {
        name: (part.float() if array.dtype.kind == "f" else part.long()).view(len(array), *array.shape[1:])
        for (name, array), part in zip(arrays.items(), columns, strict=True)
    }


def to_device(array: NDArray[Any], device: torch.device | str) -> Tensor:
    """An array as a tensor of a device; a GPU takes it when it gets there, and nobody waits."""
    found, there = torch.from_numpy(np.ascontiguousarray(array)), torch.device(device)
    return found.pin_memory().to(there, non_blocking=True) if there.type == "cuda" else found.to(there)


def _span(
    centre: NDArray[np.float64], reach: NDArray[np.float64], side: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whole pixels that a length covers, inside the scene."""
    first = np.floor(centre - reach).astype(np.int64).clip(0, side)
    return first, np.ceil(centre + reach).astype(np.int64).clip(first, side)
