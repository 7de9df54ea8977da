"""Painting a layout: photographs, then piece after piece, all scenes of a batch at once, on any device.

Shape legend: B scenes · K pieces of a scene · H, W pixels · P pixels of the pieces of one slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from routespace.train.data.objects import Objects
from routespace.train.data.scenes.atlas import Atlas, level_of
from routespace.train.data.scenes.layout import SceneLayout

SOLID = 0.5  # opacity from which a pixel belongs to an object


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
        owner, labels = self.owner[scene].cpu().numpy(), self.layout.label[scene]
        pieces = [k for k in np.flatnonzero(labels >= 0) if (owner == k).any()]
        masks = np.stack([owner == k for k in pieces]) if pieces else np.zeros((0, *owner.shape), np.bool_)
        return Objects.of(masks, labels[pieces])


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
    """A layout's numbers as tensors of the device that paints."""

    def __init__(self, layout: SceneLayout, cutouts: Atlas, photos: Atlas) -> None:
        self.layout, self.cutouts, self.photos = layout, cutouts, photos
        self.device = photos.pixels.device

    def _tensor(self, values: NDArray[np.float64] | NDArray[np.int64] | NDArray[np.bool_]) -> Tensor:
        found = torch.from_numpy(np.ascontiguousarray(values))
        return (found.float() if found.is_floating_point() else found).to(self.device)

    def photographs(self) -> Tensor:
        """(B·H·W, 3) in 0…1: each scene's window of its photograph."""
        layout, (height, width) = self.layout, self.layout.size
        which, zoom = self._tensor(layout.photo), self._tensor(layout.zoom)
        level = level_of(zoom)
        tall, wide = self.photos.heights[which, 0], self.photos.widths[which, 0]
        rows = torch.arange(height, device=self.device) + 0.5
        columns = torch.arange(width, device=self.device) + 0.5
        y = (self._tensor(layout.photo_top)[:, None] + rows * zoom[:, None]) / tall[:, None]
        x = (self._tensor(layout.photo_left)[:, None] + columns * zoom[:, None]) / wide[:, None]
        x = torch.where(self._tensor(layout.photo_mirrored)[:, None], x.flip(1), x)
        found = self.photos.read_grid(which, level, y, x)
        return (found * self._tensor(layout.light)[:, None, None, None]).clamp_(0, 1).view(-1, 3)

    def piece(self, k: int, canvas: Tensor, owner: Tensor) -> None:
        """Paint the k-th piece of every scene that has one, in place."""
        layout, (high, wide) = self.layout, self.layout.size
        scenes = np.flatnonzero(layout.cutout[:, k] >= 0)
        if not len(scenes):
            return
        reach = [side[scenes, k] for side in layout.reach]
        y, x = layout.y[scenes, k], layout.x[scenes, k]
        top, bottom = _span(y, reach[0], high)
        left, right = _span(x, reach[1], wide)
        counts = (bottom - top) * (right - left)
        piece = np.repeat(np.arange(len(scenes)), counts)  # (P,) of each pixel
        place = np.arange(len(piece)) - np.repeat(np.cumsum(counts) - counts, counts)
        row, column = top[piece] + place // (right - left)[piece], left[piece] + place % (right - left)[piece]
        pixel = self._tensor((scenes[piece] * high + row) * wide + column)
        which = self._tensor(piece)
        v, u = self._inside(scenes, k, which, self._tensor(row), self._tensor(column))
        cutout = self._tensor(layout.cutout[scenes, k])
        shrunk = self.cutouts.heights[cutout, 0] / self._tensor(layout.height[scenes, k])
        found = self.cutouts.read(cutout[which], level_of(shrunk)[which], v, u)
        colour, opacity = found[:, :3], found[:, 3:]
        if layout.label[scenes[0], k] < 0:
            colour = self._texture(scenes, k, which, v, u) * opacity
        colour = self._lit(colour, opacity, scenes, k, which)
        canvas[pixel] = canvas[pixel] * (1 - opacity) + colour
        owner[pixel[opacity[:, 0] > SOLID]] = k

    def _inside(
        self, scenes: NDArray[np.int64], k: int, which: Tensor, row: Tensor, column: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(P,) each: a pixel's place in the cut-out, 0…1 from its top and from its left."""
        layout = self.layout
        y, x, height, width, angle = (
            self._tensor(values[scenes, k])[which]
            for values in (layout.y, layout.x, layout.height, layout.width, layout.angle)
        )
        down, across = row + 0.5 - y, column + 0.5 - x
        cos, sin = angle.cos(), angle.sin()
        u = (across * cos + down * sin) / width + 0.5
        v = (down * cos - across * sin) / height + 0.5
        return v, torch.where(self._tensor(layout.mirrored[scenes, k])[which], 1 - u, u)

    def _texture(self, scenes: NDArray[np.int64], k: int, which: Tensor, v: Tensor, u: Tensor) -> Tensor:
        """(P, 3): what fills a distractor, a part of another photograph."""
        photo = self._tensor(self.layout.texture[scenes, k])[which]
        level = torch.ones_like(photo)
        share = [
            side / sides[photo, 1]
            for side, sides in zip(
                (
                    self._tensor(self.layout.height[scenes, k])[which],
                    self._tensor(self.layout.width[scenes, k])[which],
                ),
                (self.photos.heights, self.photos.widths),
                strict=True,
            )
        ]
        return self.photos.read(
            photo, level, 0.25 + v * share[0].clamp(max=0.5), 0.25 + u * share[1].clamp(max=0.5)
        )[:, :3]

    def _lit(self, colour: Tensor, opacity: Tensor, scenes: NDArray[np.int64], k: int, which: Tensor) -> Tensor:
        """(P, 3) colours times opacity, with the piece's brightness, contrast and saturation."""
        brightness, contrast, saturation = (
            self._tensor(values[scenes, k])[which].unsqueeze(1)
            for values in (self.layout.brightness, self.layout.contrast, self.layout.saturation)
        )
        grey = colour.mean(1, keepdim=True)
        colour = grey + (colour - grey) * saturation
        colour = (colour * contrast + 0.5 * opacity * (1 - contrast)) * brightness
        return torch.minimum(colour.clamp_(min=0), opacity)


def _span(
    centre: NDArray[np.float64], reach: NDArray[np.float64], side: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whole pixels that a length covers, inside the scene."""
    first = np.floor(centre - reach).astype(np.int64).clip(0, side)
    return first, np.ceil(centre + reach).astype(np.int64).clip(first, side)
