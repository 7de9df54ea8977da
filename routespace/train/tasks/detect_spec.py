"""Detection and instance segmentation in recipes. Nothing here imports torch.

task: {kind: detect, classes: 80}                        # RetinaNet
task: {kind: detect, classes: 80, beyond: backbone}      # the same as in the papers' tables
task: {kind: detect, classes: 80, detector: fcos}
task: {kind: instance, classes: 80}                      # Mask R-CNN
"""

from __future__ import annotations

from typing import Literal

from routespace.grid.spec import GridSpec
from routespace.nn.heads.settings import DetectSettings, InstanceSettings
from routespace.train.recipe.parts import TrainSpec
from routespace.train.tasks.base import DenseSpec, Metric, Task

BOX_AP = Metric("box_ap", "%", "maximise")  # COCO's mean over IoU 0.5 … 0.95
MASK_AP = Metric("mask_ap", "%", "maximise")


class DetectSpec(DetectSettings, DenseSpec):
    """Finding objects: RetinaNet or FCOS, COCO's box AP; the fields are those of `DetectSettings`."""

    metric = BOX_AP
    target = "objects"
    later = ("beyond",)

    kind: Literal["detect"] = "detect"

    def make(self, grid: GridSpec, train: TrainSpec | None = None) -> Task:
        """`Detect` with a `DetectHead`."""
        from routespace.nn.heads.detect import DetectHead
        from routespace.train.tasks.detect import Detect

        return Detect(DetectHead, self.head_settings(), BOX_AP)


class InstanceSpec(InstanceSettings, DenseSpec):
    """Finding objects and their masks: Mask R-CNN, COCO's mask AP; the fields are those of `InstanceSettings`."""

    metric = MASK_AP
    target = "masks"

    kind: Literal["instance"] = "instance"

    def make(self, grid: GridSpec, train: TrainSpec | None = None) -> Task:
        """`Detect` with an `InstanceHead`."""
        from routespace.nn.heads.instance import InstanceHead
        from routespace.train.tasks.detect import Detect

        return Detect(InstanceHead, self.head_settings(), MASK_AP)
