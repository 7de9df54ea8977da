"""A block family of one's own in one file: plain ViT blocks (Dosovitskiy et al., arXiv 2010.11929).

In Python pass `VIT`; on the command line allow it with `--family-module vit_family:VIT`, with this file's folder
on PYTHONPATH. Files call it `vit`. A block is attention over the whole map and a feed-forward layer, with norms
before each; positions are fixed sines, so any image size works. Block weights have the names of timm's `vit_*`.

Shape legend: B images · N tokens · n kept tokens of the batch · C channels · R hidden · h heads · d = C/h.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routespace.errors import SpecError
from routespace.grid.families.base import EdgeCost, Family, GridNumbers, Shape
from routespace.grid.spec import GridSpec
from routespace.nn.families import base
from routespace.nn.families.base import Block, FamilyModules, drop_paths
from routespace.nn.packing.keep import KeptTokens
from routespace.nn.packing.maps import as_map, as_tokens
from routespace.nn.packing.ragged import ragged_attention
from routespace.nn.packing.rows import put, take

NORM_EPS = 1e-6
FLOAT_BYTES = 4


# What it costs: pure functions of the spec, exact to the last MAC. ---------------------------------------------


class Vit(Family):
    """Plain ViT blocks at every rate: what a grid asks."""

    name = "vit"
    nn_module = __name__  # the torch side stands below, in this file, as MODULES
    sizes = {"ti": Shape((32, 64, 128, 256), (1, 2, 4, 8), (4.0, 4.0, 4.0, 4.0))}
    depths = {"ti": (1, 1, 2, 1)}
    image_size = 64

    def stem_cost(self, spec: GridNumbers) -> EdgeCost:
        """4×4 convolution of stride 4."""
        return patch_cost(spec, spec.in_channels, spec.stem_down, spec.stem_down)

    def patch_embed_cost(self, spec: GridNumbers, rate: int) -> EdgeCost:
        """2×2 convolution of stride 2."""
        return patch_cost(spec, spec.width(rate), 2 * rate, 2)

    def block_cost(self, spec: GridNumbers, rate: int) -> EdgeCost:
        """Keys and values are fixed: they are paid as soon as one token of the image is computed."""
        i, c, (h, w) = spec.index(rate), spec.width(rate), spec.map_size(rate)
        n, r = h * w, int(c * spec.shape.mlp_ratios[i])
        params = 4 * (c * c + c) + (c * r + r) + (r * c + c) + 4 * c
        routed = n * (2 * c * c + 2 * n * c + 2 * c * r)
        moved = n * (10 * c + 2 * r)
        return EdgeCost(params, 2 * n * c * c, routed, FLOAT_BYTES * (params + 3 * n * c), FLOAT_BYTES * moved)

    def output_cost(self, spec: GridNumbers, rate: int) -> EdgeCost:
        """The LayerNorm before the heads."""
        c, (h, w) = spec.width(rate), spec.map_size(rate)
        return EdgeCost(2 * c, 0, 0, FLOAT_BYTES * 2 * c, FLOAT_BYTES * 2 * h * w * c)

    def check(self, spec: GridNumbers) -> None:
        """Say in one line what the blocks below could not be built from."""
        for width, heads in zip(spec.shape.widths, spec.shape.heads, strict=True):
            if width % heads:
                raise SpecError(f"heads: {heads} does not divide width {width}; give a divisor")
            if width % 4:
                raise SpecError(f"widths: {width} is no multiple of 4, which the sine positions need; give one")

    def least_tokens(self, spec: GridNumbers, rate: int) -> int:
        """A map may be of any size."""
        return 1


def patch_cost(spec: GridNumbers, c_in: int, rate: int, side: int) -> EdgeCost:
    """A convolution of `side`×`side` patches into the map at `rate`."""
    c, (h, w) = spec.width(rate), spec.map_size(rate)
    weights = c_in * side * side * c
    moved = h * w * (c_in * side * side + c)
    return EdgeCost(weights + c, 0, h * w * weights, FLOAT_BYTES * (weights + c), FLOAT_BYTES * moved)


VIT = Vit()


# What it computes: the four classes that routespace.nn.families.base asks for. -----------------------------------


class Attention(nn.Module):
    """Multi-head attention over the whole map."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def keys_values(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, C) → keys and values, each (B, h, N, d)."""
        b, n, c = seen.shape
        both = F.linear(seen, self.qkv.weight[c:], self.qkv.bias[c:])
        keys, values = both.view(b, n, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return keys, values

    def queries(self, x: Tensor) -> Tensor:
        """(…, C) → (…, h, d)."""
        c = x.shape[-1]
        return F.linear(x, self.qkv.weight[:c], self.qkv.bias[:c]).view(*x.shape[:-1], self.heads, -1)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Queries from x, keys and values from `seen`, both (B, N, C)."""
        mixed = F.scaled_dot_product_attention(self.queries(x).transpose(1, 2), *self.keys_values(seen))
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class VitBlock(Block):
    """x + attention(norm1(x)), then x + mlp(norm2(x)): for all tokens, under a mask, or for the kept ones."""

    def __init__(self, spec: GridSpec, rate: int, drop_path: float = 0.0, *, index: int = 0) -> None:
        super().__init__()  # `index` is of use to blocks that alternate; these do not
        i, width = spec.index(rate), spec.width(rate)
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, spec.shape.heads[i])
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, int(width * spec.shape.mlp_ratios[i]))
        self.drop_path = drop_path

    def whole(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """(B, N, C) → (B, N, C), every token."""
        first, second = self._drops(x)
        h = self.norm1(x)
        x = x + self.attn(h, h) * first
        return x + self.mlp(self.norm2(x)) * second

    def masked(self, x: Tensor, hw: tuple[int, int], keep: KeptTokens) -> Tensor:
        """The reference: compute everything, keep what the mask keeps. `keep.see` hides invisible tokens."""
        first, second = self._drops(x)
        h = self.norm1(x)
        y = x + self.attn(h, keep.see(h)) * first
        y = y + self.mlp(self.norm2(y)) * second
        return torch.where(keep.kept.unsqueeze(-1), y, x)

    def packed(self, x: Tensor, hw: tuple[int, int], keep: KeptTokens) -> Tensor:
        """The same result from the kept rows alone; only keys and values read the whole map."""
        first, second = (
            drop if isinstance(drop, float) else drop.flatten(1).index_select(0, keep.images)
            for drop in self._drops(x)
        )
        flat, h = x.flatten(0, 1), self.norm1(x)
        queries = self.attn.queries(take(h.flatten(0, 1), keep.rows))
        mixed = ragged_attention(queries, *self.attn.keys_values(keep.see(h)), keep)
        rows = take(flat, keep.rows) + self.attn.proj(mixed) * first
        rows = rows + self.mlp(self.norm2(rows)) * second
        return put(flat, keep.rows, rows).view_as(x)

    def _drops(self, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Stochastic depth: a factor per image for each branch, 1.0 where nothing is dropped."""
        first, second = (drop_paths(x, self.drop_path, self.training) for _ in range(2))
        return 1.0 if first is None else first, 1.0 if second is None else second


class Stem(base.Stem):
    """Image → finest map, with positions added."""

    def __init__(self, spec: GridSpec) -> None:
        super().__init__()
        self.proj = nn.Conv2d(spec.in_channels, spec.width(spec.stem_down), spec.stem_down, spec.stem_down)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) pixels → (B, N, C)."""
        grid = patches(self.proj, images)
        return as_tokens(grid) + sine_positions(grid.shape[-2], grid.shape[-1], grid.shape[1]).to(grid)


class PatchEmbed(base.PatchEmbed):
    """Map of `rate` → map of 2·`rate`."""

    def __init__(self, spec: GridSpec, rate: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(spec.width(rate), spec.width(2 * rate), 2, 2)

    def forward(self, x: Tensor, hw: tuple[int, int], visible: Tensor | None = None) -> Tensor:
        """(B, N, C) → (B, N', C'); `visible` (B, N, 1) zeroes the tokens that are not there."""
        x = x if visible is None else x * visible
        return as_tokens(patches(self.proj, as_map(x, hw)))


class Output(base.Output):
    """What stands between the last node of a rate and the heads."""

    def __init__(self, spec: GridSpec, rate: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.width(rate), eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        return self.norm(x)


def patches(proj: nn.Conv2d, grid: Tensor) -> Tensor:
    """A convolution of whole patches, (B, C, H, W) → (B, C', ceil(H/side), ceil(W/side)), padded to hold them."""
    (h, w), side = grid.shape[-2:], proj.stride[0]
    return proj(F.pad(grid, (0, -w % side, 0, -h % side)))


def sine_positions(height: int, width: int, channels: int) -> Tensor:
    """(H·W, C): sines and cosines of row and column, a quarter of the channels each."""
    quarter = channels // 4
    speeds = 10_000.0 ** (-torch.arange(quarter) / quarter)
    rows, columns = torch.arange(height)[:, None] * speeds, torch.arange(width)[:, None] * speeds
    y = torch.cat((rows.sin(), rows.cos()), 1)[:, None, :].expand(height, width, -1)
    x = torch.cat((columns.sin(), columns.cos()), 1)[None, :, :].expand(height, width, -1)
    return torch.cat((y, x), 2).flatten(0, 1)


MODULES = FamilyModules(stem=Stem, block=VitBlock, patch_embed=PatchEmbed, output=Output)
