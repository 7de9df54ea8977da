"""Preprocess: what a network wants to be fed with, as a value that is saved beside its weights.

    preprocess = Preprocess(size=(224, 224))
    numbers = preprocess(image)                 # a PIL image → (C, H, W) float32, as evaluation feeds it
    numbers = preprocess.read("photo.jpg")      # the same from a file

The steps are timm's evaluation transform: the shorter side is resized to size / crop_pct, the middle is cut out,
values go to 0…1 and are normalised. They are written with numpy and Pillow, without torch, and give torchvision's
numbers bit for bit, so that an exported network can be fed exactly as it was evaluated.

Where objects or pixels are to be found nothing is cut off (`fit="inside"`): pictures keep their shape, so that
each may have a size of its own; `fed_size` tells it.

Shapes: C channels · H, W rows and columns of what the network reads, in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from routespace import file_names
from routespace.errors import SpecError
from routespace.files import read_json, write_json
from routespace.pictures import PictureFile, as_channels, read_picture
from routespace.values import Value

__all__ = [
    "MEAN",
    "STD",
    "Preprocess",
    "inside_size",
    "load_preprocess",
    "normalisation",
    "preprocess_from_json",
    "preprocess_to_json",
    "save_preprocess",
]

FORMAT = "routespace.preprocess/1"

# ImageNet's, in RGB, which pretrained weights expect. Grey takes their average; alpha goes to -1…1.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.449,), (0.226,)
ALPHA_MEAN, ALPHA_STD = (0.5,), (0.5,)

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
COARSEST = 32  # pixels of the coarsest tokens, as a rule: sides that it divides waste none
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Byte = Annotated[int, Field(ge=0, le=255)]
Pixels = Annotated[int, Field(ge=1)]


def normalisation(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel (grey, RGB or RGBA) when a recipe gives none."""
    return {1: (GREY_MEAN, GREY_STD), 3: (MEAN, STD), 4: (MEAN + ALPHA_MEAN, STD + ALPHA_STD)}[channels]


class Preprocess(Value):
    """From a picture to what a network reads.

    Args:
        size: (H, W) of what is fed; with fit `inside` the greatest shorter and longer side, whichever way a
            picture lies.
        fit: `crop`: the shorter side is resized and the middle cut out. `inside`: the whole picture, as large as
            `size` allows; its sides are rounded to multiples of `multiple` by the resizing itself.
        multiple: pixels of the coarsest tokens, for `inside`.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        crop_pct: share of the resized shorter side that is kept; for `crop`.
        interpolation: how the picture is resized.
        mean, std: of each channel, for values in 0…1; left out, ImageNet's.
        background: RGB colour behind transparent parts, where there is no alpha channel.

    Raises:
        SpecError: a field that is not allowed.
    """

    size: tuple[Pixels, Pixels]
    fit: Literal["crop", "inside"] = "crop"
    multiple: Pixels = COARSEST
    channels: Literal[1, 3, 4] = 3
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.9
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    background: tuple[Byte, Byte, Byte] = (255, 255, 255)

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("channels", 3) not in (1, 3, 4):
            return data
        mean, std = normalisation(data.get("channels", 3))
        return {**data, "mean": data.get("mean") or mean, "std": data.get("std") or std}

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"{name}: {len(values)} numbers for {self.channels} channels; give one each")
            if not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name}: {list(values)} must be numbers")
        if min(self.std) <= 0:
            raise ValueError(f"std: {list(self.std)} must be above 0")
        if self.fit == "inside" and min(self.size) < self.multiple:
            raise ValueError(
                f"size: {list(self.size)} is less than one token of {self.multiple} px; give larger sides"
            )
        return self

    def inside(self, *, multiple: int) -> Preprocess:
        """The same with whole pictures, whose sides become multiples of `multiple` pixels."""
        return type(self).parse({**self.model_dump(), "fit": "inside", "multiple": multiple}, name="preprocess")

    def fed_size(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) of what the network reads of an upright picture of so many pixels."""
        if self.fit == "crop":
            return self.size
        return inside_size((height, width), self.size, self.multiple)

    @property
    def needed_px(self) -> int | None:
        """Pixels of a picture's side beyond which finer detail is lost anyway (JPEGs may be decoded smaller).

        Twice the resized side: what is left to the resizing then still averages over neighbouring pixels. None
        with fit `inside`: the size that is fed follows from all of the picture's pixels.
        """
        if self.fit == "inside":
            return None
        return 2 * max(math.floor(side / self.crop_pct) for side in self.size)

    def read(self, source: PictureFile, *, name: str = "") -> NDArray[np.float32]:
        """A picture file → (C, H, W); raises DataError naming it (or `name`) when it cannot be read."""
        return self(self.decoded(source, name=name))

    def decoded(self, source: PictureFile, *, name: str = "") -> Image.Image:
        """A picture file, upright and in the network's channels, as large as is needed; raises as `read`."""
        return read_picture(source, self.channels, background=self.background, at_least=self.needed_px, name=name)

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """A PIL image of any mode and size → (C, H, W) float32, normalised."""
        return self.numbers(self.cut(image))

    def numbers(self, image: Image.Image) -> NDArray[np.float32]:
        """A PIL image in the network's channels → (C, H, W) float32, normalised and no more."""
        values_HWC = np.asarray(image).reshape(image.height, image.width, self.channels)
        numbers_CHW = np.empty((self.channels, image.height, image.width), np.float32)
        for channel, plane in enumerate(numbers_CHW):  # in place: a channel at a time is several times as fast
            np.divide(values_HWC[..., channel], np.float32(255), out=plane)
            plane -= np.float32(self.mean[channel])
            plane /= np.float32(self.std[channel])
        return numbers_CHW

    def cut(self, image: Image.Image) -> Image.Image:
        """The upright picture in the network's channels, resized and cut: what the network sees."""
        image = as_channels(image, self.channels, background=self.background)
        if self.fit == "inside":
            height, width = self.fed_size(image.height, image.width)
            return image.resize((width, height), FILTERS[self.interpolation])
        image = image.resize(self._resized(image), FILTERS[self.interpolation])
        height, width = self.size
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        return image.crop((left, top, left + width, top + height))

    def shown(self, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
        """Undo the normalisation: (…, C, H, W) → values in 0…1."""
        mean, std = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (self.mean, self.std))
        pixels: np.ndarray = np.clip(numbers * std + mean, 0, 1)
        return pixels

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) before the cut; rounded as timm's two ways (square or not) round."""
        height, width = (math.floor(side / self.crop_pct) for side in self.size)
        if height == width:
            short, long = min(image.size), max(image.size)
            longer = int(height * long / short)
            return (height, longer) if image.width <= image.height else (longer, height)
        ratio = min(image.height / height, image.width / width)
        return round(image.width / ratio), round(image.height / ratio)


