"""Every kind of annotations by its data section. No torch: torchvision is imported when a part is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from routespace.train.data.annotated.cityscapes import CityscapesAnnotations
from routespace.train.data.annotated.coco import coco_annotations
from routespace.train.data.annotated.label_maps import FolderAnnotations
from routespace.train.data.annotated.truth import Annotations
from routespace.train.data.annotated.voc import voc_annotations
from routespace.train.recipe.coco import CocoSpec
from routespace.train.recipe.segmentation import CityscapesSpec, SegmentationSpec
from routespace.train.recipe.targets import Target
from routespace.train.recipe.voc import VocSpec

ANNOTATIONS: dict[type, Callable[[Any, Target], Annotations]] = {
    CocoSpec: coco_annotations,
    SegmentationSpec: FolderAnnotations,
    VocSpec: voc_annotations,
    CityscapesSpec: CityscapesAnnotations,
}
