"""Pictures as they are meant to be seen: from a file of any format to 8 bits of 1, 3 or 4 channels.

    read_picture     a file → an upright PIL image of mode L, RGB or RGBA
    as_channels      the same for a PIL image that is already there
    picture_suffixes which file names are taken for pictures

What a viewer does is done here, once, for training, evaluation and prediction alike:

- The camera's orientation (EXIF) is applied.
- 16-bit values are scaled by their type's range. Whole numbers of 32 bits that fit into 16 bits, and numbers with
  a decimal point in 0…1, 0…255 or 0…65535, by that range; others from their own least to their greatest value.
- Palettes, CMYK and Lab become RGB. Where fewer than 4 channels are wanted, transparency shows the background.
- Of several frames or pages the first one is taken.
- A JPEG far larger than needed is decoded at half, a quarter or an eighth of its size (`at_least`).

No torch here: an exported network can be fed with numpy and Pillow alone.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from routespace.errors import DataError

__all__ = [
    "MODES",
    "as_channels",
    "header",
    "picture_suffixes",
    "quiet_pillow",
    "read_picture",
    "upright_size",
    "why_unreadable",
]

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels → Pillow's mode
WHITE = (255, 255, 255)
ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap height and width
RANGES: tuple[float, ...] = (1.0, 255.0, 65535.0)  # of numbers that say nothing about their range themselves
# Documents, measurements and formats that Pillow reads with the help of another program: a picture that only
# pretends to be one must not start Ghostscript.
NO_PICTURES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"})

PictureFile = str | os.PathLike[str] | BinaryIO
Colour = tuple[int, int, int]


@cache
def _formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in NO_PICTURES)


@cache
def picture_suffixes() -> frozenset[str]:
    """Endings of file names that are taken for pictures, lower case with the dot: whatever Pillow opens.

    A plug-in that was registered before the first call (`pillow_heif.register_heif_opener()`) counts as well.
    """
    formats = set(_formats())
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Without Pillow's own warnings (palettes, large files, odd metadata), which name no file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def header(source: PictureFile) -> Image.Image:
    """Open a file without decoding it: format and size are known, pixels are read later. Use it in a `with`.

    Raises:
        Exception: whatever Pillow's reader of that format raises; see `why_unreadable`.
    """
    return Image.open(source, formats=_formats())


def read_picture(
    source: PictureFile,
    channels: int = 3,
    *,
    background: Colour = WHITE,
    at_least: int | None = None,
    name: str = "",
) -> Image.Image:
    """Read a picture.

    Args:
        source: a path, or a binary file.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA) of the result.
        background: RGB colour behind transparent parts, for 1 and 3 channels.
        at_least: both sides of a JPEG may shrink by 2, 4 or 8 while they keep this many pixels; None never.
        name: what to call the source in an error; its path where there is one.

    Raises:
        DataError: it is missing, empty, truncated, or no picture.
    """
    try:
        with quiet_pillow(), header(source) as image:
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            return as_channels(image, channels, background=background)
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
        called = name or str(source)
        raise DataError(f"{called}: {why_unreadable(error, source)}; replace or remove it") from error


def why_unreadable(error: Exception, source: PictureFile) -> str:
    """In a few words why a picture cannot be read."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.exists():
            return "leads nowhere (a link to a missing file)" if path.is_symlink() else "no such file"
        if path.is_file() and not path.stat().st_size:
            return "is empty (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        return "is no image that Pillow can read"
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"is too large to be read safely (more than {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} megapixels)"
        )
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"missing or corrupt image ({reason:.120})"


def as_channels(image: Image.Image, channels: int = 3, *, background: Colour = WHITE) -> Image.Image:
    """An upright image of mode L, RGB or RGBA, 8 bits a channel; see the top of this file.

    Args:
        image: of any mode of Pillow's.
        channels: 1, 3 or 4.
        background: behind transparent parts, where the result has no alpha channel.

    Raises:
        ValueError: a mode that Pillow cannot turn into RGB; or other numbers of channels.
    """
    if channels not in MODES:
        raise ValueError(
            f"channels: {channels} is not allowed; pictures are read as 1 (grey), 3 (RGB) or 4 (RGBA)"
        )
    image.load()  # first: TIFF turns itself upright while it loads
    image = _upright(image)
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    elif image.mode == "La":
        image = image.convert("LA")
    elif image.mode == "LAB":
        image = _from_lab(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if channels != 4:
            behind = Image.new("RGBA", image.size, (*background, 255))
            image = Image.alpha_composite(behind, image)
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(H, W) in pixels that an opened picture has once it is turned upright; nothing is decoded."""
    try:
        turned = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata of a picture that is fine
        turned = 1
    return (image.width, image.height) if turned in SIDEWAYS else (image.height, image.width)


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata of a picture that is fine
        return image
    return image if turned == 1 else ImageOps.exif_transpose(image)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Mode L, from 16-bit, 32-bit or floating-point values."""
    values = np.asarray(image)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # rounded: 257 is one step of 8 bits
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    if values.dtype.kind == "f":
        values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
        ranges = RANGES
    else:
        values, ranges = values.astype(np.float64), RANGES[2:]
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= ranges[-1]:
        low, high = 0.0, next(top for top in ranges if high <= top)
    scaled = (values - low) * (255 / (high - low) if high > low else 0.0)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _from_lab(image: Image.Image) -> Image.Image:
    spaces = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, *spaces, outputMode="RGB")
    assert converted is not None  # only None for a conversion in place
    return converted
