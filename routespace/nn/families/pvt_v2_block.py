"""The PVTv2 block: attention with reduced keys, a feed-forward layer with a convolution, and three ways to run.

What routing means for a block is said in `packing/keep.py`. With every token kept it is timm's block exactly.

Shape legend: B images · H, W map sides · N = H·W tokens · n kept tokens of the batch · M keys · C channels ·
R hidden · h heads · d = C/h.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routespace.grid.families.pvt_v2 import DEPTHWISE_KERNEL
from routespace.grid.spec import GridSpec
from routespace.nn.families.base import Block, as_maps_are, drop_paths
from routespace.nn.families.compiled import compiled, use_compiled
from routespace.nn.families.parts import BYTES_AT_ONCE, in_parts
from routespace.nn.families.pvt_v2_fused import may_fuse, run_fused
from routespace.nn.kernels.depthwise import (
    Expansion,
    Layout,
    expand,
    gather_gelu,
    scatter_depthwise,
    taps_of,
)
from routespace.nn.kernels.depthwise_ops import gathered_gelu, map_gelu
from routespace.nn.kernels.linear import adds_bias_apart, apply_linear, is_untouched, linear, padded_linear
from routespace.nn.kernels.norm import LayerNorm, add_norm, norm_of_map
from routespace.nn.packing.keep import KeptTokens, PackTables
from routespace.nn.packing.maps import as_map, as_tokens
from routespace.nn.packing.ragged import NARROW_HEAD, ragged_attention
from routespace.nn.packing.rows import put, spread_rows, take
from routespace.nn.packing.triton_here import runs_triton

LEAST_GROUP = 128  # hidden channels at a time; matrix products of fewer are slower
NORM_EPS = 1e-6  # timm: 1e-6 around blocks and stages, torch's 1e-5 inside attention and patch embeddings


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

    def forward(self, x: Tensor, seen: Tensor, hw: tuple[int, int]) -> Tensor:
        """Queries from x (B, Q, C), keys and values from `seen` (B, N, C) → (B, Q, C)."""
        b, q, c = x.shape
        queries = apply_linear(self.q, x).view(b, q, self.heads, c // self.heads).transpose(1, 2)
        keys, values = self.keys_values(seen, hw)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return apply_linear(self.proj, mixed.transpose(1, 2).reshape(b, q, c))

    def packed(self, rows: Tensor, seen: Tensor, hw: tuple[int, int], keep: KeptTokens | PackTables) -> Tensor:
        """Packed queries from rows (n, C), keys and values from `seen` (B, N, C) → (n, C)."""
        queries = apply_linear(self.q, rows).view(rows.shape[0], self.heads, rows.shape[1] // self.heads)
        return apply_linear(self.proj, ragged_attention(queries, *self.keys_values(seen, hw), keep))


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
        self, x: Tensor, hw: tuple[int, int], mask: Tensor | None = None, *, in_step: bool = False
    ) -> Tensor:
        """(B, N, C) → (B, N, C); `mask` (B, N, 1) zeroes the skipped neighbours of the convolution.

        `in_step` tells that a compiled step calls, which torch 2.11 takes for an export.
        """
        if in_parts(x) and self.is_plain:
            return self._grouped(x, hw, mask)
        hidden = apply_linear(self.fc1, x, bias_apart=False)  # a convolution follows, into which no sum is fused
        if mask is not None:
            hidden = hidden * mask.to(hidden.dtype)
        if runs_triton(hidden) and self.is_plain and (in_step or not torch.compiler.is_exporting()):
            weights = self._expansion()
            return apply_linear(self.fc2, map_gelu(hidden, weights.kernel, weights.offset, hw))
        return apply_linear(self.fc2, F.gelu(as_tokens(self.dwconv(as_map(hidden, hw)))))

    def packed(self, rows: Tensor, hw: tuple[int, int], keep: KeptTokens) -> Tensor:
        """(n, C) → (n, C)."""
        size = keep.kept.shape[0], *hw
        if torch.compiler.is_exporting() or not self.is_plain:
            layout = Layout(keep.rows, keep.rows, size)  # the order is not read here
            hidden = scatter_depthwise(apply_linear(self.fc1, rows), self.dwconv, layout)
            return apply_linear(self.fc2, F.gelu(hidden))
        weights = self._expansion()
        if runs_triton(rows):
            hidden = apply_linear(self.fc1, rows, bias_apart=False)
            activated = gathered_gelu(hidden, taps_of(weights.kernel), weights.offset, keep.neighbours)
            return apply_linear(self.fc2, activated)
        layout = Layout(keep.rows, keep.order, size)
        if in_parts(rows):
            return self._by_groups(lambda part: expand(rows, part, layout), keep.kept.numel())
        return apply_linear(self.fc2, expand(rows, weights, layout))

    def _grouped(self, x: Tensor, hw: tuple[int, int], mask: Tensor | None) -> Tensor:
        """(B, N, C) → (B, N, C), some hidden channels at a time."""

        def hidden(weights: Expansion) -> Tensor:
            tokens = linear(x, weights.weight, weights.bias)
            maps = as_map(tokens if mask is None else tokens.mul_(mask), hw)
            convolved = F.conv2d(maps, weights.kernel, weights.offset, padding=1, groups=tokens.shape[2])
            activated: Tensor = torch.ops.aten.gelu_(as_tokens(convolved))
            return activated

        return self._by_groups(hidden, x.shape[0] * x.shape[1])

    def _by_groups(self, hidden: Callable[[Expansion], Tensor], tokens: int) -> Tensor:
        """The layer's result (…, C), by some hidden channels at a time; their maps are of `tokens` tokens."""
        weights, channels = self._expansion(), self.fc1.out_features
        width = group_width(channels, tokens * weights.weight.element_size())
        if width == channels:
            return linear(hidden(weights), self.fc2.weight, self.fc2.bias)
        total = linear(hidden(weights.part(slice(width))), self.fc2.weight[:, :width], self.fc2.bias)
        for first in range(width, channels, width):
            group = slice(first, first + width)
            total += linear(hidden(weights.part(group)), self.fc2.weight[:, group])
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


