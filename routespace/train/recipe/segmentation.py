"""The recipe's data sections for pictures with a class for each pixel."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from routespace.train.recipe.annotated import AnnotatedSpec
from routespace.train.recipe.parts import Whole
from routespace.train.recipe.targets import Target

CLASS_FILES = ("classes.txt", "objectInfo150.txt")  # names of classes; the second is ADE20K's own table


def counts_from_one(root: Path) -> bool:
    """Whether the names of a folder's classes come from ADE20K's own table, which counts them from 1."""
    return next((name for name in CLASS_FILES if (root / name).is_file()), None) == CLASS_FILES[1]


class SegmentationSpec(AnnotatedSpec):
    """Folders of pictures and of label maps, as ADE20K lies: images/training, annotations/training, …

    A label map is a picture of one channel, such as a PNG with a palette, in which each number is a class. It has
    the name of its picture but for the ending.

    Args:
        root: the folder of both.
        image_folder, label_folder: the two folders, in `root`. In each there are training, validation and test (or
            train, val, …), or the files themselves, of which a share is then held out.
        suffix: ending of the label maps.
        ignore: numbers in them of pixels that count for nothing.
        shift: what is taken from the others: 1 where classes begin with 1. ADE20K: ignore [0], shift 1.
        names: of the classes, a list or a file in `root` with a line for each; None for classes.txt, or the
            table objectInfo150.txt of ADE20K.
    """

    targets: ClassVar[tuple[Target, ...]] = ("pixels",)
    longer: ClassVar[int | None] = 4

    kind: Literal["segmentation"] = "segmentation"
    image_folder: str = "images"
    label_folder: str = "annotations"
    suffix: str = ".png"
    ignore: tuple[Whole, ...] = (255,)
    shift: Whole = 0
    names: str | tuple[str, ...] | None = None


class CityscapesSpec(AnnotatedSpec):
    """Cityscapes as torchvision reads it: its 19 classes of pixels. Its test part has no public labels.

    Args:
        root: the folder with leftImg8bit/ and gtFine/ (or gtCoarse/).
        mode: how exact the labels are.
    """

    targets: ClassVar[tuple[Target, ...]] = ("pixels",)
    longer: ClassVar[int | None] = 2

    kind: Literal["cityscapes"] = "cityscapes"
    mode: Literal["fine", "coarse"] = "fine"
