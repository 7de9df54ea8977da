"""What is given to predict on, as a list of pictures; and how they are read. No torch here.

Shapes: H, W pixels · C channels.
"""

from __future__ import annotations

import io
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from routespace.errors import DataError, SpecError
from routespace.picture_files import pictures_below
from routespace.pictures import quiet_pillow, upright_size, why_unreadable
from routespace.preprocess import Preprocess

if TYPE_CHECKING:
    from torch import Tensor

Place = str | os.PathLike[str]
Pixels: TypeAlias = "Image.Image | NDArray[np.uint8] | Tensor"
GivenImages: TypeAlias = "Place | Pixels | BinaryIO"  # one image, or a folder of them
Several: TypeAlias = "Sequence[GivenImages] | Iterator[GivenImages]"
OF_DATA = (".json", ".csv", ".tsv", ".xml", ".txt", ".yaml", ".yml")  # endings of annotations and tables
WANTED = "paths, folders, PIL images, uint8 arrays (H, W, C), or uint8 tensors (C, H, W)"


class InputImage(NamedTuple):
    """An image to predict on.

    Attributes:
        path: where it lies; None for one that was given as pixels or as an open file.
        source: a path, an open file, the bytes of one, or a PIL image.
    """

    path: str | None
    source: Any


@dataclass
class InputImages:
    """Images to predict on.

    Attributes:
        items: in the order in which they were given, those of a folder by name.
        single: one image was given, not a list or a folder.
        left_out: what a folder holds besides, such as ".txt" → 3.
    """

    items: list[InputImage] = field(default_factory=list)
    single: bool = False
    left_out: Counter[str] = field(default_factory=Counter)


def gather(images: GivenImages | Iterable[GivenImages]) -> InputImages:
    """The images that are meant.

    Args:
        images: a path, a folder (its pictures at any depth, without hidden ones), a PIL image, an array (H, W),
            (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, a tensor (C, H, W) of uint8, as torchvision reads pictures,
            an open binary file, or several of these.

    Raises:
        DataError: no such file, a file of annotations, or a folder without pictures.
        SpecError: something else was given.
    """
    found = InputImages()
    if isinstance(images, str | os.PathLike):
        if not Path(images).exists():
            raise DataError(f"{images}: no such file or folder; give an image, or a folder of images")
        if Path(images).suffix.lower() in OF_DATA and Path(images).is_file():
            raise DataError(f"{images}: tells of images and is none; give an image, or a folder of images")
        _add(found, images)
        found.single = not Path(images).is_dir()
    elif isinstance(images, Image.Image | np.ndarray) or hasattr(images, "read") or _is_tensor(images):
        _add(found, images)
        found.single = True
    elif isinstance(images, Iterable) and not isinstance(images, bytes):
        for given in images:
            _add(found, given)
    else:
        raise SpecError(f"images: a {type(images).__name__} was given; give {WANTED}")
    return found


def _add(found: InputImages, given: Any) -> None:
    if isinstance(given, str | os.PathLike):
        path = os.fspath(given)
        found.items += _in_folder(path, found.left_out) if os.path.isdir(path) else [InputImage(path, path)]
    elif isinstance(given, np.ndarray):
        found.items.append(InputImage(None, _from_array(given)))
    elif _is_tensor(given):
        found.items.append(InputImage(None, _from_tensor(given)))
    elif isinstance(given, Image.Image) or hasattr(given, "read"):
        found.items.append(InputImage(None, given))
    else:
        raise SpecError(f"images: a {type(given).__name__} was given; give {WANTED}")


def _in_folder(folder: str, left_out: Counter[str]) -> list[InputImage]:
    found = [InputImage(path, path) for path in pictures_below(folder, left_out)]
    if not found:
        others = ", ".join(f"{kind} {count}" for kind, count in left_out.most_common(5))
        told = f" ({others})" if others else ""
        raise DataError(f"{folder}: no pictures in this folder{told}; give an image, or a folder of images")
    return found


def _from_array(pixels: NDArray[Any]) -> Image.Image:
    shape = pixels.shape
    if pixels.dtype != np.uint8 or len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise SpecError(
            f"images: an array {shape} of {pixels.dtype} was given; give uint8 (H, W, C) with 1, 3 or 4 channels, "
            f"several as a list"
        )
    if 0 in shape:
        raise SpecError(f"images: an array {shape} was given, which has no pixels")
    return Image.fromarray(pixels[:, :, 0] if len(shape) == 3 and shape[2] == 1 else pixels)


def _is_tensor(given: Any) -> bool:
    """Whether it is torch's tensor; who has one has imported torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(given, torch.Tensor)


def _from_tensor(pixels: Any) -> Image.Image:
    shape, kind = tuple(pixels.shape), str(pixels.dtype).removeprefix("torch.")
    if kind != "uint8" or len(shape) != len("CHW") or shape[0] not in (1, 3, 4):
        raise SpecError(
            f"images: a tensor {shape} of {kind} was given; give uint8 (C, H, W) with 1, 3 or 4 channels, several "
            f"as a list (numbers that are prepared already go to the network itself)"
        )
    return _from_array(pixels.permute(1, 2, 0).cpu().numpy())


class FedImage(NamedTuple):
    """An image as a network reads it.

    Attributes:
        numbers: (C, H, W).
        size: (H, W) of the upright picture as it was decoded, which with fit `inside` are its own pixels.
    """

    numbers: NDArray[np.float32]
    size: tuple[int, int]


def read(picture: InputImage, preprocess: Preprocess) -> FedImage:
    """An image as a network reads it.

    Raises:
        DataError: it cannot be read; the message names it.
    """
    source = io.BytesIO(picture.source) if isinstance(picture.source, bytes) else picture.source
    if not isinstance(source, Image.Image):
        name = picture.path or getattr(source, "name", "") or "image"
        found = preprocess.decoded(source, name=name)
        return FedImage(preprocess(found), (found.height, found.width))
    try:
        with quiet_pillow():
            return FedImage(preprocess(source), upright_size(source))
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
        name = getattr(source, "filename", "") or "image"
        raise DataError(f"{name}: {why_unreadable(error, name)}; replace or remove it") from error
