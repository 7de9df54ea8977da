"""Layout: what stands where in each scene of a batch. Numbers only, nothing is painted.

Everything is drawn from (seed, split, epoch, index): a scene is the same in whatever batch, order or process.

Shape legend: B scenes · K pieces of a scene, distractors first · I cut-outs · C classes · R tries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from routespace.train.data.draws import uniform
from routespace.train.recipe.scenes import ScenesSpec

TRIES, SHRINK = 16, 0.9  # places tried for a piece among others; each try is smaller by this factor
SCENE, PIECE, ORDER = range(3)  # streams of random numbers
NONE = -1  # no piece here; a piece without a label

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Library:
    """The sides and classes of what a split composes; the pictures themselves are in atlases.

    Attributes:
        cutouts: (I, 2) heights and widths, in the order of their classes.
        labels: (I,) classes, ascending; each of 0…C − 1 is there.
        photos: (…, 2) heights and widths.
    """

    cutouts: Ints
    labels: Ints
    photos: Ints

    @cached_property
    def begin(self) -> Ints:
        """(C + 1,): where each class begins."""
        return np.searchsorted(self.labels, np.arange(int(self.labels[-1]) + 2))


@dataclass(frozen=True)
class SceneLayout:
    """A batch of scenes. Lengths are pixels of the scene, unless they are said to be the photograph's.

    Attributes:
        size: (H, W).
        photo: (B,) which photograph; `photo_top`, `photo_left` (B,) the corner in its pixels, `zoom` (B,) its
            pixels for one of the scene, `photo_mirrored` (B,), `light` (B,) the factor of its brightness.
        cutout: (B, K) which cut-out, −1 where there is no piece.
        label: (B, K) its class, −1 for distractors.
        y, x: (B, K) its centre. height, width: (B, K) before it is turned by angle (B, K), in radians.
        mirrored: (B, K). brightness, contrast, saturation: (B, K) factors.
        texture: (B, K) the photograph that fills a distractor.
        distractors: how many of the K pieces can be distractors; they come first.
    """

    size: tuple[int, int]
    photo: Ints
    photo_top: Floats
    photo_left: Floats
    photo_mirrored: NDArray[np.bool_]
    zoom: Floats
    light: Floats
    cutout: Ints
    label: Ints
    y: Floats
    x: Floats
    height: Floats
    width: Floats
    angle: Floats
    mirrored: NDArray[np.bool_]
    brightness: Floats
    contrast: Floats
    saturation: Floats
    texture: Ints
    distractors: int

    @property
    def labels(self) -> Ints:
        """(B,): the class of each scene's largest object."""
        area = np.where(self.label >= 0, np.maximum(self.height, self.width), -1.0)
        rows: Ints = np.take_along_axis(self.label, area.argmax(1)[:, None], 1)[:, 0]
        return rows

    @property
    def reach(self) -> tuple[Floats, Floats]:
        """(B, K) each: from the centre of a turned piece to the top, and to the left, of the box around it."""
        return _reach(self.height, self.width, self.angle)


def draw_layout(
    spec: ScenesSpec,
    library: Library,
    size: tuple[int, int],
    indices: Sequence[int] | Ints,
    words: tuple[int, ...],
) -> SceneLayout:
    """The layout of the scenes of `indices`.

    Args:
        spec: what may stand in a scene.
        library: what there is to compose.
        size: (H, W) of the scenes.
        indices: (B,) numbers of scenes.
        words: seed, split and epoch: with a scene's number they say everything about it.
    """
    index = np.asarray(indices, np.int64).reshape(-1)
    u = iter(uniform(*words, SCENE, index[:, None], np.arange(9)).T)
    photo = _choice(next(u), len(library.photos))
    zoom, top, left = _window(spec, library.photos[photo], size, u)
    there = _wanted(next(u), next(u), spec)
    pieces = _pieces(spec, library, index, words)
    reach = _reach(*pieces.sides, pieces.angle)
    y, x, shrunk, placed = _place(reach, pieces.tries, there, spec.distractors[1], size)
    there &= placed
    labelled = there & (np.arange(there.shape[1]) >= spec.distractors[1])
    height, width = (side * shrunk for side in pieces.sides)
    brightness, contrast, saturation = pieces.factors
    return SceneLayout(
        size=size,
        photo=photo,
        photo_top=top,
        photo_left=left,
        photo_mirrored=next(u) < 0.5,
        zoom=zoom,
        light=_span(next(u), spec.background_brightness),
        cutout=np.where(there, pieces.cutout, NONE),
        label=np.where(labelled, pieces.label, NONE),
        y=y,
        x=x,
        height=height,
        width=width,
        angle=pieces.angle,
        mirrored=pieces.mirrored,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        texture=pieces.texture,
        distractors=spec.distractors[1],
    )


class _Pieces(NamedTuple):
    """What each slot would hold, wherever it stands: (B, K), and tries (B, K, R, 2) of its place in 0…1."""

    label: Ints
    cutout: Ints
    sides: tuple[Floats, Floats]
    angle: Floats
    mirrored: NDArray[np.bool_]
    factors: list[Floats]
    texture: Ints
    tries: Floats