def inside_size(picture: tuple[int, int], limits: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The size that a picture is resized to so that it keeps its shape and no side is too long.

    Args:
        picture: its height and width in pixels.
        limits: the greatest shorter side and the greatest longer side, in either order.
        multiple: both sides become multiples of it, the nearest that the limits allow, and never none.

    Returns:
        Height and width; they differ from the picture's shape by what the rounding takes, for boxes to follow.
    """
    short, long = min(picture), max(picture)
    factor = min(min(limits) / short, max(limits) / long)
    sides = []
    for side, limit in ((short, min(limits)), (long, max(limits))):
        tokens = min(math.floor(side * factor / multiple + 0.5), limit // multiple)
        sides.append(max(1, tokens) * multiple)
    return (sides[0], sides[1]) if picture[0] <= picture[1] else (sides[1], sides[0])


def preprocess_to_json(preprocess: Preprocess, classes: Sequence[str]) -> dict[str, Any]:
    """What `preprocess.json` holds: how pictures go in, and which output is which class."""
    return {"format": FORMAT, **preprocess.model_dump(mode="json"), "classes": list(classes)}


def preprocess_from_json(data: Any) -> tuple[Preprocess, tuple[str, ...]]:
    """Preprocess and class names in output order.

    Raises:
        SpecError: another format, or a field that is missing or not allowed.
    """
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
        raise SpecError(f"preprocess: format {found!r:.60} is not known; expected {FORMAT!r}")
    classes = data.get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise SpecError("preprocess.classes: must be a list of names")
    fields = {key: value for key, value in data.items() if key not in ("format", "classes")}
    return Preprocess.parse(fields, name="preprocess"), tuple(classes)


def save_preprocess(folder: Path | str, preprocess: Preprocess, classes: Sequence[str]) -> None:
    """Write `preprocess.json` into a run's or bundle's folder; raises BundleError when it cannot be written."""
    write_json(Path(folder) / file_names.PREPROCESS, preprocess_to_json(preprocess, classes))


def load_preprocess(folder: Path | str) -> tuple[Preprocess, tuple[str, ...]] | None:
    """Preprocess and class names of a run or bundle; None for one of before they were kept.

    Raises:
        BundleError: the file cannot be read.
        SpecError: a field of it is missing or not allowed.
    """
    path = Path(folder) / file_names.PREPROCESS
    if not path.exists():
        return None
    return preprocess_from_json(read_json(path, wanted="a run or bundle folder"))
