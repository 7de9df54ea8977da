"""Atlas: many pictures of different sizes in one tensor, so that a whole batch reads from all of them at once.

Each picture is kept at several sizes, each half of the one before, as textures are in graphics: a picture that is
drawn smaller is read from the size just above what is wanted, so that two-by-two reading does not flicker. Colours
are multiplied by their opacity, so that transparent edges do not bleed.

Shape legend: T pixels of all pictures and sizes · I pictures · L sizes of each · P pixels that are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LEVELS = 6  # sizes that are kept: 1, 1/2 … 1/32 of a picture
LEAST_SIDE = 2  # pixels of the smallest size's shorter side


@dataclass(frozen=True)
class Atlas:
    """Pictures that a batch reads from.

    Attributes:
        pixels: (T,) int32, red, green, blue and opacity of 8 bits each; colours times opacity.
        starts: (I, L) int64, where a picture of a size begins in `pixels`.
        heights, widths: (I, L) int64, its sides in pixels.
    """

    pixels: Tensor
    starts: Tensor
    heights: Tensor
    widths: Tensor

    @classmethod
    def of(cls, pictures: Sequence[Image.Image]) -> Atlas:
        """The atlas of RGB or RGBA pictures."""
        pixels, sizes, start = list[np.ndarray](), np.empty((3, len(pictures), LEVELS), np.int64), 0
        for i, picture in enumerate(pictures):
            for level, image in enumerate(_halved(picture)):
                sizes[:, i, level] = start, image.height, image.width
                pixels.append(np.ascontiguousarray(image).reshape(-1, 4))
                start += image.height * image.width
        packed = np.concatenate(pixels).view(np.int32).reshape(-1)
        starts, heights, widths = torch.from_numpy(sizes)
        return cls(torch.from_numpy(packed), starts, heights, widths)

    def to(self, device: torch.device | str) -> Atlas:
        """The same on a device."""
        return Atlas(*(x.to(device) for x in (self.pixels, self.starts, self.heights, self.widths)))

    def read(self, which: Tensor, level: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Read pixels, mixing the four around each place; outside a picture everything is transparent.

        Args:
            which, level: (P,) int64, pictures and the size of each that is read.
            y, x: (P,) float, places in 0…1 of the picture's sides.

        Returns:
            (P, 4) float in 0…1: red, green and blue times opacity, and opacity.
        """
        start, height, width = (table[which, level] for table in (self.starts, self.heights, self.widths))
        y, x = y * height - 0.5, x * width - 0.5
        top, left = y.floor(), x.floor()
        down, across = (y - top).unsqueeze(1), (x - left).unsqueeze(1)
        top, left = top.long(), left.long()
        rows = [self._pixels(start, height, width, top + i, left + j) for i in (0, 1) for j in (0, 1)]
        upper, lower = torch.lerp(rows[0], rows[1], across), torch.lerp(rows[2], rows[3], across)
        return torch.lerp(upper, lower, down) / 255

    def read_grid(self, which: Tensor, level: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Read a rectangle of each picture, which lies inside of it: edges are repeated.

        Args:
            which, level: (B,) int64, pictures and the size of each that is read.
            y, x: (B, H) and (B, W) float, places in 0…1 of the picture's sides.

        Returns:
            (B, H, W, 3) float in 0…1: red, green and blue times opacity.
        """
        start, height, width = (table[which, level][:, None] for table in (self.starts, self.heights, self.widths))
        (upper, lower, down), (left, right, across) = _between(y, height), _between(x, width)
        found = []
        for row in (upper, lower):
            begin = (start + row * width)[:, :, None]
            pair = [self._levels(begin + column[:, None]) for column in (left, right)]
            found.append(torch.lerp(pair[0], pair[1], across[:, None, :, None]))
        return torch.lerp(found[0], found[1], down[:, :, None, None])[..., :3] / 255

    def _levels(self, place: Tensor) -> Tensor:
        """(…, 4) float in 0…255 of whole places."""
        packed = self.pixels.index_select(0, place.reshape(-1))
        return packed.view(torch.uint8).view(*place.shape, 4).float()

    def _pixels(self, start: Tensor, height: Tensor, width: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """(P, 4) float in 0…255 of whole places; those outside are transparent black."""
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        place = torch.where(inside, start + row * width + column, 0)
        return self._levels(place) * inside.unsqueeze(1)


def _between(share: Tensor, side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The whole places on both sides of a share of a side, and how far it is from the first to the second."""
    place = share * side - 0.5
    first = place.floor()
    most = side - 1
    return first.long().clamp(min=0).minimum(most), (first.long() + 1).clamp(min=0).minimum(most), place - first


def level_of(shrunk: Tensor) -> Tensor:
    """Which size of a picture to read.

    Args:
        shrunk: (…) float, pixels of the picture for one pixel of the scene.

    Returns:
        (…) int64: the size of which one pixel of the scene takes between 0.7 and 1.4 pixels, where there is one.
    """
    return (shrunk.log2() + 0.5).floor().clamp(0, LEVELS - 1).long()


def _halved(picture: Image.Image) -> list[Image.Image]:
    """The picture and its smaller copies, with colours times opacity."""
    values = np.asarray(picture.convert("RGBA")).astype(np.float32)
    values[..., :3] *= values[..., 3:] / 255
    image = Image.fromarray(np.rint(values).astype(np.uint8), "RGBA")
    sizes = [image]
    for _ in range(LEVELS - 1):
        last = sizes[-1]
        side = (max(LEAST_SIDE, last.width // 2), max(LEAST_SIDE, last.height // 2))
        sizes.append(_shrunk(last, side))
    return sizes


def _shrunk(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A smaller copy, each channel by itself: Pillow would multiply by the opacity once more."""
    if size == image.size:
        return image
    return Image.merge("RGBA", [channel.resize(size, Image.Resampling.BOX) for channel in image.split()])
