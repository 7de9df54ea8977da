"""From what is known of a scene to the target that a task asks for.

Shape legend: N objects · H, W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from routespace.train.data.objects import Objects
from routespace.train.recipe.targets import Target


def target_of(objects: Objects, target: Target, *, image_id: int) -> Any:
    """Objects of a scene as a target; see `recipe/targets.py`.

    Args:
        objects: of the scene; of pixels of several, the one that was painted last has them.
        target: anything but `label`.
        image_id: the scene's number.
    """
    if target == "pixels":
        return pixels_of(objects)
    found: dict[str, Tensor] = {
        "boxes": torch.from_numpy(objects.boxes),
        "labels": torch.from_numpy(objects.labels),
        "crowd": torch.zeros(len(objects.labels), dtype=torch.bool),
        "area": torch.from_numpy(objects.masks.sum((1, 2)).astype(np.float32)),
        "image_id": torch.tensor(image_id),
        "size": torch.tensor(objects.masks.shape[1:]),
        "fed": torch.tensor(objects.masks.shape[1:]),
    }
    if target == "masks":
        found["masks"] = torch.from_numpy(objects.masks)
    return found


def pixels_of(objects: Objects) -> Tensor:
    """int64 (H, W): 0 for the background, 1 + class of the object that is seen there."""
    found = np.zeros(objects.masks.shape[1:], np.int64)
    for mask, label in zip(objects.masks, objects.labels, strict=True):
        found[mask] = 1 + label
    return torch.from_numpy(found)
