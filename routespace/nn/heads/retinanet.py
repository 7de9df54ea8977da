"""RetinaNet's losses of a batch at once: torchvision's to rounding, in as many kernels for all images as for one.

torchvision goes from image to image and asks the device how many anchors are an object's, several times each. Here
nothing waits for the device: objects are padded to the most that an image has, and what is none is masked.

Shape legend: B images · N objects of an image, at most · M anchors · K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from routespace.nn.heads.detector import KnownObjects
from routespace.nn.heads.matching import matched


def image_losses(
    detector: Any, raw: Sequence[Tensor], anchors: Tensor, targets: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Losses of each image.

    Args:
        detector: torchvision's RetinaNet, for its thresholds and its coding of boxes.
        raw: logits (B, M, K) and box deltas (B, M, 4) in float32.
        anchors: (M, 4) boxes in pixels.
        targets: what is known of each image's objects; crowds and what has no area teach nothing.

    Returns:
        `classification` and `bbox_regression`, (B,) each.
    """
    logits, deltas = raw
    known = KnownObjects.of(targets)
    found, counts, place = matched(detector.proposal_matcher, known, anchors)
    each = found.sum(1).clamp(min=1)

    labels = known.labels.gather(1, place)
    wanted = torch.zeros_like(logits).scatter_(2, labels[..., None], found[..., None].to(logits.dtype))
    focal = sigmoid_focal_loss(logits, wanted, reduction="none").sum(2)

    boxes = known.boxes.gather(1, place[..., None].expand(-1, -1, 4))
    coded = detector.box_coder.encode_single(boxes.reshape(-1, 4), anchors.repeat(len(boxes), 1))
    away = torch.where(found[..., None], coded.view_as(deltas), 0.0)  # no logarithm of a box that is none
    distance = torch.where(found, (deltas - away).abs().sum(2), 0.0)
    return {
        "classification": torch.where(counts, focal, 0.0).sum(1) / each,
        "bbox_regression": distance.sum(1) / each,
    }
