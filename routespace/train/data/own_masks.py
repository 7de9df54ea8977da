"""Masks of pictures that were fed smaller: in their own size, in which they are judged, eight pixels a number.

Shapes: N objects · H, W pixels of the original picture.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def packed_masks(masks: NDArray[np.bool_]) -> Tensor:
    """(N, H, W) → uint8 (N, ceil(H·W / 8))."""
    return torch.from_numpy(np.packbits(masks.reshape(len(masks), prod(masks.shape[1:])), axis=1))


def unpacked_masks(packed: Tensor, size: tuple[int, int]) -> Tensor:
    """What `packed_masks` was given, where (H, W) is `size`."""
    flat = np.unpackbits(packed.cpu().numpy(), axis=1, count=size[0] * size[1])
    return torch.from_numpy(flat.reshape(len(flat), *size).view(np.bool_))
