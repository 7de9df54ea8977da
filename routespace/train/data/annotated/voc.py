"""Pascal VOC, as torchvision finds it: boxes from XML files, or label maps.

Its import takes torch, so this happens when a part is asked for.
"""

from __future__ import annotations

import io
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from routespace.errors import DataError
from routespace.train.data.annotated.label_maps import LabelMaps
from routespace.train.data.annotated.truth import (
    Annotated,
    AnnotatedPart,
    Annotations,
    Truth,
    picture_trouble,
)
from routespace.train.data.catalogue import Split, require_root
from routespace.train.recipe.targets import BACKGROUND, IGNORE, Target
from routespace.train.recipe.voc import VocSpec

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def voc_annotations(spec: VocSpec, target: Target) -> Annotations:
    """The annotations of a recipe's data section, as what is asked of each picture.

    Raises:
        DataError: `data.root` is missing.
    """
    return VocPixels(spec) if target == "pixels" else VocBoxes(spec)


class _Voc:
    """What both have: which pictures are in which part."""

    dataset: str  # torchvision's class
    classes: tuple[str, ...]

    def __init__(self, spec: VocSpec) -> None:
        if spec.root is None or not spec.download:
            require_root(spec.root, "the folder with VOCdevkit/ in it")
        self.spec = spec

    def part(self, split: Split, *, whole: bool = False) -> AnnotatedPart | None:
        """What a part holds; see `Annotations`."""
        called = {"train": self.spec.train_split, "val": self.spec.val_split, "test": self.spec.test_split}[split]
        if called is None:
            return None
        from torchvision import datasets

        make, year = getattr(datasets, self.dataset), self.spec.year
        try:
            with redirect_stdout(io.StringIO()):  # torchvision prints what it fetches
                found = make(self.spec.root, year, called, download=self.spec.download)
        except ValueError as error:  # it knows the lists of each year
            known = str(error).partition("Valid values are ")[2].strip(".{}") or "other lists"
            raise DataError(
                f"data.{split}_split: {called!r:.60} is no list of VOC {year}, which has {known}; give one of them"
            ) from error
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"{self.spec.root}: has no VOC {year} part {called!r} ({reason:.120}); give the folder with "
                f"VOCdevkit/ in it, or set data.download=true"
            ) from error
        images = [
            Annotated(place, Path(place).name, number, known)
            for number, (place, known) in enumerate(zip(found.images, found.targets, strict=True))
        ]
        return AnnotatedPart(f"{self.spec.root}, VOC {year} {called}", images, self.classes)


class VocPixels(_Voc):
    """Classes of pixels; see `Annotations`."""

    dataset = "VOCSegmentation"
    classes = (BACKGROUND, *CLASSES)
    maps = LabelMaps({number: number for number in range(len(CLASSES) + 1)}, frozenset({IGNORE}))

    def truth(self, image: Annotated) -> Truth:
        """Classes of the pixels; see `Annotations`."""
        return self.maps.truth(image)

    def trouble(self, image: Annotated) -> str | None:
        """From the picture's header and the whole label map; see `Annotations`."""
        return self.maps.trouble(image)

    def objects(self, images: Sequence[Annotated], *, crowds: bool = True) -> Mapping[int, int]:
        """None: pixels are labelled."""
        return {}


class VocBoxes(_Voc):
    """Boxes of objects; see `Annotations`."""

    dataset = "VOCDetection"
    classes = CLASSES

    def truth(self, image: Annotated) -> Truth:
        """Boxes: VOC counts pixels from 1, and its last ones are inside."""
        return _boxes_of(image.known)

    def trouble(self, image: Annotated) -> str | None:
        """From the picture's header and its XML file; see `Annotations`."""
        try:
            _boxes_of(image.known)
        except DataError as error:
            return str(error).rpartition("; ")[0]
        return picture_trouble(image)

    def objects(self, images: Sequence[Annotated], *, crowds: bool = True) -> Mapping[int, int]:
        """Label → objects; what cannot be read is told by `trouble`."""
        found = Counter[int]()
        for image in images:
            with suppress(DataError):
                known = _boxes_of(image.known)
                assert known.labels is not None
                assert known.crowd is not None
                found.update(known.labels[~known.crowd | crowds].tolist())
        return found


def _boxes_of(path: str) -> Truth:
    """What an XML file tells; one that has not changed is read once."""
    try:
        state = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); replace or remove it") from error
    return _boxes(path, (state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=65_536)
def _boxes(path: str, _: tuple[int, int]) -> Truth:
    try:
        tree = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"{path}: cannot be read ({error!s:.80}); replace or remove it") from error
    width, height = (_number(path, tree, f"size/{side}") for side in ("width", "height"))
    boxes, labels, crowd = [], [], []
    for number, one in enumerate(tree.iter("object")):
        name = (one.findtext("name") or "").strip()
        if name not in CLASSES:
            raise DataError(f"{path}, object {number}: is of class {name!r:.40}, none of VOC's; mend or remove it")
        x1, y1, x2, y2 = (_number(path, one, f"bndbox/{corner}") for corner in CORNERS)
        box = (max(0.0, x1 - 1), max(0.0, y1 - 1), min(width, x2), min(height, y2))
        if box[2] <= box[0] or box[3] <= box[1]:
            raise DataError(
                f"{path}, object {number}: its box {[x1, y1, x2, y2]} has no area inside of the picture; mend or "
                f"remove it"
            )
        boxes.append(box)
        labels.append(CLASSES.index(name))
        crowd.append((one.findtext("difficult") or "0").strip() == "1")
    array = np.array(boxes, np.float32).reshape(-1, 4)
    area: Any = (array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1])
    return Truth(array, np.array(labels, np.int64), np.array(crowd, np.bool_), area)


def _number(path: str, node: ElementTree.Element, place: str) -> float:
    text = node.findtext(place)
    try:
        found = float(text or "nan")
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise DataError(f"{path}: its {place} is {text!r:.40}; give a number")
    return found
