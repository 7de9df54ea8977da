"""What scenes are composed of, read once: cut-outs by class and photographs.

material_of(spec, split, size)     the cut-outs and photographs of a split, as atlases and numbers
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from routespace.errors import DataError
from routespace.pictures import read_picture
from routespace.train.data.catalogue import Split
from routespace.train.data.digits_render import INK_FLOOR, INK_GAIN, SPLITS, split_digits, split_photos
from routespace.train.data.scenes.atlas import Atlas
from routespace.train.data.scenes.files import DIGITS, class_names, scene_files
from routespace.train.data.scenes.layout import Library
from routespace.train.recipe.scenes import ScenesSpec

INK_PX = 64  # side at which a digit of 8 × 8 cells is kept
MOST_PX = 512  # longer side at which a cut-out is kept
MOST_PHOTO_PX = 1024  # the same of a photograph
LEAST_OPACITY = 0.02  # share of a cut-out's box that must be there to be seen


@dataclass(frozen=True)
class Material:
    """What the scenes of a split are composed of.

    Attributes:
        classes: names, in output order.
        library: sides and classes.
        cutouts, photos: the pictures.
    """

    classes: tuple[str, ...]
    library: Library
    cutouts: Atlas
    photos: Atlas


@lru_cache(maxsize=6)
def material_of(
    spec: ScenesSpec, split: Split, size: tuple[int, int], device: torch.device | str = "cpu"
) -> Material:
    """Read what a split is composed of.

    Args:
        spec: where it lies and how it is divided.
        split: train, val or test.
        size: (H, W) of the scenes.
        device: where they are composed.

    Raises:
        DataError: a folder or file is missing, damaged or empty, or a cut-out has nothing to be seen.
    """
    chosen, classes = scene_files(spec, split), class_names(spec)
    if spec.cutouts is None:
        cutouts, labels = _digits(split)
    else:
        number = {name: i for i, name in enumerate(classes)}
        entries = sorted((entry for entry in chosen.cutouts if entry.name in number), key=lambda entry: entry.name)
        cutouts = _pictures([_piece(entry.place) for entry in entries])
        labels = np.array([number[entry.name] for entry in entries])
        missing = sorted(set(classes) - {entry.name for entry in entries})
        if missing:
            raise DataError(f"{spec.cutouts}: class {missing[0]} has no cut-out for {split}; add some")
    if spec.backgrounds is None:
        photos = _samples(split, size)
    else:
        photos = _pictures([_photo(entry.place) for entry in chosen.photos])
    library = Library(cutouts.sides, labels, photos.sides)
    return Material(classes, library, cutouts.atlas.to(device), photos.atlas.to(device))


class _Pictures(NamedTuple):
    """Pictures, and their (I, 2) heights and widths."""

    atlas: Atlas
    sides: NDArray[np.int64]


def _pictures(pictures: Sequence[Image.Image]) -> _Pictures:
    return _Pictures(Atlas.of(pictures), _sides(pictures))


@lru_cache(maxsize=len(SPLITS))  # whatever the scenes are like, all digits of a split may be in them
def _digits(split: Split) -> tuple[_Pictures, NDArray[np.int64]]:
    """scikit-learn's digits of a split as cut-outs, and their (I,) classes."""
    inks, _, begin = split_digits(split)
    return _pictures([_digit(ink) for ink in inks]), np.repeat(np.arange(len(DIGITS)), np.diff(begin))


@lru_cache(maxsize=len(SPLITS))
def _samples(split: Split, size: tuple[int, int]) -> _Pictures:
    """scikit-learn's photographs of a split, large enough for scenes of (H, W)."""
    return _pictures([Image.fromarray(photo) for photo in split_photos(split, size)])


def _digit(ink: np.ndarray) -> Image.Image:
    """White with the opacity of the ink (8, 8) in 0…1."""
    cells = np.zeros((10, 10), np.float32)  # a cell of paper on each side, so that strokes end softly
    cells[1:-1, 1:-1] = ink
    large = np.asarray(Image.fromarray(cells).resize((INK_PX, INK_PX), Image.Resampling.BICUBIC))
    opacity = np.rint(((large - INK_FLOOR) * INK_GAIN).clip(0, 1) * 255).astype(np.uint8)
    white = np.full((INK_PX, INK_PX, 4), 255, np.uint8)
    white[..., 3] = opacity
    return _trimmed(Image.fromarray(white, "RGBA"), "a digit")


def _piece(path: str) -> Image.Image:
    image = read_picture(path, 4)
    image.thumbnail((MOST_PX, MOST_PX), Image.Resampling.LANCZOS)
    return _trimmed(image, path)


def _trimmed(image: Image.Image, called: str) -> Image.Image:
    """Without the rows and columns around it in which nothing is to be seen."""
    box = image.getchannel("A").point([0] * 8 + [255] * 248).getbbox()
    opacity = np.asarray(image.getchannel("A"))
    if box is None or opacity.mean() < 255 * LEAST_OPACITY:
        raise DataError(f"{called}: is nearly all transparent; cut it out anew, or remove it")
    return image.crop(box)


def _photo(path: str) -> Image.Image:
    image = read_picture(path, 3, at_least=MOST_PHOTO_PX)
    image.thumbnail((MOST_PHOTO_PX, MOST_PHOTO_PX), Image.Resampling.LANCZOS)
    return image


def _sides(pictures: Sequence[Image.Image]) -> np.ndarray:
    return np.array([(picture.height, picture.width) for picture in pictures], np.int64)
