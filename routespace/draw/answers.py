"""Pictures with what was found drawn on them: boxes with names, masks, maps of classes. Pillow alone, no torch.

    drawn_objects(picture, boxes, words, classes, masks)
    drawn_pixels(picture, classes, names)
    class_map(classes)                            the bare map as a palette image: its values are the classes

A class has one colour everywhere. Small pictures are enlarged, so that names stay legible.

Shape legend: N objects · H, W of the picture.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

LEAST_SIDE = 480  # pixels of the longer side of what is drawn
MASK_SHARE = 0.45  # of a mask's colour in what is seen
MAP_SHARE = 0.6
LINE_SHARE = 1 / 300  # of the longer side: how wide a box's line is
TEXT_SHARE = 1 / 40  # of the longer side: how high a letter is
LEAST_TEXT = 12
GOLDEN = 0.618034  # a turn of the hue from class to class that never comes back close to one it has had
Colour = tuple[int, int, int]


@cache
def colour_of(number: int) -> Colour:
    """The colour of a class, counted from 0."""
    value = (0.95, 0.7)[number // 8 % 2]
    red, green, blue = colorsys.hsv_to_rgb(number * GOLDEN % 1, 0.85, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def drawn_objects(
    picture: Image.Image,
    boxes: NDArray[np.float32],
    words: Sequence[str],
    classes: Sequence[int],
    masks: NDArray[np.bool_] | None = None,
) -> Image.Image:
    """A picture with its objects, the surest on top.

    Args:
        picture: (H, W), upright.
        boxes: (N, 4) x1 y1 x2 y2 in its pixels, the surest first.
        words: of each object.
        classes: of each object, from 0, for the colour.
        masks: (N, H, W).
    """
    canvas, factor = _canvas(picture)
    order = range(len(words) - 1, -1, -1)
    for place in order if masks is not None else ():
        assert masks is not None
        canvas.paste(_blended(canvas, colour_of(classes[place]), MASK_SHARE), mask=_enlarged(masks[place], factor))
    pen, line = ImageDraw.Draw(canvas), max(2, round(max(canvas.size) * LINE_SHARE))
    for place in order:
        box = [factor * float(side) for side in boxes[place]]
        left, top = box[:2]
        right, bottom = max(left, box[2] - 1), max(top, box[3] - 1)
        pen.rectangle((left, top, right, bottom), outline=colour_of(classes[place]), width=line)
    for place in order:
        corner = factor * float(boxes[place][0]), factor * float(boxes[place][1])
        _write(pen, canvas.size, corner, words[place], colour_of(classes[place]))
    return canvas


def drawn_pixels(picture: Image.Image, classes: NDArray[np.uint8], names: Mapping[int, str]) -> Image.Image:
    """A picture under the colours of its pixels' classes, and below it what they mean.

    Args:
        picture: (H, W), upright.
        classes: (H, W).
        names: class → its name, of those that shall be explained, in their order.
    """
    canvas, _ = _canvas(picture)
    colours = class_map(classes).convert("RGB").resize(canvas.size, Image.Resampling.NEAREST)
    mixed = Image.blend(canvas, colours, MAP_SHARE)
    height = 2 * _text_px(mixed.size)
    columns = max(1, mixed.width // (10 * height))
    rows = math.ceil(len(names) / columns)
    whole = Image.new("RGB", (mixed.width, mixed.height + rows * height), "white")
    whole.paste(mixed)
    pen = ImageDraw.Draw(whole)
    for place, (number, name) in enumerate(names.items()):
        row, column = divmod(place, columns)
        at = column * mixed.width / columns, mixed.height + row * height + height / 4
        _write(pen, whole.size, at, name, colour_of(number), inside=True)
    return whole


def class_map(classes: NDArray[np.uint8]) -> Image.Image:
    """(H, W) classes as an image of mode P whose values they are."""
    image = Image.fromarray(classes, mode=None).convert("L")
    image.putpalette([part for number in range(256) for part in colour_of(number)])
    return image


def _canvas(picture: Image.Image) -> tuple[Image.Image, int]:
    """The picture in colour, enlarged by a whole number where it is small; and that number."""
    factor = max(1, math.ceil(LEAST_SIDE / max(picture.size)))
    size = picture.width * factor, picture.height * factor
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST), factor


def _enlarged(mask: NDArray[np.bool_], factor: int) -> Image.Image:
    return Image.fromarray(mask.repeat(factor, 0).repeat(factor, 1).astype(np.uint8) * 255)


def _blended(canvas: Image.Image, colour: Colour, share: float) -> Image.Image:
    return Image.blend(canvas, Image.new("RGB", canvas.size, colour), share)


def _font(size: tuple[int, int], text: str) -> Any:
    """Pillow's own font for English words; it has the letters of western Europe alone."""
    if text.isascii():
        return _font_of(_text_px(size))
    from routespace.draw.fonts import font_for  # matplotlib takes a second, and most names do without

    return _font_of(_text_px(size), font_for(text).file)


@cache
def _font_of(pixels: int, file: str | None = None) -> Any:
    return ImageFont.load_default(pixels) if file is None else ImageFont.truetype(file, pixels)


def _text_px(size: tuple[int, int]) -> int:
    return max(LEAST_TEXT, round(max(size) * TEXT_SHARE))


def _write(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corner: tuple[float, float],
    text: str,
    colour: Colour,
    *,
    inside: bool = False,
) -> None:
    """A word on a ground of its class's colour, above a corner (or from it on), wholly inside the picture."""
    font = _font(size, text)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = min(max(0.0, corner[0]), max(0.0, size[0] - width))
    y = min(max(0.0, corner[1] - (0 if inside else height)), max(0.0, size[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    pen.text((x + 2 - left, y + 2 - top), text, font=font, fill="black" if bright else "white")
