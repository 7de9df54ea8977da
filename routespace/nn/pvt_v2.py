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

from torch import Tensor, nn
from torch.nn import functional as F

from routespace.grid.pvt_v2 import DEPTHWISE_KERNEL, EMBED_KERNEL, STEM_KERNEL
from routespace.grid.spec import GridSpec
from routespace.nn import stage
from routespace.nn.packing import Keep
from routespace.nn.stage import Block, StateDict, TimmWeights, drop_paths, prefixed

_TIMM_STAGE = re.compile(r"stages\.(\d+)\.(.+)")
NORM_EPS = 1e-6  # timm: 1e-6 around blocks and stages, torch's 1e-5 inside attention and patch embeddings


def as_map(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """(B, N, C) → (B, C, H, W) without a copy: the token layout is channels-last already."""
    return x.view(x.shape[0], *hw, x.shape[2]).permute(0, 3, 1, 2)


def as_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, N, C)."""
    return x.flatten(2).transpose(1, 2)


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
        h = self.norm1(x)
        x = self._add(x, self.attn(h, h, hw))
        return self._add(x, self.mlp(self.norm2(x), hw))

    def masked(self, x: Tensor, hw: tuple[int, int], keep: Keep) -> Tensor:
        """(B, N, C) → (B, N, C) by multiplying with the mask; computes everything."""
        h = self.norm1(x)
        mask = keep.mask.to(x.dtype)
        x = self._add(x, self.attn(h, keep.see(h), hw) * mask)
        return self._add(x, self.mlp(self.norm2(x), hw, mask) * mask)

    def packed(self, x: Tensor, hw: tuple[int, int], keep: Keep) -> Tensor:
        """(B, N, C) → (B, N, C), computing the kept tokens alone."""
        raise NotImplementedError

    def _add(self, x: Tensor, branch: Tensor) -> Tensor:
        factor = drop_paths(x, self.drop_path, self.training)
        return x + branch if factor is None else x + branch * factor


class Stage(stage.Stage):
    """A transformer edge of PVTv2 blocks."""

    def __init__(self, spec: GridSpec, rate: int, depth: int, drop_path: float = 0.0) -> None:
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


class PatchEmbed(nn.Module):
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
