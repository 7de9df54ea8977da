"""Detection and instance segmentation: the detector's own losses, and COCO's AP.

Shape legend: B images of one size · C channels · H, W pixels · N boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from routespace.errors import SpecError
from routespace.grid.spec import GridSpec
from routespace.nn.heads.base import Head
from routespace.nn.heads.detector import Detected, Detector, learned
from routespace.train.tasks.base import Metric
from routespace.train.tasks.batches import check_objects, pair
from routespace.train.tasks.coco_meter import CocoMeter

ON_DEVICE = ("boxes", "labels", "crowd", "masks")  # what losses compute with; sizes and numbers are read here
Targets = list[dict[str, Tensor]]


class Detect:
    """Finding objects.

    Args:
        head: the kind of detector.
        settings: what it is built from.
        metric: what it is judged by, `box_ap` or `mask_ap`.
    """

    def __init__(self, head: type[Detector], settings: Mapping[str, Any], metric: Metric) -> None:
        self.name, self.metric = head.kind, metric
        self._head, self._settings = head, settings

    def head(self, spec: GridSpec) -> Head:
        """A detector with fresh weights."""
        return self._head.build(spec, self._settings)

    def prepare(
        self, batch: tuple[Tensor, Sequence[Mapping[str, Tensor]]], device: torch.device, *, training: bool
    ) -> tuple[Tensor, Targets]:
        """Images (B, C, H, W) and what is known of their objects → the same on the device.

        While training without the objects that teach nothing: which they are is known here, and not on a device.
        """
        images, targets = pair(batch)
        check_objects(targets, len(images))
        known = [learned(one) for one in targets] if training else targets
        moved = together_on([{name: one[name] for name in ON_DEVICE if name in one} for one in known], device)
        rest = [{name: part for name, part in one.items() if name not in ON_DEVICE} for one in targets]
        return images.to(device, non_blocking=True), [
            there | here for there, here in zip(moved, rest, strict=True)
        ]

    def loss(self, outputs: Detected, targets: Targets) -> Tensor:
        """0-d sum of the detector's losses."""
        return torch.stack(list(outputs.losses(targets).values())).sum()

    def soft_loss(self, outputs: Detected, taught: Any, temperature: float) -> Tensor:
        """There is none: raises SpecError."""
        raise SpecError(f"train.teacher: task {self.name!r} knows no soft labels; leave it out")

    def score(self, outputs: Detected, targets: Targets) -> Tensor | None:
        """None: a batch says nothing about AP."""
        return None

    def meter(self, device: torch.device) -> CocoMeter:
        """COCO's AP of boxes, and of masks where the metric is about them."""
        return CocoMeter(self.metric, self._settings["classes"])


def together_on(targets: Sequence[Mapping[str, Tensor]], device: torch.device) -> Targets:
    """Targets on a device, by one copy for each of their names: many small ones take longer than the step."""
    if device.type == "cpu":
        return [dict(one) for one in targets]
    moved: dict[str, Sequence[Tensor]] = {}
    for name in targets[0]:
        parts = [one[name] for one in targets]
        whole = torch.cat(parts).to(device, non_blocking=True)
        moved[name] = whole.split([len(part) for part in parts])
    return [{name: parts[place] for name, parts in moved.items()} for place in range(len(targets))]
