"""Annotations in COCO's format: which files lie where, and masks from polygons and run lengths. No torch.

Shapes: N objects of a picture · H, W its pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from routespace.errors import DataError
from routespace.pictures import picture_suffixes
from routespace.train.data.annotated.coco_file import CocoObjects, read_coco
from routespace.train.data.annotated.pixels_of_objects import PixelsOfObjects
from routespace.train.data.annotated.truth import (
    Annotated,
    AnnotatedPart,
    Annotations,
    Truth,
    picture_trouble,
)
from routespace.train.data.catalogue import Split, plain_key, require_root
from routespace.train.recipe.coco import CocoSpec
from routespace.train.recipe.targets import Target

WANTED = "the folder of pictures and annotations in COCO's format, or their JSON file"
# Where COCO and those who write its format put annotations and pictures: {} is the part's name.
LAYOUTS = (
    ("annotations/instances_{}2017.json", "{}2017"),
    ("annotations/instances_{}.json", "{}"),
    ("annotations/instances_{}.json", "images/{}"),
    ("annotations/{}.json", "{}"),
    ("annotations/{}.json", "images/{}"),
    ("{}/_annotations.coco.json", "{}"),
)
ALIASES: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


class _Place(NamedTuple):
    annotations: Path
    images: Path


def coco_annotations(spec: CocoSpec, target: Target) -> Annotations:
    """The annotations of a recipe's data section, as what is asked of each picture.

    Raises:
        DataError: `data.root` is missing.
    """
    found = CocoAnnotations(spec, target)
    return PixelsOfObjects(found) if target == "pixels" else found


class CocoAnnotations:
    """The pictures and annotations of a recipe's data section; see `Annotations`.

    Args:
        spec: where they lie.
        target: what is asked of each picture.

    Raises:
        DataError: `data.root` is missing.
    """

    def __init__(self, spec: CocoSpec, target: Target) -> None:
        self.root, self.spec = require_root(spec.root, WANTED), spec
        self.masks = target != "objects"

    def part(self, split: Split, *, whole: bool = False) -> AnnotatedPart | None:
        """What a part holds; see `Annotations`."""
        place = self._place(split, whole=whole)
        if place is None:
            return None
        found = read_coco(place.annotations, masks=self.masks)
        folder = _folder_of(place.images, found.pictures[0].name)
        images = tuple(
            Annotated(str(_picture_at(folder, name)), plain_key(PurePath(name)), number, objects, size)
            for number, name, size, objects in found.pictures
        )
        return AnnotatedPart(str(place.annotations), images, found.classes, found.notes, str(place.images))

    def truth(self, image: Annotated) -> Truth:
        """Boxes, and masks where they are asked for; see `Annotations`."""
        known: CocoObjects = image.known
        masks = None
        if self.masks:
            assert image.size is not None
            masks = np.zeros((len(known.ids), *image.size), np.bool_)
            for n, segment in enumerate(known.segments):
                try:
                    masks[n] = decoded(segment, image.size)
                except Exception as error:  # pycocotools raises many kinds
                    raise DataError(
                        f"{image.place}: the mask of annotation {known.ids[n]} cannot be read ({error!s:.80}); "
                        f"mend or remove it"
                    ) from error
        return Truth(known.boxes, known.labels, known.crowd, known.area, masks)

    def trouble(self, image: Annotated) -> str | None:
        """From the picture's header; see `Annotations`."""
        return picture_trouble(image)

    def objects(self, images: Sequence[Annotated], *, crowds: bool = True) -> Mapping[int, int]:
        """Label → objects."""
        found = Counter[int]()
        for image in images:
            found.update(image.known.labels[~image.known.crowd | crowds].tolist())
        return found

    def _place(self, split: Split, *, whole: bool) -> _Place | None:
        """Where a part lies; None where there is none."""
        if self.root.is_file():
            if not whole:
                self._require_alone()
            folder = self.spec.train_images
            images = self.root.parent / folder if folder is not None else pictures_of(self.root)
            return _Place(self.root, images) if whole or split == "train" else None
        annotations, images = (getattr(self.spec, f"{split}_{what}") for what in ("annotations", "images"))
        places = list(_layouts(self.root, split))
        if annotations is not None:
            file = self.root / annotations
        else:
            place = next((place for place in places if place.annotations.is_file()), None)
            if place is None and split == "train":
                tried = ", ".join(dict.fromkeys(str(p.annotations.relative_to(self.root)) for p in places))
                raise DataError(
                    f"{self.root}: has no annotations to train with (looked for {tried}); name them with "
                    f"data.train_annotations"
                )
            if place is None:
                return None
            file = place.annotations
        if not file.is_file():
            raise DataError(f"{file}: no such file; mend data.{split}_annotations")
        if images is not None:
            folder_of = self.root / images
        else:
            same = [p.images for p in places if p.annotations == file and p.images.is_dir()]
            folder_of = same[0] if same else pictures_of(file)
        if not folder_of.is_dir():
            raise DataError(f"{folder_of}: no such folder of pictures; name it with data.{split}_images")
        if images is None and folder_of == file.parent != self.root and not holds_pictures(folder_of):
            wanted = ", ".join(dict.fromkeys(f"{p.images.relative_to(self.root)}/" for p in places))
            raise DataError(
                f"{file}: has no folder of pictures (looked for {wanted}); name it with data.{split}_images"
            )
        return _Place(file, folder_of)

    def _require_alone(self) -> None:
        """Raise DataError where parts are named beside one file, of which a share is held out."""
        for name in ("train_annotations", "val_annotations", "test_annotations", "val_images", "test_images"):
            if getattr(self.spec, name) is not None:
                raise DataError(
                    f"data.{name}: means nothing where data.root is one file ({self.root}), of which a share is "
                    f"held out; give the folder of all parts as data.root, or leave it out"
                )


