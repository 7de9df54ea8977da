"""The recipe's data section for annotations in COCO's format."""

from __future__ import annotations

from typing import ClassVar, Literal

from routespace.train.recipe.annotated import AnnotatedSpec
from routespace.train.recipe.targets import Target


class CocoSpec(AnnotatedSpec):
    """Pictures with a JSON file of boxes and masks in COCO's format for each part.

    Classes are the file's categories in the order of their ids, whatever holes these have. Of pixels, class 0 is
    the background.

    Args:
        root: the folder of all of it; or one JSON file, of which a share is held out.
        train_images, val_images, test_images: folders of pictures, in `root`.
        train_annotations, val_annotations, test_annotations: the JSON files, in `root`. What is None is looked
            for: train2017/ and annotations/instances_train2017.json, as COCO lies; train/ and
            annotations/instances_train.json; train/_annotations.coco.json beside its pictures.
        group: pictures that are fed at one size share a training step where there are enough of them, as fewer and
            larger groups are quicker; for boxes and masks. Every picture keeps its own draws.
    """

    targets: ClassVar[tuple[Target, ...]] = ("objects", "masks", "pixels")

    kind: Literal["coco"] = "coco"
    train_images: str | None = None
    train_annotations: str | None = None
    val_images: str | None = None
    val_annotations: str | None = None
    test_images: str | None = None
    test_annotations: str | None = None
    group: bool = True
