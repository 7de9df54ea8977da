"""What is known of a composed scene: boxes, classes and masks. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Objects:
    """The N objects of one scene that can be seen, in the order they were painted.

    Attributes:
        boxes: (N, 4) float32, x1 y1 x2 y2 in pixels, tight around the mask, x2 and y2 exclusive.
        labels: (N,) int64, classes.
        masks: (N, H, W) bool, the pixels that are more than half the object's.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]

    @classmethod
    def of(cls, masks: NDArray[np.bool_], labels: NDArray[np.int64]) -> Objects:
        """Objects with masks (N, H, W), none of them empty, and classes (N,)."""
        boxes = np.empty((len(masks), 4), np.float32)
        for n, mask in enumerate(masks):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            boxes[n] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return cls(boxes, labels, masks)
