"""Token lists as maps and back, and masks between maps of different size.

Shape legend: B images · H, W map sides · N = H·W tokens · C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from routespace.grid.spec import map_size
from routespace.nn.packing.compiler import is_plain_run

SMALL_MASK = 1024  # of a mask: of fewer, one slow operation takes less time than two fast ones


def as_map(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """(B, N, C) → (B, C, H, W) without a copy: the token layout is channels-last already."""
    return x.view(x.shape[0], *hw, x.shape[2]).permute(0, 3, 1, 2)


def as_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, N, C)."""
    return x.flatten(2).transpose(1, 2)


def pool(x: Tensor, hw: tuple[int, int], side: int) -> Tensor:
    """(B, N, C) → (B, ceil(H/side)·ceil(W/side), C), the mean of each side×side square (part squares too)."""
    if side == 1:
        return x
    b, _, c = x.shape
    grid = x.view(b, *hw, c).permute(0, 3, 1, 2)
    pooled = torch.nn.functional.avg_pool2d(grid, side, side, ceil_mode=True, count_include_pad=False)
    return pooled.flatten(2).transpose(1, 2)


def spread(decision: Tensor, hw: tuple[int, int], side: int) -> Tensor:
    """(B, ceil(H/side)·ceil(W/side)) → (B, N): each square's decision at each of its tokens."""
    if side == 1:
        return decision
    h, w = hw
    rows = torch.arange(h, device=decision.device) // side
    columns = torch.arange(w, device=decision.device) // side
    index = (rows[:, None] * map_size(hw, side)[1] + columns[None, :]).flatten()
    return decision.index_select(1, index)


def coarsen(mask: Tensor, hw: tuple[int, int]) -> Tensor:
    """(B, N) or (B, 1) floats on a fine map → the maximum over each 2×2 group, (B, N') or (B, 1)."""
    if mask.shape[1] == 1:
        return mask
    grid = mask.view(mask.shape[0], 1, *hw)
    if mask.is_cpu and not (hw[0] % 2 or hw[1] % 2 or mask.requires_grad or torch.compiler.is_exporting()):
        if is_plain_run(mask) and mask.numel() <= SMALL_MASK:
            return mask.view(-1, hw[0] // 2, 2, hw[1] // 2, 2).amax((2, 4)).flatten(1)
        rows = torch.maximum(grid[:, :, ::2], grid[:, :, 1::2])  # pooling one channel takes five times as long
        return torch.maximum(rows[..., ::2], rows[..., 1::2]).flatten(1)
    return torch.nn.functional.max_pool2d(grid, 2, 2, ceil_mode=True).flatten(1)
