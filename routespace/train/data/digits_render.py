"""How a digit is painted: the sources of the digits data and its brush.

    split_digits, split_photos   what a split may use: its handwritten digits, its band of the photographs
    Digit, paint, outline        one digit to paint; painting it; boxes and masks
    RenderedScenes               what comes out

A digit is painted light on a darkened surround (or dark on a lightened one): inside the digit's square the
photograph keeps `KEEP_FRAC` of its contrast, and the stroke lies beyond what is left. Without that
guarantee a small network does not learn the task; with it, size and place are what makes scenes differ.

Shapes: B scenes · H, W image rows and columns · N digits · S side of a digit's square · M margin over which
its softened surround fades · R = 3 S, a row of RGB pixels as it lies in memory. Sizes are pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from routespace.train.data.catalogue import Split
from routespace.train.data.objects import Objects

SPLITS: tuple[Split, ...] = get_args(Split)
CLASSES = 10

HELD_OUT_DIGITS = 250  # digits of val and of test; train has the other 1297
PHOTO_COLUMNS = {"train": (0, 400), "val": (400, 520), "test": (520, 640)}  # of 640: no column is shared
PHOTO_SLACK = 1.25  # a band is enlarged until a crop can move by a quarter of the image

MIN_DIGIT_PX = 8  # the source has 8 x 8 cells: below one pixel a cell nobody can read it
CELLS = 9  # the 8 cells and half a cell of paper on each side, so that strokes end softly
INK_FLOOR, INK_GAIN = 0.15, 2.0  # paper to stroke: ink 0.15 is clear, 0.65 opaque; the mask starts at 0.4
KEEP_FRAC = 0.25  # contrast the photograph keeps around a digit: at most 64 of 255 grey levels
STROKE_LEVELS = 40  # a stroke is within 40 levels of white (or black), so at least 151 from its surround


@dataclass(frozen=True)
class RenderedScenes:
    """Rendered scenes: images (B, H, W, 3) uint8 RGB, labels (B,) int64 of each scene's largest digit.

    objects: one `Objects` a scene, or empty where `render` was not asked for them.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    objects: tuple[Objects, ...] = ()


class Digit(NamedTuple):
    """One digit to paint: row of `split_digits`, class, its square, and its grey levels."""

    row: int
    label: int
    top: int
    left: int
    side: int
    pole: float  # 0 or 255: where the surround is drawn to
    level: float  # grey level of the stroke

    def clear_of(self, others: Sequence["Digit"]) -> bool:
        """Whether neither this digit's softened surround touches another's square nor the reverse."""
        for other in others:
            gap = max(margin_px(self.side), margin_px(other.side))
            apart_y = self.top >= other.top + other.side + gap or other.top >= self.top + self.side + gap
            apart_x = self.left >= other.left + other.side + gap or other.left >= self.left + self.side + gap
            if not (apart_y or apart_x):
                return False
        return True


@lru_cache(maxsize=len(SPLITS))
def split_digits(split: Split) -> tuple[NDArray[np.float32], NDArray[np.int64], list[int]]:
    """A split's digits: ink (N, 8, 8) in 0..1, their rows in `load_digits` (N,), where each class starts.

    The split is fixed and stratified; digits are ordered by class and class c is start[c] .. start[c + 1].
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data: Any = load_digits()
    rest, test = train_test_split(
        np.arange(len(data.target)), test_size=HELD_OUT_DIGITS, stratify=data.target, random_state=0
    )
    train, val = train_test_split(rest, test_size=HELD_OUT_DIGITS, stratify=data.target[rest], random_state=0)
    rows = np.sort({"train": train, "val": val, "test": test}[split])
    rows = rows[np.argsort(data.target[rows], kind="stable")]
    start = np.searchsorted(data.target[rows], np.arange(CLASSES + 1))
    return (data.images[rows] / 16).astype(np.float32), rows, start.tolist()  # 16: the source's full ink


@lru_cache(maxsize=2 * len(SPLITS))
def split_photos(split: Split, image_size: tuple[int, int]) -> tuple[NDArray[np.uint8], ...]:
    """A split's band of both photographs and their mirror images, (rows, columns, 3) uint8 each.

    image_size: (H, W); bands too small for it are enlarged, all by the factor of the narrowest: every split
    looks at photographs of one sharpness.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    first, last = PHOTO_COLUMNS[split]
    narrowest = min(end - begin for begin, end in PHOTO_COLUMNS.values())
    bands = [photo[:, first:last] for photo in load_sample_images().images]
    factor = PHOTO_SLACK * max(image_size[0] / bands[0].shape[0], image_size[1] / narrowest)
    if factor > 1:
        size = (round(factor * (last - first)), round(factor * bands[0].shape[0]))  # PIL: width, height
        bands = [np.asarray(Image.fromarray(band).resize(size, Image.Resampling.BICUBIC)) for band in bands]
    return tuple(np.ascontiguousarray(view) for band in bands for view in (band, band[:, ::-1]))


