"""One file of annotations in COCO's format, read and checked as a whole before anything is trained.

What COCO's own files hold is taken as its tools take it: boxes are judged as they stand there, and training clips
them to the picture; one of which nothing is in the picture, and a mask without a polygon of three points, are left
out and told. What cannot be meant is an error that names the file and the id: an annotation without its picture,
an unknown category, a mask of another size.

Shapes: N objects of a picture · H, W its pixels.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeGuard

import numpy as np
from numpy.typing import NDArray

from routespace.errors import DataError
from routespace.files import as_whole, read_json
from routespace.picture_files import plain_name
from routespace.train.data.annotated.truth import LeftOut

WANTED = "a JSON file of annotations in COCO's format"
NO_AREA = "box without area or outside of its picture", "boxes without area or outside of their pictures"
MOST_PX = 2**31 - 1  # of a picture's side, whatever its annotations say
WHOLE = "id", "image_id", "category_id", "height", "width"  # of which some programs write 128.0
FAR = 100  # sides of a picture: a point that lies further away cannot be meant
NO_POLYGON = "object without a polygon of three points", "objects without a polygon of three points"


class CocoObjects(NamedTuple):
    """The N objects of a picture.

    Attributes:
        ids: (N,) of the annotations.
        boxes: (N, 4) float32. labels: (N,) int64. crowd: (N,) bool. area: (N,) float32.
        segments: for each its polygons (x, y, x, y, …), or its run lengths; None where masks are not asked for.
    """

    ids: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float32]
    segments: tuple[Any, ...]


class CocoPicture(NamedTuple):
    """A picture of the file: its number, file name, (H, W) and objects."""

    number: int
    name: str
    size: tuple[int, int]
    objects: CocoObjects


class CocoFile(NamedTuple):
    """What a file holds; the classes are in the order of the categories' ids."""

    classes: tuple[str, ...]
    pictures: tuple[CocoPicture, ...]
    notes: tuple[str, ...]


def read_coco(path: Path, *, masks: bool) -> CocoFile:
    """Read and check a file; COCO's own takes half a minute, so that one that has not changed is read once.

    Args:
        path: the JSON file.
        masks: masks are asked for, so that each object needs one.

    Raises:
        DataError: it cannot be read, or says what cannot be meant; the line names the file and the id.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give {WANTED}") from error
    return _read(path, masks, (state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=4)
def _read(path: Path, masks: bool, _: tuple[int, int]) -> CocoFile:
    data = read_json(path, wanted=WANTED, error=DataError)
    tables = {name: _table(path, data, name) for name in ("images", "categories", "annotations")}
    pictures = tables["images"]
    for number, row in pictures.items():
        _check_picture(path, number, row)
    order = sorted(tables["categories"])
    labels = {number: label for label, number in enumerate(order)}
    left, found = LeftOut(str(path)), defaultdict[int, list[_Object]](list)
    for number, row in tables["annotations"].items():
        read = _Reading(path, number, row, masks=masks, left=left)
        picture = row.get("image_id")
        if not _is_id(picture) or picture not in pictures:
            read.fail(f"is of image {picture!r:.40}, which is not among its images")
        if not _is_id(row.get("category_id")) or row["category_id"] not in labels:
            read.fail(f"is of category {row.get('category_id')!r:.40}, which is not among its categories")
        size = (pictures[picture]["height"], pictures[picture]["width"])
        seen = read.object(size, labels[row["category_id"]])
        if seen is not None:
            found[picture].append(seen)
    names = tuple(_class_name(path, number, tables["categories"][number]) for number in order)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: has two categories called {twice!r:.60}; give each a name of its own")
    return CocoFile(
        names,
        tuple(
            CocoPicture(number, str(row["file_name"]), (row["height"], row["width"]), _together(found[number]))
            for number, row in pictures.items()
        ),
        left.notes,
    )


class _Object(NamedTuple):
    number: int
    box: tuple[float, float, float, float]
    label: int
    crowd: bool
    area: float
    segment: Any


def _together(objects: Sequence[_Object]) -> CocoObjects:
    return CocoObjects(
        np.array([one.number for one in objects], np.int64),
        np.array([one.box for one in objects], np.float32).reshape(-1, 4),
        np.array([one.label for one in objects], np.int64),
        np.array([one.crowd for one in objects], np.bool_),
        np.array([one.area for one in objects], np.float32),
        tuple(one.segment for one in objects),
    )


def _is_id(number: object) -> bool:
    """Whether it is a whole number that 64 bits hold, as arrays keep it."""
    return isinstance(number, int) and not isinstance(number, bool) and -(2**63) <= number < 2**63


def _is_finite(number: object) -> TypeGuard[float]:
    """Whether it is a number that a float holds."""
    try:
        return isinstance(number, int | float) and math.isfinite(number)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _table(path: Path, data: Any, name: str) -> dict[int, Mapping[str, Any]]:
    """id → row of one of the file's lists."""
    rows = data.get(name) if isinstance(data, dict) else None
    if not isinstance(rows, list):
        raise DataError(f"{path}: has no list of {name}; give {WANTED}")
    if not rows and name != "annotations":
        raise DataError(f"{path}: its list of {name} is empty; give {WANTED}")
    found: dict[int, Mapping[str, Any]] = {}
    for position, row in enumerate(rows):
        if isinstance(row, dict) and any(isinstance(row.get(field), float) for field in WHOLE):
            row = {field: as_whole(value) if field in WHOLE else value for field, value in row.items()}
        number = row.get("id") if isinstance(row, dict) else None
        if not isinstance(number, int) or not _is_id(number):
            raise DataError(
                f"{path}, {name}[{position}]: its id is {number!r:.40}; give a whole number (64 bits at most)"
            )
        if number in found:
            raise DataError(f"{path}, {name}[{position}]: id {number} is there twice; give each one of its own")
        found[number] = row
    return found


