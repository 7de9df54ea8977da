"""What a loader gives for a batch, looked at before a task uses it: images and their targets.

images, labels = pair(batch)
check_labels(labels, len(images), classes)

Loaders of one's own give whatever they give. What is on the CPU is looked into; a device is not waited for.

Shape legend: B images · C channels · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from routespace.errors import DataError

SHOWN = "images (B, C, H, W) and their targets, as a pair"


def pair(batch: Any) -> tuple[Tensor, Any]:
    """The images (B, C, H, W) and the targets of a batch; raises DataError for what is no pair of them."""
    if not isinstance(batch, Sequence) or isinstance(batch, str) or len(batch) != 2:
        given = f"{len(batch)} parts" if isinstance(batch, Sequence) else f"a {type(batch).__name__}"
        raise DataError(f"data: a batch of {given} was given; give {SHOWN}")
    images, targets = batch
    if not isinstance(images, Tensor):
        raise DataError(
            f"data: a {type(images).__name__} was given for a batch's images; give a tensor (B, C, H, W)"
        )
    return images, targets


def whole_labels(labels: Any, images: int, classes: int) -> Tensor:
    """(B,) labels as int64; raises DataError for others than one class from 0 for each image.

    Args:
        labels: of a batch.
        images: B.
        classes: that the network tells apart.
    """
    if not isinstance(labels, Tensor):
        raise DataError(f"labels: a {type(labels).__name__} was given; give a tensor (B,) of whole numbers")
    if labels.shape != (images,) or not is_whole(labels):
        raise DataError(f"labels: {_told(labels)} for {images} images; give whole numbers of shape ({images},)")
    check_range(labels, classes)
    return labels.long()


def check_pixels(targets: Any, images: int, classes: int, ignored: int) -> None:
    """Raise DataError for maps of classes that are none: a tensor (B, H, W), or a list with (H, W) for each image.

    Args:
        targets: of a batch.
        images: B.
        classes: that the network tells apart.
        ignored: what marks pixels without a class.
    """
    maps = [targets] if isinstance(targets, Tensor) else targets
    several = isinstance(maps, Sequence) and len(targets) == images
    if not several or not all(_is_map(one, targets) for one in maps):
        raise DataError(
            f"labels: {_told(targets)} for {images} images; give whole numbers of shape ({images}, H, W), or a "
            f"list of tensors (H, W)"
        )
    for one in maps:
        check_range(one, classes, ignored=ignored)


def check_objects(targets: Any, images: int) -> None:
    """Raise DataError unless each image has a mapping with boxes (N, 4) and labels (N,)."""
    if not isinstance(targets, Sequence) or len(targets) != images:
        raise DataError(
            f"objects: {_told(targets)} for {images} images; give a list with a mapping for each image"
        )
    for place, one in enumerate(targets):
        missing = [name for name in ("boxes", "labels") if not isinstance(one, Mapping) or name not in one]
        if missing:
            raise DataError(
                f"objects.{place}.{missing[0]}: missing; give boxes (N, 4) and labels (N,) of each image"
            )


def check_range(labels: Tensor, classes: int, *, ignored: int | None = None) -> None:
    """Raise DataError for labels of no class, where they are on the CPU."""
    if labels.device.type != "cpu" or not labels.numel():
        return
    known = labels if ignored is None else labels[labels != ignored]
    if not known.numel():
        return
    least, most = (int(end) for end in torch.aminmax(known))
    if least < 0 or most >= classes:
        wrong = least if least < 0 else most
        raise DataError(f"labels: {wrong} is no class of this network; its {classes} are 0 to {classes - 1}")


def is_whole(labels: Tensor) -> bool:
    """Whether a tensor is of whole numbers; True and False are none."""
    return not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)


def _is_map(one: Any, targets: Any) -> bool:
    return isinstance(one, Tensor) and is_whole(one) and one.ndim == (3 if one is targets else 2)


def _told(targets: Any) -> str:
    if isinstance(targets, Tensor):
        return f"{targets.dtype} of shape {tuple(targets.shape)}"
    return f"{len(targets)}" if isinstance(targets, Sequence) else f"a {type(targets).__name__}"
