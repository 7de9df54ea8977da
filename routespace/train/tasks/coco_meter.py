"""COCO's average precision of boxes and masks over a pass, by torchmetrics and faster-coco-eval.

Results are told in pixels of the original pictures, whose objects' areas the small, medium and large ones are told
apart by. Masks are those of the original picture: it brings them along where it was fed smaller, and from those of
one that was fed as it is or enlarged the nearest pixel gives them back. Crowds are honoured as COCO does.

Each process keeps what it saw; at the end all of them have everything and compute the same, whatever share of the
images each one had. Images count in the order of their numbers, so that equal scores rank as in one process.

Shape legend: N objects · H, W pixels of an original picture · h, w of the image that was fed.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from routespace.nn.heads.detector import Detected, Found, Size, fed_size
from routespace.train.data.own_masks import unpacked_masks
from routespace.train.tasks.base import Metric
from routespace.train.tasks.by_class import ByClass

# COCO's own numbers: torchmetrics has them rounded to float32, and misses recalls that are just reached.
IOUS: list[float] = np.linspace(0.5, 0.95, 10).tolist()
RECALLS: list[float] = np.linspace(0.0, 1.0, 101).tolist()
PARTS = {"map": "", "map_50": "50", "map_75": "75", "map_small": "_s", "map_medium": "_m", "map_large": "_l"}
IOU_50, IOU_75 = 0, 5  # places among IOUS
ALL_SIZES, MOST_FOUND = 0, -1  # among areas, and among numbers of detections: as COCO's AP has them
KINDS = {"bbox": "box_ap", "segm": "mask_ap"}


class CocoMeter:
    """AP and loss over a pass.

    Args:
        metric: the one that matters, `box_ap` or `mask_ap`; masks are only looked at for the latter.
        classes: of objects.
    """

    def __init__(self, metric: Metric, classes: int) -> None:
        self.metric, self.classes = metric, classes
        self.kinds: tuple[Literal["bbox", "segm"], ...] = (
            ("bbox", "segm") if metric.name == "mask_ap" else ("bbox",)
        )
        self._precision = self._fresh()
        self._numbers: list[int] = []  # of the images, in the order in which they came
        self._loss = 0.0
        self._told: Mapping[str, Any] | None = None  # torchmetrics' answer about all images, once it was asked

    def _fresh(self) -> MeanAveragePrecision:
        made = MeanAveragePrecision(
            iou_type=self.kinds,
            iou_thresholds=IOUS,
            rec_thresholds=RECALLS,
            backend="faster_coco_eval",
            sync_on_compute=False,
            compute_with_cache=False,
            extended_summary=True,  # precision of each class, which costs nothing more
        )
        made.warn_on_many_detections = False
        return made

    def update(self, outputs: Detected, targets: Sequence[Mapping[str, Tensor]]) -> None:
        """Add a batch."""
        fed = [fed_size(target) for target in targets]
        sizes = [_original(target) for target in targets]
        found = outputs.detections(fed, sizes)
        wanted = [self._wanted(*one) for one in zip(targets, fed, sizes, strict=True)]
        self._precision.update([_on_cpu(one) for one in found], wanted)
        self._told = None
        self._numbers += [int(target["image_id"]) for target in targets]
        self._loss += float(outputs.image_losses(targets).double().sum())

    def _wanted(self, target: Mapping[str, Tensor], fed: Size, size: Size) -> Found:
        """The objects of an image, in pixels of the original picture."""
        factors = target["boxes"].new_tensor([size[1] / fed[1], size[0] / fed[0]] * 2)
        wanted = {
            "boxes": target["boxes"] * factors,
            "labels": target["labels"],
            "iscrowd": target["crowd"].long(),
            "area": target["area"],
        }
        if "segm" in self.kinds:
            own = target.get("own_masks")
            wanted["masks"] = masks_at(target["masks"], size) if own is None else unpacked_masks(own, size)
        return _on_cpu(wanted)

    def compute(self) -> dict[str, float]:
        """`box_ap`, `box_ap50`, `box_ap75`, `box_ap_s`, `box_ap_m`, `box_ap_l` (0…1), those of masks and `loss`.

        Those of sizes that no object has are left out, and all of them where there is no object.
        """
        seen = self._gathered()
        self._told = told = self._ask(seen)
        numbers = sum(len(part["numbers"]) for part in seen)
        return self._named(told) | {"loss": sum(part["loss"] for part in seen) / numbers}

    def by_class(self) -> ByClass:
        """`objects` of each class, crowds left out, and AP of those that there are (`box_ap`, `box_ap50`, …)."""
        told = self._ask(self._gathered()) if self._told is None else self._told
        rows: list[dict[str, float]] = [{} for _ in range(self.classes)]
        for label, count in told["objects"].items():
            rows[label]["objects"] = count
        for kind in self.kinds:
            precision = told.get(f"{kind}_precision" if len(self.kinds) > 1 else "precision")
            if precision is None:  # no image had an object
                continue
            for place, label in enumerate(told["classes"].reshape(-1).tolist()):
                # (IoUs, recalls); -1 where it has no objects
                of_class = precision[:, :, place, ALL_SIZES, MOST_FOUND]
                if (of_class > -1).any():
                    parts = (("", of_class), ("50", of_class[IOU_50]), ("75", of_class[IOU_75]))
                    rows[label] |= {KINDS[kind] + name: float(part.mean()) for name, part in parts}
        return ByClass(tuple(rows))

    def _ask(self, seen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """torchmetrics' numbers, and `objects` (class → how many), of what all processes saw."""
        precision = self._fresh()
        numbers = [number for part in seen for number in part["numbers"]]
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        for name in self._precision.metric_state:
            merged = [one for part in seen for one in part["state"][name]]
            setattr(precision, name, [merged[place] for place in order] if merged else [])
        with warnings.catch_warnings():  # what it was given it was given as a whole
            warnings.filterwarnings("ignore", message=".*compute.*before the .*update")
            told: dict[str, Any] = precision.compute()
        pairs = zip(precision.groundtruth_labels, precision.groundtruth_crowds, strict=True)
        return told | {
            "objects": Counter(label for labels, crowd in pairs for label in labels[crowd == 0].tolist())
        }

    def _named(self, told: Mapping[str, Tensor]) -> dict[str, float]:
        """torchmetrics' numbers by our names, without those of nothing."""
        found = {}
        for kind in self.kinds:
            prefix = f"{kind}_" if len(self.kinds) > 1 else ""
            for part, name in PARTS.items():
                value = float(told[prefix + part])
                if value >= 0:  # -1 where there is nothing to find
                    found[KINDS[kind] + name] = value
        return found

    def _gathered(self) -> list[dict[str, Any]]:
        """What each process saw."""
        mine = {"numbers": self._numbers, "state": self._precision.metric_state, "loss": self._loss}
        if not (dist.is_available() and dist.is_initialized()):
            return [mine]
        seen: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(seen, mine)
        return seen


def masks_at(masks: Tensor, size: Size) -> Tensor:
    """(N, h, w) bool at another size (H, W), by the nearest pixel."""
    height, width = masks.shape[1:]
    if (height, width) == size:
        return masks
    rows, columns = (
        ((torch.arange(wanted, device=masks.device) + 0.5) * (given / wanted)).long()
        for given, wanted in ((height, size[0]), (width, size[1]))
    )
    return masks[:, rows][:, :, columns]


def _original(target: Mapping[str, Tensor]) -> Size:
    height, width = target["size"].tolist()
    return int(height), int(width)


def _on_cpu(tensors: Mapping[str, Tensor]) -> Found:
    return {name: tensor.cpu() for name, tensor in tensors.items()}