def _check_picture(path: Path, number: int, row: Mapping[str, Any]) -> None:
    if not isinstance(row.get("file_name"), str) or not row["file_name"]:
        raise DataError(f"{path}, image {number}: has no file_name; name its picture")
    for side in ("height", "width"):
        if not _is_id(row.get(side)) or not 1 <= row[side] <= MOST_PX:
            raise DataError(f"{path}, image {number}: its {side} is {row.get(side)!r:.40}; give its pixels")


def _class_name(path: Path, number: int, row: Mapping[str, Any]) -> str:
    name = row.get("name")
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{path}, category {number}: has no name; give it one")
    return plain_name(name)


class _Reading:
    """Reads one annotation.

    Args:
        path, number, row: the file, and the annotation's id and fields.
        masks: it needs a mask.
        left: counts what is left out.
    """

    def __init__(self, path: Path, number: int, row: Mapping[str, Any], *, masks: bool, left: LeftOut) -> None:
        self.path, self.number, self.row, self.masks, self.left = path, number, row, masks, left

    def fail(self, why: str) -> NoReturn:
        """Raise the error that names the file and the annotation."""
        raise DataError(f"{self.path}, annotation {self.number}: {why}; mend or remove it")

    def object(self, size: tuple[int, int], label: int) -> _Object | None:
        """What it says of a picture of (H, W); None where it is left out."""
        box = self._box()
        what = f"annotation {self.number} of image {self.row['image_id']}"
        if max(0.0, box[0]) >= min(size[1], box[2]) or max(0.0, box[1]) >= min(size[0], box[3]):
            self.left.add(NO_AREA, what)
            return None
        segment = self._segment(size) if self.masks else None
        if self.masks and segment is None:
            self.left.add(NO_POLYGON, what)
            return None
        area = self.row.get("area")
        if not _is_finite(area) or area < 0:
            area = self.row["bbox"][2] * self.row["bbox"][3]
        crowd = self.row.get("iscrowd")
        if crowd not in (None, 0, 1):  # False and True are these, and "0" would be a crowd
            self.fail(f"its iscrowd is {crowd!r:.40}, not 0 or 1")
        return _Object(self.number, box, label, bool(crowd), float(area), segment)

    def _box(self) -> tuple[float, float, float, float]:
        box = self.row.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(x) for x in box):
            self.fail(f"its bbox is {box!r:.60}, not [x, y, width, height]")
        x, y, wide, high = box
        return x, y, x + wide, y + high

    def _segment(self, size: tuple[int, int]) -> Any:
        """Polygons of three points and more, or run lengths; None where no polygon is left."""
        given = self.row.get("segmentation")
        if isinstance(given, dict):
            return self._runs(given, size)
        if not isinstance(given, list):
            self.fail("has no segmentation, and the task asks for masks")
        return [piece for piece in self._polygons(given, FAR * max(size)) if len(piece) >= 6] or None

    def _polygons(self, given: Sequence[Any], most_px: float) -> Iterator[NDArray[np.float64]]:
        """The polygons; pycocotools takes memory for every pixel of an edge, in the picture or not."""
        for piece in given:
            try:
                numbers = np.asarray(piece, np.float64)
            except (TypeError, ValueError, OverflowError):
                numbers = np.full(1, np.nan)
            if numbers.ndim != 1 or len(numbers) % 2 or not np.isfinite(numbers).all():
                self.fail("a polygon of it is not [x, y, x, y, …]")
            if len(numbers) and np.abs(numbers).max() > most_px:
                far = numbers[np.abs(numbers).argmax()]
                self.fail(f"a polygon of it has the coordinate {far:g}, far outside of its picture")
            yield numbers

    def _runs(self, given: Mapping[str, Any], size: tuple[int, int]) -> Any:
        counts = given.get("counts")
        told = given.get("size")
        if told != list(size):
            self.fail(f"its mask is of {told!r:.40} (height, width), its image of {list(size)}")
        try:
            runs = counts if isinstance(counts, list) else run_lengths(str(counts))
        except IndexError:
            runs = []
        if not all(_is_id(run) and run >= 0 for run in runs) or sum(runs) != size[0] * size[1]:
            self.fail("its run lengths do not fill its mask")
        return {"size": list(size), "counts": counts}


def run_lengths(text: str) -> list[int]:
    """The run lengths in a compressed string of COCO's; pycocotools reads past the end of one that is too short.

    Raises:
        IndexError: it ends in the middle of a number.
    """
    found: list[int] = []
    position = 0
    while position < len(text):
        number = bits = 0
        more = True
        while more:
            code = ord(text[position]) - 48
            number |= (code & 31) << bits
            bits += 5
            position += 1
            more = bool(code & 32)
        if code & 16:
            number |= -1 << bits
        found.append(number + (found[-2] if len(found) > 2 else 0))
    return found