def margin_px(side: int) -> int:
    """Pixels around a digit's square over which its surround fades into the photograph."""
    return max(2, side // 6)


@lru_cache(maxsize=512)
def _upscaler(side: int) -> NDArray[np.float32]:
    """Interpolation matrix (S, 8) of the bicubic kernel of Keys (1981, a = -1/2), no ink outside.

    Weights are multiples of 1/256: matrix products of them with sixteenths are exact in float32, so the
    pixels do not depend on the order in which a BLAS library adds.
    """
    centre_S = (np.arange(side) + 0.5) * CELLS / side - CELLS / 2 + 3.5  # 3.5: the middle of cells 0..7
    d = np.abs(centre_S[:, None] - np.arange(8))
    near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    weights = np.where(d < 1, near, np.where(d < 2, far, 0))
    rounded: np.ndarray = (np.rint(weights * 256) / 256).astype(np.float32)
    return rounded


@lru_cache(maxsize=512)
def _brush(side: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """What all digits of a side share: the upscalers (S, 8) and (8, R), the contrast that is taken.

    The last, (S + 2 M, 3 (S + 2 M)), is 1 - KEEP_FRAC in the square and fades to 0 at the margin's end.
    Columns come three times, once a channel: two-dimensional arithmetic is several times faster.
    """
    margin = margin_px(side)
    away = np.maximum(np.abs(np.arange(side + 2 * margin) - margin - (side - 1) / 2) - side / 2, 0)
    taken = (1 - KEEP_FRAC) * np.clip(1 - np.hypot(away[:, None], away) / margin, 0, 1)
    across = np.ascontiguousarray(np.repeat(_upscaler(side), 3, axis=0).T)
    return _upscaler(side), across, np.repeat(taken, 3, axis=1).astype(np.float32)


def paint(image: NDArray[np.uint8], digit: Digit, ink: NDArray[np.float32]) -> NDArray[np.float32]:
    """Paint one digit, ink (8, 8), in place into contiguous image (H, W, 3); return its opacity (S, S)."""
    side, margin = digit.side, margin_px(digit.side)
    down, across, taken = _brush(side)
    opacity = ((down @ ink @ across - INK_FLOOR) * INK_GAIN).clip(0, 1)
    # Both blends at once: pixel <- pixel * keep + add.
    keep, add = 1 - taken, taken * digit.pole + 0.5  # 0.5: the cast to whole levels rounds
    square = slice(margin, margin + side), slice(3 * margin, 3 * (margin + side))
    keep[square] *= 1 - opacity
    add[square] += opacity * (digit.level - taken[square] * digit.pole)
    # The surround may stick out of the image; the square never does.
    height, width, _ = image.shape
    top, left = max(0, digit.top - margin), max(0, digit.left - margin)
    bottom, right = min(height, digit.top + side + margin), min(width, digit.left + side + margin)
    window = image.reshape(height, 3 * width)[top:bottom, 3 * left : 3 * right]
    rows = slice(top - digit.top + margin, bottom - digit.top + margin)
    columns = slice(3 * (left - digit.left + margin), 3 * (right - digit.left + margin))
    window[:] = (window * keep[rows, columns] + add[rows, columns]).astype(np.uint8)
    return opacity[:, ::3]


def outline(
    digits: Sequence[Digit], opacities: Sequence[NDArray[np.float32]], image_size: tuple[int, int]
) -> Objects:
    """Boxes, labels and masks of one scene's painted digits; the mask is where opacity exceeds a half."""
    masks = np.zeros((len(digits), *image_size), np.bool_)
    for mask, digit, opacity in zip(masks, digits, opacities, strict=True):
        mask[digit.top : digit.top + digit.side, digit.left : digit.left + digit.side] = opacity > 0.5
    return Objects.of(masks, np.array([digit.label for digit in digits], np.int64))