class PvtBlock(Block):
    """x + attention(norm1(x)), then x + mlp(norm2(x))."""

    has_compiled_steps = True

    def __init__(self, spec: GridSpec, rate: int, drop_path: float = 0.0, *, index: int = 0) -> None:
        super().__init__()
        i, width = spec.index(rate), spec.width(rate)
        self.norm1 = LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, spec.shape.heads[i], spec.own("sr_ratios", rate))
        self.norm2 = LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, int(width * spec.shape.mlp_ratios[i]))
        self.row_numbers = self.mlp.fc1.out_features
        self.has_narrow_heads = width <= NARROW_HEAD * spec.shape.heads[i]
        self.drop_path = drop_path
        self.apply(init_weights)

    def whole(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """(B, N, C) → (B, N, C), every token."""
        # On a CPU the compiler turns the maps around for a depth-wise convolution's backward pass: a training step
        # of everything is a third faster uncompiled.
        if use_compiled(self) and not (torch.is_grad_enabled() and x.device.type == "cpu"):
            return compiled(whole_step, hw)(self, x, self._drops(x))
        return dense_step(self, x, hw, self._drops(x))

    def masked(self, x: Tensor, hw: tuple[int, int], keep: KeptTokens) -> Tensor:
        """(B, N, C) → (B, N, C); computes everything, and takes x again where the mask is 0."""
        first, second = self._drops(x)
        x, h = add_norm(self.norm1, x)
        y, h = add_norm(self.norm2, x, _dropped(self.attn(h, keep.see(h), hw), first))
        y = y + _dropped(self.mlp(h, hw, keep.mask), second)
        return torch.where(keep.kept.unsqueeze(-1), y, x)

    def packed(self, x: Tensor, hw: tuple[int, int], keep: KeptTokens) -> Tensor:
        """(B, N, C) → (B, N, C), computing the kept tokens alone. Without autograd x itself is written to."""
        drops = self._drops(x)
        # Faster than the compiled step, too: 24.7 against 31.5 ms on an H100 (b2, 512 images, half the tokens).
        if drops[0] is None and drops[1] is None and may_fuse(self, x, keep):
            return run_fused(self, x, hw, keep)
        first, second = (None if drop is None else drop.flatten(1).index_select(0, keep.images) for drop in drops)
        if use_compiled(self) and self.mlp.is_plain and keep.longest > 1:
            taps = taps_of(self.mlp.dwconv.weight)
            rows = compiled(fused_rows, hw)(self, x, keep.tables, taps, (first, second))
        else:
            rows = packed_rows(self, x, hw, keep, (first, second))
        return put(x.flatten(0, 1), keep.rows, rows).view_as(x)

    def _drops(self, x: Tensor) -> Drops:
        return drop_paths(x, self.drop_path, self.training), drop_paths(x, self.drop_path, self.training)


Drops = tuple[Tensor | None, Tensor | None]


def _dropped(branch: Tensor, drop: Tensor | None) -> Tensor:
    return branch if drop is None else branch * drop


# The three ways to run a block are functions of the block, so that one compiled function serves every block of
# a width.


def dense_step(block: PvtBlock, x: Tensor, hw: tuple[int, int], drops: Drops, *, in_step: bool = False) -> Tensor:
    """(B, N, C) → (B, N, C), every token; `drops` are (B, 1, 1) factors or None."""
    x, h = add_norm(block.norm1, x)
    x, h = add_norm(block.norm2, x, _dropped(block.attn(h, h, hw), drops[0]))
    return x + _dropped(block.mlp(h, hw, in_step=in_step), drops[1])


def whole_step(block: PvtBlock, x: Tensor, hw: tuple[int, int], drops: Drops) -> Tensor:
    """As `dense_step`: to be compiled."""
    return dense_step(block, x, hw, drops, in_step=True)


def packed_rows(block: PvtBlock, x: Tensor, hw: tuple[int, int], keep: KeptTokens, drops: Drops) -> Tensor:
    """(B, N, C) → (n, C), the new values of the kept tokens; `drops` are (n, 1) factors or None."""
    rows, asking, seen = _queries(block, x, keep)
    rows, asking = add_norm(block.norm2, rows, _dropped(block.attn.packed(asking, seen, hw, keep), drops[0]))
    return rows + _dropped(block.mlp.packed(asking, hw, keep), drops[1])


def fused_rows(
    block: PvtBlock, x: Tensor, hw: tuple[int, int], tables: PackTables, taps: Tensor, drops: Drops
) -> Tensor:
    """As `packed_rows`, of nothing but tensors and gathers: to be compiled; `taps` are the block's, (9, R)."""
    rows, asking, seen = _queries(block, x, tables)
    rows = rows + _dropped(block.attn.packed(asking, seen, hw, tables), drops[0])
    return rows + _dropped(block.mlp.fused(block.norm2(rows), tables.neighbours, taps), drops[1])


def _queries(block: PvtBlock, x: Tensor, keep: KeptTokens | PackTables) -> tuple[Tensor, Tensor, Tensor]:
    """Kept rows (n, C), what they ask with (n, C), and the map that keys and values come from (B, N, C)."""
    flat = x.flatten(0, 1)
    rows = take(flat, keep.rows)
    if keep.sees_kept:  # nobody looks at skipped tokens, so they are not even normalised
        asking = block.norm1(rows)
        return rows, asking, spread_rows(asking, keep.rows, flat.shape[0]).view_as(x)
    h = block.norm1(x)
    return rows, take(h.flatten(0, 1), keep.rows), keep.see(h)


def init_weights(module: nn.Module) -> None:
    """PVTv2's initialisation: truncated normal .02 for linear layers, fan-out normal for convolutions."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