def _pieces(spec: ScenesSpec, library: Library, index: Ints, words: tuple[int, ...]) -> _Pieces:
    slots, classes = spec.distractors[1] + spec.objects_per_scene[1], len(library.begin) - 1
    drawn = uniform(*words, PIECE, index[:, None, None], np.arange(slots)[:, None], np.arange(11 + 2 * TRIES))
    u = iter(drawn.transpose(2, 0, 1))
    label = _choice(next(u), classes)
    label[:, spec.distractors[1]] = _in_turn(words, index, classes)
    first, last = library.begin[label], library.begin[label + 1]
    cutout = first + (next(u) * (last - first)).astype(np.int64)
    side = spec.object_px[0] * (spec.object_px[1] / spec.object_px[0]) ** next(u)
    angle = math.radians(spec.rotate) * (2 * next(u) - 1)
    shape = library.cutouts[cutout] / library.cutouts[cutout].max(-1, keepdims=True)
    stretched = np.sqrt((1 + spec.stretch) ** (2 * next(u) - 1))
    sides = side * shape[..., 0] * stretched, side * shape[..., 1] / stretched
    mirrored = next(u) < spec.hflip
    strengths = spec.brightness, spec.contrast, spec.saturation
    factors = [1 + strength * (2 * next(u) - 1) for strength in strengths]
    texture = _choice(next(u), len(library.photos))
    tries = np.stack([next(u) for _ in range(2 * TRIES)], -1).reshape(*label.shape, TRIES, 2)
    return _Pieces(label, cutout, sides, angle, mirrored, factors, texture, tries)


def _wanted(unlabelled: Floats, labelled: Floats, spec: ScenesSpec) -> NDArray[np.bool_]:
    """(B, K): which slots are to hold something; the first ones are the distractors'."""
    slots, begin = np.arange(spec.distractors[1] + spec.objects_per_scene[1]), spec.distractors[1]
    few, objects = _between(unlabelled, *spec.distractors), _between(labelled, *spec.objects_per_scene)
    wanted: NDArray[np.bool_] = np.where(slots < begin, slots < few[:, None], slots - begin < objects[:, None])
    return wanted


def _window(
    spec: ScenesSpec, sides: Ints, size: tuple[int, int], u: Iterator[Floats]
) -> tuple[Floats, Floats, Floats]:
    """(B,) each: zoom, and the corner of the window in the photograph; photographs too small are enlarged."""
    zoom = np.minimum(_span(next(u), spec.zoom), (sides / np.array(size)).min(1))
    corners = [next(u) * (sides[:, axis] - zoom * size[axis]) for axis in (0, 1)]
    return zoom, corners[0], corners[1]


def _place(
    reach: tuple[Floats, Floats], tries: Floats, there: NDArray[np.bool_], first: int, size: tuple[int, int]
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """(B, K) each: centres, the factor of the size, and whether a piece found room beside those before it.

    Boxes of turned pieces lie inside the scene and do not overlap; a piece that is larger than the scene stands in
    its middle. The slot `first` is placed before all others: it always finds room.
    """
    shrink, (down, across) = SHRINK ** np.arange(TRIES), reach
    y, x, factor = np.zeros_like(down), np.zeros_like(down), np.ones_like(down)
    placed = np.zeros_like(there)
    for k in (first, *(k for k in range(there.shape[1]) if k != first)):
        reach_y, reach_x = down[:, k, None] * shrink, across[:, k, None] * shrink
        centre_y = _inside(tries[:, k, :, 0], reach_y, size[0])
        centre_x = _inside(tries[:, k, :, 1], reach_x, size[1])
        apart_y = np.abs(centre_y[..., None] - y[:, None]) >= reach_y[..., None] + (down * factor)[:, None]
        apart_x = np.abs(centre_x[..., None] - x[:, None]) >= reach_x[..., None] + (across * factor)[:, None]
        free: NDArray[np.bool_] = np.all(apart_y | apart_x | ~placed[:, None], axis=-1)
        chosen = free.argmax(1)
        rows = np.arange(len(y))
        y[:, k], x[:, k], factor[:, k] = centre_y[rows, chosen], centre_x[rows, chosen], shrink[chosen]
        placed[:, k] = there[:, k] & free[rows, chosen]
    return y, x, factor, placed


def _reach(height: Floats, width: Floats, angle: Floats) -> tuple[Floats, Floats]:
    cos, sin = np.abs(np.cos(angle)), np.abs(np.sin(angle))
    return (height * cos + width * sin) / 2, (height * sin + width * cos) / 2


def _inside(u: Floats, reach: Floats, side: int) -> Floats:
    return np.where(2 * reach < side, reach + u * (side - 2 * reach), side / 2)


def _in_turn(words: tuple[int, ...], index: Ints, classes: int) -> Ints:
    """(B,): any `classes` scenes from a multiple of their number on hold every class once, in a drawn order."""
    blocks, inverse = np.unique(index // classes, return_inverse=True)
    orders = uniform(*words, ORDER, blocks[:, None], np.arange(classes)).argsort(1)
    found: Ints = orders[inverse, index % classes]
    return found


def _choice(u: Floats, count: int) -> Ints:
    return np.minimum((u * count).astype(np.int64), count - 1)


def _between(u: Floats, low: int, high: int) -> Ints:
    return low + _choice(u, high - low + 1)


def _span(u: Floats, span: tuple[float, float]) -> Floats:
    return span[0] + u * (span[1] - span[0])
