"""Which tokens of a map are computed, and the index tables that computing only those needs.

Shape legend: B images · H, W map sides · N = H·W tokens · n kept tokens of the whole batch · C channels.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


class Keep:
    """The tokens that a transformer edge computes, for one batch of maps.

    Args:
        kept: (B, N) bool, the tokens that are queries and pass through the feed-forward layer.
        hw: map height and width in tokens, H·W = N.
        visible: (B, N) bool, the tokens that keys and values are made of; None means all.

    The index tables are made on first use and shared by all blocks of an edge.
    """

    def __init__(self, kept: Tensor, hw: tuple[int, int], visible: Tensor | None = None) -> None:
        self.kept = kept
        self.hw = hw
        self.visible = visible

    @cached_property
    def mask(self) -> Tensor:
        """(B, N, 1) float of `kept`."""
        return self.kept.unsqueeze(-1).float()

    @cached_property
    def visible_mask(self) -> Tensor | None:
        """(B, N, 1) float of `visible`, or None for all."""
        return None if self.visible is None else self.visible.unsqueeze(-1).float()

    @cached_property
    def rows(self) -> Tensor:
        """(n,) positions of the kept tokens in the flat (B·N) batch, increasing."""
        return self.kept.flatten().nonzero().squeeze(1)

    @cached_property
    def counts(self) -> Tensor:
        """(B,) kept tokens of each image."""
        return self.kept.sum(1)

    def see(self, x: Tensor) -> Tensor:
        """(B, N, C) → the same map with invisible tokens at zero."""
        return x if self.visible_mask is None else x * self.visible_mask.to(x.dtype)


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
    index = (rows[:, None] * -(-w // side) + columns[None, :]).flatten()
    return decision.index_select(1, index)


def coarsen(mask: Tensor, hw: tuple[int, int]) -> Tensor:
    """(B, N) or (B, 1) floats on a fine map → the maximum over each 2×2 group, (B, N') or (B, 1)."""
    if mask.shape[1] == 1:
        return mask
    grid = mask.view(mask.shape[0], 1, *hw)
    return torch.nn.functional.max_pool2d(grid, 2, 2, ceil_mode=True).flatten(1)
