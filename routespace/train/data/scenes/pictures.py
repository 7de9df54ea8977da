"""What scenes are composed of: cut-outs by class and photographs, and which split may use which of them.

    gather(spec, split)     the cut-outs and photographs of a split, as atlases and numbers

A picture's split follows from its own path, so that it never changes sides when others are added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from routespace.errors import DataError
from routespace.picture_files import pictures_below
from routespace.pictures import read_picture
from routespace.train.data.catalogue import Entry, Split, three_sides
from routespace.train.data.digits_render import INK_FLOOR, INK_GAIN, split_digits, split_photos
from routespace.train.data.folder import FolderCatalogue, key_below
from routespace.train.data.scenes.atlas import Atlas
from routespace.train.data.scenes.layout import Library
from routespace.train.recipe.data import FolderSpec
from routespace.train.recipe.scenes import ScenesSpec

INK_PX = 64  # side at which a digit of 8 × 8 cells is kept
MOST_PX = 512  # longer side at which a cut-out is kept
MOST_PHOTO_PX = 1024  # the same of a photograph
LEAST_OPACITY = 0.02  # share of a cut-out's box that must be there to be seen
DIGITS = tuple(map(str, range(10)))


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


@dataclass(frozen=True)
class Chosen:
    """The files that a split uses; none where the pictures are scikit-learn's."""

    cutouts: Sequence[Entry] = ()
    photos: Sequence[Entry] = ()


def class_names(spec: ScenesSpec) -> tuple[str, ...]:
    """Names of the classes of the cut-outs, in output order.

    Raises:
        DataError: the folder is missing, or has no class folders.
    """
    if spec.cutouts is None:
        return DIGITS
    return tuple(sorted({entry.name for entry in _cutouts(spec.cutouts, "train")}))


def choose(spec: ScenesSpec, split: Split) -> Chosen:
    """Which files a split uses.

    Raises:
        DataError: a folder is missing or empty, or holds too few pictures to divide them.
    """
    cutouts, photos = list[Entry](), list[Entry]()
    if spec.cutouts is not None:
        cutouts = _cutouts(spec.cutouts, split)
        if spec.split_by != "background" and not _has_parts(spec.cutouts):
            cutouts = _side(cutouts, spec.held_out, split, spec.cutouts, "cut-outs of each class")
    if spec.backgrounds is not None:
        photos = _photos(spec.backgrounds)
        if spec.split_by != "cutout":
            photos = _side(photos, spec.held_out, split, spec.backgrounds, "photographs")
    return Chosen(cutouts, photos)


@lru_cache(maxsize=6)
def gather(spec: ScenesSpec, split: Split, size: tuple[int, int]) -> Material:
    """Read what a split is composed of.

    Args:
        spec: where it lies and how it is divided.
        split: train, val or test.
        size: (H, W) of the scenes.

    Raises:
        DataError: a folder or file is missing, damaged or empty, or a cut-out has nothing to be seen.
    """
    chosen, classes = choose(spec, split), class_names(spec)
    if spec.cutouts is None:
        inks, _, begin = split_digits(split)
        pieces = [_digit(ink) for ink in inks]
        labels = np.repeat(np.arange(len(DIGITS)), np.diff(begin))
    else:
        number = {name: i for i, name in enumerate(classes)}
        entries = sorted((entry for entry in chosen.cutouts if entry.name in number), key=lambda entry: entry.name)
        pieces = [_piece(entry.place) for entry in entries]
        labels = np.array([number[entry.name] for entry in entries])
        missing = sorted(set(classes) - {entry.name for entry in entries})
        if missing:
            raise DataError(f"{spec.cutouts}: class {missing[0]} has no cut-out for {split}; add some")
    if spec.backgrounds is None:
        photos = [Image.fromarray(photo) for photo in split_photos(split, size)]
    else:
        photos = [_photo(entry.place) for entry in chosen.photos]
    library = Library(_sides(pieces), labels, _sides(photos))
    return Material(classes, library, Atlas.of(pieces), Atlas.of(photos))


def _has_parts(root: str) -> bool:
    return not FolderCatalogue(FolderSpec(root=root)).layout.plain


def _cutouts(root: str, split: Split) -> list[Entry]:
    listed = FolderCatalogue(FolderSpec(root=root)).part(split, whole=True)
    if listed is None:
        raise DataError(f"{root}: has no cut-outs for {split}; give {split}/<class>/, or <class>/ for all of them")
    return list(listed.entries)


def _photos(root: str) -> list[Entry]:
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give one with photographs (data.backgrounds)")
    found = [Entry(file, "", key_below(file, folder)) for file in pictures_below(str(folder), Counter())]
    if not found:
        raise DataError(f"{folder}: holds no pictures; give a folder with photographs (data.backgrounds)")
    return found


def _side(entries: Sequence[Entry], share: float, split: Split, root: str, what: str) -> list[Entry]:
    """The entries of a split."""
    found = three_sides(entries, share)[split]
    if {entry.name for entry in found} != {entry.name for entry in entries}:
        raise DataError(
            f"{root}: too few {what} to keep those of train, val and test apart; give three at least, or choose "
            f"another data.split_by"
        )
    return found


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