def _layouts(root: Path, split: Split) -> Iterator[_Place]:
    for name in ALIASES[split]:
        for file, folder in LAYOUTS:
            yield _Place(root / file.format(name), root / folder.format(name))


def pictures_of(file: Path) -> Path:
    """The folder of the pictures of a JSON file by its place and name: annotations/instances_val2017.json is of
    val2017/; else the folder that it lies in."""
    beside = file.parent.parent if file.parent.name == "annotations" else file.parent
    name = file.stem.removeprefix("instances_")
    for folder in (beside / name, beside / "images" / name, beside / "images"):
        if folder.is_dir():
            return folder
    return file.parent


def _folder_of(folder: Path, name: str) -> Path:
    """Where a picture lies: in a folder, or beside it, as file names with the folder's own in front have it."""
    beside = not _picture_at(folder, name).exists() and _picture_at(folder.parent, name).exists()
    return folder.parent if beside else folder


def _picture_at(folder: Path, name: str) -> Path:
    """Where a picture lies whose name may have been written by Windows, with backslashes between the folders."""
    place = folder / name
    return folder / name.replace("\\", "/") if "\\" in name and not place.exists() else place


def holds_pictures(folder: Path) -> bool:
    """Whether pictures, or folders that may have some, lie in a folder."""
    return any(item.is_dir() or item.suffix.lower() in picture_suffixes() for item in folder.iterdir())


def decoded(segment: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Polygons or run lengths → (H, W), as pycocotools' `annToMask` has it."""
    if isinstance(segment, list):
        runs = coco_mask.merge(coco_mask.frPyObjects([piece.tolist() for piece in segment], *size))
    elif isinstance(segment["counts"], list):
        runs = coco_mask.frPyObjects(segment, *size)
    else:
        runs = segment
    found: NDArray[np.bool_] = coco_mask.decode(runs).astype(np.bool_)
    return found
