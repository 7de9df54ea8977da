"""Pictures with what was found drawn on them: boxes with names, masks, maps of classes. Pillow alone, no torch.

    drawn_objects(picture, boxes, words, classes, masks)
    drawn_pixels(picture, classes, names)
    class_map(classes)                            the bare map as a palette image: its values are the classes

A class has one colour everywhere. Small pictures are enlarged and narrow ones get a margin, so that names stay
legible; of a name that is longer than there is room for, the beginning and the end are told.

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
NARROW = 6  # of a longer side so many shorter ones count: lines and letters of a strip are those of a picture
MARGIN = 4  # pixels that a word's ground is larger than the word
MASK_SHARE = 0.45  # of a mask's colour in what is seen
MAP_SHARE = 0.6
LINE_SHARE = 1 / 300  # of the longer side: how wide a box's line is
TEXT_SHARE = 1 / 40  # of the longer side: how high a letter is
LEAST_TEXT = 12
GOLDEN = 0.618034  # a turn of the hue from class to class that never comes back close to one it has had
_MEASURE = ImageDraw.Draw(Image.new("RGB", (1, 1)))  # words are measured before there is a picture for them
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
        _colour_in(canvas, _enlarged(masks[place], factor), colour_of(classes[place]))
    line, pixels = max(2, _share_of(canvas.size, LINE_SHARE)), _text_px(canvas.size)
    canvas = _widened(canvas, words, pixels)
    pen = ImageDraw.Draw(canvas)
    for place in order:
        box = [factor * float(side) for side in boxes[place]]
        left, top = box[:2]
        right, bottom = max(left, box[2] - 1), max(top, box[3] - 1)
        pen.rectangle((left, top, right, bottom), outline=colour_of(classes[place]), width=line)
    for place in order:
        corner = factor * float(boxes[place][0]), factor * float(boxes[place][1])
        word = _fitted(words[place], pixels, canvas.width)
        _write(pen, canvas.size, corner, word, colour_of(classes[place]), pixels=pixels)
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
    pixels, words = _text_px(mixed.size), list(names.values())
    mixed = _widened(mixed, words, pixels)
    height, widest = 2 * pixels, max((_width(word, pixels) for word in words), default=1)
    columns = max(1, mixed.width // (widest + pixels))
    rows = math.ceil(len(names) / columns)
    whole = Image.new("RGB", (mixed.width, mixed.height + rows * height), "white")
    whole.paste(mixed)
    pen = ImageDraw.Draw(whole)
    for place, (number, name) in enumerate(names.items()):
        row, column = divmod(place, columns)
        at = column * mixed.width / columns, mixed.height + row * height + height / 4
        word = _fitted(name, pixels, mixed.width)
        _write(pen, whole.size, at, word, colour_of(number), pixels=pixels, inside=True)
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


def _colour_in(canvas: Image.Image, mask: Image.Image, colour: Colour) -> None:
    """Mix a colour into what a mask covers."""
    box = mask.getbbox()
    if box is not None:  # the whole of a large picture would take a second for each object
        part = canvas.crop(box)
        canvas.paste(Image.blend(part, Image.new("RGB", part.size, colour), MASK_SHARE), box, mask.crop(box))


def _widened(canvas: Image.Image, words: Sequence[str], pixels: int) -> Image.Image:
    """A narrow picture with a white margin on its right, so wide that each word fits or is cut for a reason."""
    wanted = max((_width(word, pixels) for word in words), default=0)
    wide = Image.new("RGB", (max(canvas.width, min(wanted, LEAST_SIDE)), canvas.height), "white")
    wide.paste(canvas)
    return wide


def _fitted(text: str, pixels: int, room: int) -> str:
    """A text that is not wider than there is room for: its middle is left out where it is."""
    kept = len(text)
    shorter = text
    while _width(shorter, pixels) > room and kept > 2:  # a letter at the beginning and at the end always stay
        kept -= 1
        head = kept - kept // 3
        shorter = f"{text[:head]}…{text[len(text) - kept // 3 :]}"
    return shorter


def _width(text: str, pixels: int) -> int:
    """Of a word with its ground, in pixels."""
    left, _, right, _ = _MEASURE.textbbox((0, 0), text, font=_font(pixels, text))
    return math.ceil(right - left) + MARGIN


def _font(pixels: int, text: str) -> Any:
    """Pillow's own font for English words; it has the letters of western Europe alone."""
    if text.replace("…", "").isascii():
        return _font_of(pixels)
    from routespace.draw.fonts import font_for  # matplotlib takes a second, and most names do without

    return _font_of(pixels, font_for(text).file)


@cache
def _font_of(pixels: int, file: str | None = None) -> Any:
    return ImageFont.load_default(pixels) if file is None else ImageFont.truetype(file, pixels)


def _share_of(size: tuple[int, int], share: float) -> int:
    """Pixels that are a share of a picture's longer side, and less where it is narrow."""
    return round(min(max(size), NARROW * min(size)) * share)


def _text_px(size: tuple[int, int]) -> int:
    return max(LEAST_TEXT, _share_of(size, TEXT_SHARE))


def _write(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corner: tuple[float, float],
    text: str,
    colour: Colour,
    *,
    pixels: int,
    inside: bool = False,
) -> None:
    """A word on a ground of its class's colour, above a corner (or from it on), wholly inside the picture."""
    font = _font(pixels, text)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + MARGIN, bottom - top + MARGIN
    x = min(max(0.0, corner[0]), max(0.0, size[0] - width))
    y = min(max(0.0, corner[1] - (0 if inside else height)), max(0.0, size[1] - height))
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)  # both corners are inside
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    pen.text((x + 2 - left, y + 2 - top), text, font=font, fill="black" if bright else "white")
