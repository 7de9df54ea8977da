"""PVTv2 blocks (arXiv 2106.13797), routable, with the state-dict keys of timm's `pvt_v2_*`.

Semantics under routing: kept tokens are the queries; keys and values come from the visible tokens, zero where
invisible; in the feed-forward layer a skipped neighbour counts as zero in the depth-wise convolution; skipped
tokens pass unchanged. With every token kept a block is timm's block exactly.

Shape legend: B images · H, W map sides · N = H·W tokens · M keys · C channels · R hidden · h heads · d = C/h.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routespace.grid.pvt_v2 import DEPTHWISE_KERNEL, EMBED_KERNEL, STEM_KERNEL
from routespace.grid.spec import GridSpec
from routespace.nn import stage
from routespace.nn.compiled import compiled, use_compiled
from routespace.nn.depthwise import (
    Expansion,
    Layout,
    expand,
    gather_depthwise,
    has_triton,
    scatter_depthwise,
    taps_of,
)
from routespace.nn.packing import Keep, PackTables, as_map, as_tokens
from routespace.nn.ragged import ragged_attention
from routespace.nn.rows import put, spread_rows, take
from routespace.nn.stage import Block, StateDict, TimmWeights, TokenEmbed, drop_paths, prefixed

_TIMM_STAGE = re.compile(r"stages\.(\d+)\.(.+)")
CACHED_BYTES = 8 << 20  # hidden maps computed at a time on a CPU: a share of its last-level cache
NORM_EPS = 1e-6  # timm: 1e-6 around blocks and stages, torch's 1e-5 inside attention and patch embeddings


class Attention(nn.Module):
    """Multi-head attention with spatially reduced keys and values."""

    def __init__(self, width: int, heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.sr = nn.Conv2d(width, width, sr_ratio, sr_ratio) if sr_ratio > 1 else None
        self.norm = nn.LayerNorm(width) if sr_ratio > 1 else None

    def keys_values(self, x: Tensor, hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B, N, C) → keys and values, each (B, h, M, d)."""
        if self.sr is not None and self.norm is not None:
            x = self.norm(as_tokens(self.sr(as_map(x, hw))))
        b, m, c = x.shape
        keys, values = self.kv(x).view(b, m, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return keys, values

    def forward(self, x: Tensor, seen: Tensor, hw: tuple[int, int]) -> Tensor:
        """Queries from x (B, Q, C), keys and values from `seen` (B, N, C) → (B, Q, C)."""
        b, q, c = x.shape
        queries = self.q(x).view(b, q, self.heads, c // self.heads).transpose(1, 2)
        keys, values = self.keys_values(seen, hw)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return self.proj(mixed.transpose(1, 2).reshape(b, q, c))

    def packed(self, rows: Tensor, seen: Tensor, hw: tuple[int, int], keep: Keep | PackTables) -> Tensor:
        """Packed queries from rows (n, C), keys and values from `seen` (B, N, C) → (n, C)."""
        queries = self.q(rows).view(rows.shape[0], self.heads, rows.shape[1] // self.heads)
        return self.proj(ragged_attention(queries, *self.keys_values(seen, hw), keep))


class Mlp(nn.Module):
    """Linear, 3×3 depth-wise convolution, GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, DEPTHWISE_KERNEL, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, hw: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        """(B, N, C) → (B, N, C); `mask` (B, N, 1) zeroes the skipped neighbours of the convolution."""
        hidden = self.fc1(x)
        if mask is not None:
            hidden = hidden * mask.to(hidden.dtype)
        return self.fc2(F.gelu(as_tokens(self.dwconv(as_map(hidden, hw)))))

    def packed(self, rows: Tensor, hw: tuple[int, int], keep: Keep) -> Tensor:
        """(n, C) → (n, C): a few images at a time, so that their hidden maps stay in the processor's cache."""
        weights = self._expansion()
        if torch.compiler.is_exporting():
            layout = Layout(keep.rows, keep.rows, (keep.kept.shape[0], *hw))
            hidden = scatter_depthwise(self.fc1(rows), weights.kernel, weights.offset, layout)
            return self.fc2(F.gelu(hidden))
        if rows.is_cuda and has_triton():
            from routespace.nn.depthwise_triton import gather_gelu

            taps = taps_of(weights.kernel)
            return self.fc2(gather_gelu(self.fc1(rows), taps, weights.offset, keep.neighbours))
        map_bytes = hw[0] * hw[1] * self.fc1.out_features * rows.element_size()
        images = keep.kept.shape[0] if rows.is_cuda else max(1, CACHED_BYTES // map_bytes)
        parts = []
        for chunk in keep.chunks(images):
            layout = Layout(chunk.rows, chunk.order, (chunk.images, *hw))
            parts.append(self.fc2(expand(rows[chunk.part], weights, layout)))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _expansion(self) -> Expansion:
        assert self.dwconv.bias is not None
        return Expansion(self.fc1.weight, self.fc1.bias, self.dwconv.weight, self.dwconv.bias)

    def fused(self, rows: Tensor, neighbours: Tensor, taps: Tensor) -> Tensor:
        """(n, C) → (n, C), by gathering neighbours; call it inside a compiled function."""
        assert self.dwconv.bias is not None
        hidden = gather_depthwise(self.fc1(rows), taps, self.dwconv.bias, neighbours)
        return self.fc2(F.gelu(hidden))


class PvtBlock(Block):
    """x + attention(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, spec: GridSpec, rate: int, drop_path: float = 0.0) -> None:
        super().__init__()
        i, width = spec.index(rate), spec.width(rate)
        assert spec.shape.sr_ratios is not None
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, spec.shape.heads[i], spec.shape.sr_ratios[i])
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, int(width * spec.shape.mlp_ratios[i]))
        self.drop_path = drop_path

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """(B, N, C) → (B, N, C), every token."""
        step = compiled(dense_step) if use_compiled(self) else dense_step
        return step(self, x, hw, self._drops(x))

    def masked(self, x: Tensor, hw: tuple[int, int], keep: Keep) -> Tensor:
        """(B, N, C) → (B, N, C) by multiplying with the mask; computes everything."""
        h = self.norm1(x)
        mask = keep.mask.to(x.dtype)
        first, second = self._drops(x)
        x = _add(x, self.attn(h, keep.see(h), hw) * mask, first)
        return _add(x, self.mlp(self.norm2(x), hw, mask) * mask, second)

    def packed(self, x: Tensor, hw: tuple[int, int], keep: Keep) -> Tensor:
        """(B, N, C) → (B, N, C), computing the kept tokens alone. Without autograd x itself is written to."""
        first, second = (
            None if drop is None else drop.flatten(1).index_select(0, keep.images) for drop in self._drops(x)
        )
        if use_compiled(self) and keep.longest > 1:
            rows = compiled(fused_rows)(self, x, hw, keep.tables, taps_of(self.mlp.dwconv.weight), (first, second))
        else:
            rows = packed_rows(self, x, hw, keep, (first, second))
        return put(x.flatten(0, 1), keep.rows, rows).view_as(x)

    def _drops(self, x: Tensor) -> Drops:
        return drop_paths(x, self.drop_path, self.training), drop_paths(x, self.drop_path, self.training)


Drops = tuple[Tensor | None, Tensor | None]


def _add(x: Tensor, branch: Tensor, drop: Tensor | None) -> Tensor:
    return x + branch if drop is None else x + branch * drop


# The three ways to run a block are functions of the block, so that one compiled function serves every block of
# a width.


def dense_step(block: PvtBlock, x: Tensor, hw: tuple[int, int], drops: Drops) -> Tensor:
    """(B, N, C) → (B, N, C), every token; `drops` are (B, 1, 1) factors or None."""
    h = block.norm1(x)
    x = _add(x, block.attn(h, h, hw), drops[0])
    return _add(x, block.mlp(block.norm2(x), hw), drops[1])


def packed_rows(block: PvtBlock, x: Tensor, hw: tuple[int, int], keep: Keep, drops: Drops) -> Tensor:
    """(B, N, C) → (n, C), the new values of the kept tokens; `drops` are (n, 1) factors or None."""
    rows, asking, seen = _queries(block, x, keep)
    rows = _add(rows, block.attn.packed(asking, seen, hw, keep), drops[0])
    return _add(rows, block.mlp.packed(block.norm2(rows), hw, keep), drops[1])


def fused_rows(
    block: PvtBlock, x: Tensor, hw: tuple[int, int], tables: PackTables, taps: Tensor, drops: Drops
) -> Tensor:
    """As `packed_rows`, of nothing but tensors and gathers: to be compiled; `taps` are the block's, (9, R)."""
    rows, asking, seen = _queries(block, x, tables)
    rows = _add(rows, block.attn.packed(asking, seen, hw, tables), drops[0])
    return _add(rows, block.mlp.fused(block.norm2(rows), tables.neighbours, taps), drops[1])


def _queries(block: PvtBlock, x: Tensor, keep: Keep | PackTables) -> tuple[Tensor, Tensor, Tensor]:
    """Kept rows (n, C), what they ask with (n, C), and the map that keys and values come from (B, N, C)."""
    flat = x.flatten(0, 1)
    rows = take(flat, keep.rows)
    if keep.sees_kept:  # nobody looks at skipped tokens, so they are not even normalised
        asking = block.norm1(rows)
        return rows, asking, spread_rows(asking, keep.rows, flat.shape[0]).view_as(x)
    h = block.norm1(x)
    return rows, take(h.flatten(0, 1), keep.rows), keep.see(h)


class Stage(stage.Stage):
    """A transformer edge of PVTv2 blocks."""

    def __init__(self, spec: GridSpec, rate: int, depth: int, drop_path: float = 0.0, *, first: int = 0) -> None:
        super().__init__([PvtBlock(spec, rate, drop_path) for _ in range(depth)])
        self.apply(init_weights)


class Stem(nn.Module):
    """7×7 convolution of stride 4, LayerNorm."""

    def __init__(self, spec: GridSpec) -> None:
        super().__init__()
        width = spec.width(spec.stem_down)
        self.proj = nn.Conv2d(spec.in_channels, width, STEM_KERNEL, spec.stem_down, STEM_KERNEL // 2)
        self.norm = nn.LayerNorm(width)
        self.apply(init_weights)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) pixels → (B, N, C)."""
        return self.norm(as_tokens(self.proj(images)))


class PatchEmbed(TokenEmbed):
    """LayerNorm of the row that is left, 3×3 convolution of stride 2, LayerNorm."""

    def __init__(self, spec: GridSpec, rate: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(spec.width(rate), eps=NORM_EPS)
        self.proj = nn.Conv2d(spec.width(rate), spec.width(2 * rate), EMBED_KERNEL, 2, EMBED_KERNEL // 2)
        self.norm = nn.LayerNorm(spec.width(2 * rate))
        self.apply(init_weights)

    def forward(self, x: Tensor, hw: tuple[int, int], visible: Tensor | None = None) -> Tensor:
        """(B, N, C) → (B, N', C'); `visible` (B, N, 1) zeroes the tokens that are not there."""
        h = self.norm_in(x)
        if visible is not None:
            h = h * visible.to(h.dtype)
        return self.norm(as_tokens(self.proj(as_map(h, hw))))

    def packed(self, x: Tensor, hw: tuple[int, int], kept: Tensor, visible: Tensor | None) -> Tensor:
        """(B, N, C) → (n, C'): the patches under the kept coarse tokens as rows, times the kernel as a matrix."""
        h = self.norm_in(x)
        if visible is not None:
            h = h * visible.to(h.dtype)
        index, inside = patch_index(kept, hw)
        patches = h.flatten(0, 1).index_select(0, index.flatten()).view(*index.shape, -1)
        patches = (patches * inside.unsqueeze(-1).to(h.dtype)).flatten(1)
        kernel = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        return self.norm(F.linear(patches, kernel, self.proj.bias))


def patch_index(kept: Tensor, hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where the 3×3 patches of stride 2 under the kept coarse tokens read the fine map.

    Args:
        kept: (B, N') bool, on the coarse map.
        hw: height and width of the fine map.

    Returns:
        (n, 9) positions in the flat (B·N) fine batch, and (n, 9) bool: inside the map (else position 0).
    """
    (h, w), coarse_w = hw, -(-hw[1] // 2)
    image, token = kept.nonzero().unbind(1)
    steps = torch.arange(EMBED_KERNEL, device=kept.device) - EMBED_KERNEL // 2
    y = (token // coarse_w * 2)[:, None, None] + steps[:, None]
    x = (token % coarse_w * 2)[:, None, None] + steps[None, :]
    inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
    index = torch.where(inside, (image[:, None, None] * h + y) * w + x, 0)
    return index.flatten(1), inside.flatten(1)


class Output(nn.Module):
    """The LayerNorm that ends a stage, where a row is read by the heads."""

    def __init__(self, spec: GridSpec, rate: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.width(rate), eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        return self.norm(x)


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


def from_timm(state: Mapping[str, Tensor]) -> TimmWeights:
    """timm's `pvt_v2_*` state dict, sorted by the part of a grid that each tensor belongs to."""
    blocks: dict[int, dict[int, StateDict]] = {}
    embeds: dict[int, StateDict] = {}
    outputs: dict[int, StateDict] = {}
    for key, tensor in state.items():
        match = _TIMM_STAGE.fullmatch(key)
        if match is None:
            continue
        i, rest = int(match[1]), match[2]
        part, _, tail = rest.partition(".")
        if part == "blocks":
            number, _, name = tail.partition(".")
            blocks.setdefault(i, {}).setdefault(int(number), {})[name] = tensor
        elif part == "downsample":
            embeds.setdefault(i - 1, {})[tail] = tensor
        elif part == "norm":
            outputs.setdefault(i, {})[f"norm.{tail}"] = tensor
            embeds.setdefault(i, {})[f"norm_in.{tail}"] = tensor
    embeds.pop(max(blocks), None)  # nothing leaves the last stage
    return TimmWeights(
        stem=prefixed(state, "patch_embed."),
        blocks=[[found[k] for k in sorted(found)] for _, found in sorted(blocks.items())],
        embeds=[embeds[i] for i in sorted(embeds)],
        outputs=[outputs[i] for i in sorted(outputs)],
        head=prefixed(state, "head."),
    )
