"""The two branches of a PVTv2 block: attention with reduced keys, and a feed-forward layer with a convolution.

Shape legend: B images · H, W map sides · N = H·W tokens · n kept tokens of the batch · M keys · C channels ·
R hidden · h heads · d = C/h.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routespace.grid.families.pvt_v2 import DEPTHWISE_KERNEL
from routespace.nn.families.base import as_maps_are
from routespace.nn.families.parts import BYTES_AT_ONCE, in_parts
from routespace.nn.kernels.depthwise import (
    Expansion,
    Layout,
    depthwise_gelu,
    expand,
    gather_gelu,
    scatter_depthwise,
    taps_of,
)
from routespace.nn.kernels.depthwise_ops import gathered_gelu, map_gelu
from routespace.nn.kernels.gelu import gelu
from routespace.nn.kernels.linear import (
    add_product,
    adds_bias_apart,
    apply_linear,
    is_untouched,
    linear,
    padded_linear,
)
from routespace.nn.kernels.norm import LayerNorm, norm_of_map
from routespace.nn.packing.keep import KeptTokens, PackTables
from routespace.nn.packing.maps import as_map, as_tokens
from routespace.nn.packing.ragged import ragged_attention
from routespace.nn.packing.triton_here import runs_triton

LEAST_GROUP = 128  # hidden channels at a time; matrix products of fewer are slower


class Attention(nn.Module):
    """Multi-head attention with spatially reduced keys and values."""

    def __init__(self, width: int, heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.sr = as_maps_are(nn.Conv2d(width, width, sr_ratio, sr_ratio)) if sr_ratio > 1 else None
        self.norm = LayerNorm(width) if sr_ratio > 1 else None

    def keys_values(self, x: Tensor, hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B, N, C) → keys and values, each (B, h, M, d)."""
        if self.sr is not None and self.norm is not None:
            x = norm_of_map(self.norm, self.sr, as_map(x, hw))
        b, m, c = x.shape
        keys, values = apply_linear(self.kv, x).view(b, m, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return keys, values

    def forward(self, x: Tensor, seen: Tensor, hw: tuple[int, int], onto: Tensor | None = None) -> Tensor:
        """Queries from x (B, Q, C), keys and values from `seen` (B, N, C) → (B, Q, C), added to `onto`."""
        b, q, c = x.shape
        queries = apply_linear(self.q, x).view(b, q, self.heads, c // self.heads).transpose(1, 2)
        keys, values = self.keys_values(seen, hw)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return apply_linear(self.proj, mixed.transpose(1, 2).reshape(b, q, c), onto=onto)

    def packed(
        self,
        rows: Tensor,
        seen: Tensor,
        hw: tuple[int, int],
        keep: KeptTokens | PackTables,
        onto: Tensor | None = None,
    ) -> Tensor:
        """Packed queries from rows (n, C), keys and values from `seen` (B, N, C) → (n, C), added to `onto`."""
        queries = apply_linear(self.q, rows).view(rows.shape[0], self.heads, rows.shape[1] // self.heads)
        return apply_linear(self.proj, ragged_attention(queries, *self.keys_values(seen, hw), keep), onto=onto)


class Mlp(nn.Module):
    """Linear, 3×3 depth-wise convolution, GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, DEPTHWISE_KERNEL, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, width)

    @property
    def is_plain(self) -> bool:
        """Whether the layers are as they were made, so that their weights say all that they do."""
        if not all(map(is_untouched, self.children())) or self.fc1.bias is None or self.dwconv.bias is None:
            return False
        conv = self.dwconv
        shape = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.padding_mode, conv.groups
        return shape == ((DEPTHWISE_KERNEL,) * 2, (1, 1), (1, 1), (1, 1), "zeros", self.fc1.out_features)

    def forward(
        self,
        x: Tensor,
        hw: tuple[int, int],
        mask: Tensor | None = None,
        *,
        onto: Tensor | None = None,
        in_step: bool = False,
    ) -> Tensor:
        """(B, N, C) → (B, N, C), added to `onto`; `mask` (B, N, 1) zeroes the convolution's skipped neighbours.

        `in_step` tells that a compiled step calls, which torch 2.11 takes for an export.
        """
        if in_parts(x) and self.is_plain:
            return self._grouped(x, hw, mask, onto)
        hidden = apply_linear(self.fc1, x, bias_apart=False)  # a convolution follows, into which no sum is fused
        if mask is not None:
            hidden = hidden * mask.to(hidden.dtype)
        if runs_triton(hidden) and self.is_plain and (in_step or not torch.compiler.is_exporting()):
            weights = self._expansion()
            return apply_linear(self.fc2, map_gelu(hidden, weights.kernel, weights.offset, hw), onto=onto)
        convolved = as_tokens(self.dwconv(as_map(hidden, hw)))
        return apply_linear(self.fc2, gelu(convolved) if in_step else F.gelu(convolved), onto=onto)

    def packed(self, rows: Tensor, hw: tuple[int, int], keep: KeptTokens, onto: Tensor | None = None) -> Tensor:
        """(n, C) → (n, C), added to `onto`."""
        size = keep.kept.shape[0], *hw
        if torch.compiler.is_exporting() or not self.is_plain:
            layout = Layout(keep.rows, keep.rows, size)  # the order is not read here
            hidden = scatter_depthwise(apply_linear(self.fc1, rows), self.dwconv, layout)
            return apply_linear(self.fc2, F.gelu(hidden), onto=onto)
        weights = self._expansion()
        if runs_triton(rows):
            hidden = apply_linear(self.fc1, rows, bias_apart=False)
            activated = gathered_gelu(hidden, taps_of(weights.kernel), weights.offset, keep.neighbours)
            return apply_linear(self.fc2, activated, onto=onto)
        layout = Layout(keep.rows, keep.order, size)
        if in_parts(rows):
            return self._by_groups(lambda part: expand(rows, part, layout), keep.kept.numel(), onto)
        return apply_linear(self.fc2, expand(rows, weights, layout), onto=onto)

    def _grouped(self, x: Tensor, hw: tuple[int, int], mask: Tensor | None, onto: Tensor | None) -> Tensor:
        """(B, N, C) → (B, N, C), some hidden channels at a time."""

        def hidden(weights: Expansion) -> Tensor:
            tokens = linear(x, weights.weight, weights.bias)
            maps = as_map(tokens if mask is None else tokens.mul_(mask), hw)
            return as_tokens(depthwise_gelu(maps, weights.kernel, weights.offset))

        return self._by_groups(hidden, x.shape[0] * x.shape[1], onto)

    def _by_groups(self, hidden: Callable[[Expansion], Tensor], tokens: int, onto: Tensor | None) -> Tensor:
        """The layer's result (…, C), by some hidden channels at a time; their maps are of `tokens` tokens."""
        weights, channels = self._expansion(), self.fc1.out_features
        width = group_width(channels, tokens * weights.weight.element_size())
        if width == channels:
            return apply_linear(self.fc2, hidden(weights), onto=onto)
        first, *others = (slice(begin, begin + width) for begin in range(0, channels, width))
        started, weight, bias = hidden(weights.part(first)), self.fc2.weight, self.fc2.bias
        if onto is None:
            total = linear(started, weight[:, first], bias)
        else:
            total = add_product(onto + (0 if bias is None else bias), started, weight[:, first])
        for group in others:
            total = add_product(total, hidden(weights.part(group)), weight[:, group])
        return total

    def _expansion(self) -> Expansion:
        assert self.dwconv.bias is not None
        return Expansion(self.fc1.weight, self.fc1.bias, self.dwconv.weight, self.dwconv.bias)

    def fused(self, rows: Tensor, neighbours: Tensor, taps: Tensor) -> Tensor:
        """(n, C) → (n, C), by gathering neighbours; call it inside a compiled function."""
        assert self.dwconv.bias is not None
        if runs_triton(rows):
            hidden = apply_linear(self.fc1, rows)
            return apply_linear(self.fc2, gathered_gelu(hidden, taps, self.dwconv.bias, neighbours))
        if adds_bias_apart(rows):
            # Nobody adds the bias to the rows: every neighbour's share of it stands in the offset, and a skipped
            # one is the row behind them, which takes its share back.
            padded = torch.cat((F.linear(rows, self.fc1.weight), -self.fc1.bias[None]))
            offset = self.dwconv.bias + self.fc1.bias * taps.sum(0)
        else:
            padded, offset = padded_linear(rows, self.fc1.weight, self.fc1.bias), self.dwconv.bias
        return apply_linear(self.fc2, gather_gelu(padded, taps, offset, neighbours))


def group_width(channels: int, channel_bytes: int) -> int:
    """How many hidden channels to compute at a time: evenly divided, at least LEAST_GROUP, in BYTES_AT_ONCE."""
    widths, room = _widths(channels, LEAST_GROUP), BYTES_AT_ONCE * torch.get_num_threads()
    return next((w for w in widths if w * channel_bytes <= room), widths[-1])


@lru_cache(maxsize=64)
def _widths(channels: int, least: int) -> list[int]:
    """The divisors of `channels` that are at least `least`, greatest first; `channels` itself in any case."""
    return [w for w in range(channels, 0, -1) if channels % w == 0 and (w >= least or w == channels)]
