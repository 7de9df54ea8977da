"""The PVTv2 block: two branches, which `pvt_v2_layers` has, and three ways to run them.

What routing means for a block is said in `packing/keep.py`. With every token kept it is timm's block exactly.

Shape legend: B images · H, W map sides · N = H·W tokens · n kept tokens of the batch · C channels · R hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from routespace.grid.spec import GridSpec
from routespace.nn.drawing import truncated_normal_
from routespace.nn.families.base import Block, drop_paths
from routespace.nn.families.compiled import compiled, use_compiled
from routespace.nn.families.packing_costs import PACKING_COSTS, PackingCosts
from routespace.nn.families.parts import in_parts
from routespace.nn.families.pvt_v2_fused import may_fuse, run_fused
from routespace.nn.families.pvt_v2_layers import Attention, Mlp
from routespace.nn.kernels.depthwise import taps_of
from routespace.nn.kernels.linear import convolutions_go_on, is_unheard
from routespace.nn.kernels.norm import LayerNorm, add_norm
from routespace.nn.packing.keep import KeptTokens, PackTables
from routespace.nn.packing.rows import put, spread_rows, take

NORM_EPS = 1e-6  # timm: 1e-6 around blocks and stages, torch's 1e-5 inside attention and patch embeddings


# Measured on blocks of b2 in inference, a batch of 1 and of 8, on an Intel Xeon, where oneDNN's convolution goes
# on to GELU: packing breaks even at 0.65 to 0.87 of the tokens. Narrow blocks (8 and 64 maps of 4×4 to 32×32
# tokens, 8 to 96 channels) did so at 0.7.
BESIDE_CHEAP_MAPS = PackingCosts(channels=210, calls=13_000, moves=0.38)


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
        self.drop_path = drop_path
        self.apply(init_weights)

    @property
    def packing_costs(self) -> PackingCosts:
        """See Block: packing pays later where whole maps are cheap."""
        return BESIDE_CHEAP_MAPS if convolutions_go_on() else PACKING_COSTS

    def whole(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """(B, N, C) → (B, N, C), every token."""
        # On a CPU the compiler turns the maps around for a depth-wise convolution's backward pass: a training step
        # of everything is a third faster uncompiled.
        if use_compiled(self) and not (torch.is_grad_enabled() and x.device.type == "cpu"):
            return compiled(whole_step, hw)(self, x, self._drops(x))
        return dense_step(self, x, hw, self._drops(x))

    def masked(self, x: Tensor, hw: tuple[int, int], keep: KeptTokens) -> Tensor:
        """(B, N, C) → (B, N, C); computes everything, and takes x again where the mask is 0."""
        drops = self._drops(x)
        x, h = add_norm(self.norm1, x)
        y = in_branches(
            self,
            x,
            h,
            drops,
            lambda h, **onto: self.attn(h, keep.see(h), hw, **onto),
            lambda h, **onto: self.mlp(h, hw, keep.mask, **onto),
        )
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

    def adds_in_products(self, x: Tensor, drops: Drops) -> bool:
        """Whether x may be handed to the branches to be added to: in inference on a CPU, where nobody listens."""
        if not in_parts(x) or drops != (None, None):
            return False
        plain = type(self.attn) is Attention and type(self.mlp) is Mlp
        return plain and is_unheard(self.attn) and is_unheard(self.mlp)

    def _drops(self, x: Tensor) -> Drops:
        return drop_paths(x, self.drop_path, self.training), drop_paths(x, self.drop_path, self.training)


Drops = tuple[Tensor | None, Tensor | None]
Branch = Callable[..., Tensor]


def _dropped(branch: Tensor, drop: Tensor | None) -> Tensor:
    return branch if drop is None else branch * drop


# The three ways to run a block are functions of the block, so that one compiled function serves every block of
# a width.


def dense_step(block: PvtBlock, x: Tensor, hw: tuple[int, int], drops: Drops, *, in_step: bool = False) -> Tensor:
    """(B, N, C) → (B, N, C), every token; `drops` are (B, 1, 1) factors or None."""
    x, h = add_norm(block.norm1, x)
    return in_branches(
        block,
        x,
        h,
        drops,
        lambda h, **onto: block.attn(h, h, hw, **onto),
        lambda h, **onto: block.mlp(h, hw, in_step=in_step, **onto),
    )


def whole_step(block: PvtBlock, x: Tensor, hw: tuple[int, int], drops: Drops) -> Tensor:
    """As `dense_step`: to be compiled."""
    return dense_step(block, x, hw, drops, in_step=True)


def packed_rows(block: PvtBlock, x: Tensor, hw: tuple[int, int], keep: KeptTokens, drops: Drops) -> Tensor:
    """(B, N, C) → (n, C), the new values of the kept tokens; `drops` are (n, 1) factors or None."""
    rows, asking, seen = _queries(block, x, keep)
    return in_branches(
        block,
        rows,
        asking,
        drops,
        lambda h, **onto: block.attn.packed(h, seen, hw, keep, **onto),
        lambda h, **onto: block.mlp.packed(h, hw, keep, **onto),
    )


def in_branches(block: PvtBlock, x: Tensor, h: Tensor, drops: Drops, attend: Branch, feed: Branch) -> Tensor:
    """x + attend(h), and then that + feed(its norm): (…, C) → (…, C).

    Where the block allows it, a branch is told what it is added to (`onto`).
    """
    if block.adds_in_products(x, drops):
        x = attend(h, onto=x)
        return feed(block.norm2(x), onto=x)
    x, h = add_norm(block.norm2, x, _dropped(attend(h), drops[0]))
    return x + _dropped(feed(h), drops[1])


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
        truncated_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
