"""Which anchor is whose: torchvision's Matcher for all images at once, without asking the device for numbers.

Shape legend: B images · N objects of an image, at most · M anchors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from routespace.nn.heads.detector import KnownObjects

AT_ONCE = 1 << 24  # overlaps that are looked at together: large pictures with many objects come one by one


class Matched(NamedTuple):
    """Of each anchor: (B, M) whether it is an object's, whether it counts at all, and the object's number."""

    found: Tensor
    counts: Tensor
    place: Tensor


@torch.no_grad()
def matched(matcher: Any, known: KnownObjects, anchors: Tensor) -> Matched:
    """What torchvision's Matcher says of each anchor, for all images; those without objects have none found."""
    count = max(1, AT_ONCE // max(1, known.boxes.shape[1] * len(anchors)))
    parts = [
        _matched(matcher, boxes, there, anchors)
        for boxes, there in zip(known.boxes.split(count), known.there.split(count), strict=True)
    ]
    return parts[0] if len(parts) == 1 else Matched(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _matched(matcher: Any, boxes: Tensor, there: Tensor, anchors: Tensor) -> Matched:
    """Of images whose objects are boxes (B, N, 4), where there (B, N) is true."""
    overlaps = box_iou(boxes.flatten(0, 1), anchors).view(*there.shape, -1)
    overlaps = overlaps.masked_fill(~there[..., None], -1.0)
    most, place = overlaps.max(1)
    found = most >= matcher.high_threshold
    below = most < matcher.low_threshold
    if matcher.allow_low_quality_matches:  # each object has those anchors that nobody fits better
        best = (overlaps == overlaps.amax(2, keepdim=True)) & there[..., None]
        found = found | best.any(1)
    return Matched(found, found | below, place)


@torch.no_grad()
def anchor_labels(matcher: Any, known: KnownObjects, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """What a proposal network learns of (M, 4) anchors: 1, 0 or -1 where nothing, and an object's box each.

    Returns:
        (B, M) and (B, M, 4).
    """
    found, counts, place = matched(matcher, known, anchors)
    return found.float() - (~counts).float(), known.boxes.gather(1, place[..., None].expand(-1, -1, 4))
