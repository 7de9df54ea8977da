"""SwinV2 blocks (arXiv 2111.09883), routable, with the state-dict keys of timm's `swinv2_*`.

What routing means for a block is said in `packing/keep.py`; here an invisible token has a zero key and the value's
bias, as padding has. With every token kept a block is timm's block exactly, padding of odd maps included.

Shape legend: B images · N tokens · n kept tokens · C channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routespace.errors import BundleError
from routespace.grid.families.swin_v2 import MERGED
from routespace.grid.spec import GridSpec
from routespace.nn.drawing import truncated_normal_
from routespace.nn.families import base
from routespace.nn.families.again import computed_again, keeps_inputs
from routespace.nn.families.base import (
    Block,
    FamilyModules,
    StateDict,
    TimmWeights,
    TokenEmbed,
    drop_paths,
    prefixed,
)
from routespace.nn.families.swin_attention import WindowAttention
from routespace.nn.families.swin_packing import touch
from routespace.nn.families.swin_windows import Windows
from routespace.nn.kernels.linear import apply_linear
from routespace.nn.kernels.norm import LayerNorm, norm_then_add
from routespace.nn.packing.keep import KeptTokens
from routespace.nn.packing.maps import as_tokens
from routespace.nn.packing.rows import put, take

_TIMM_LAYER = re.compile(r"layers[._](\d+)\.(blocks\.(\d+)|downsample)\.(.+)")  # `layers_0`: features alone
_MADE_ANEW = ("relative_position_index", "relative_coords_table", "attn_mask", "k_bias")  # tables in older files


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        return apply_linear(self.fc2, F.gelu(apply_linear(self.fc1, x)))


class SwinBlock(Block):
    """x + norm1(attention(x)), then x + norm2(mlp(x)).

    Args:
        spec: the grid's spec.
        rate: whose width, heads, MLP ratio and window.
        drop_path: stochastic depth.
        index: place of the block in its row; every second one's windows are shifted by half a side. Places go on
            from column to column, so that a stage that is spread over several edges is the plain network's.
    """

    def __init__(self, spec: GridSpec, rate: int, drop_path: float = 0.0, *, index: int = 0) -> None:
        super().__init__()
        i, width = spec.index(rate), spec.width(rate)
        self.window, self.trained = spec.own("window", rate), spec.own("pretrained_window", rate)
        self.shifted, self.drop_path = index % 2 == 1, drop_path
        self.attn = WindowAttention(width, spec.shape.heads[i])
        self.norm1 = LayerNorm(width)
        self.mlp = Mlp(width, int(width * spec.shape.mlp_ratios[i]))
        self.norm2 = LayerNorm(width)
        self.apply(init_weights)
        for norm in (self.norm1, self.norm2):  # branches start at zero (SwinV2's "res-post-norm" initialisation)
            nn.init.zeros_(norm.weight)

    def windows(self, hw: tuple[int, int]) -> Windows:
        """The windows of a map of this size."""
        return Windows.of(hw, self.window, shifted=self.shifted, trained=self.trained)

    def whole(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """(B, N, C) → (B, N, C), every token."""
        first, second = self._drops(x)
        x = _add(x, self.norm1, self.attn(x, self.windows(hw)), first)
        return _add(x, self.norm2, self.mlp(x), second)

    def masked(self, x: Tensor, hw: tuple[int, int], keep: KeptTokens) -> Tensor:
        """(B, N, C) → (B, N, C); computes everything, and takes x again where the mask is 0."""
        first, second = self._drops(x)
        y = _add(x, self.norm1, self.attn(keep.see(x), self.windows(hw)), first)
        y = _add(y, self.norm2, self.mlp(y), second)
        return torch.where(keep.kept.unsqueeze(-1), y, x)

    def packed(self, x: Tensor, hw: tuple[int, int], keep: KeptTokens) -> Tensor:
        """(B, N, C) → (B, N, C), computing the kept tokens alone. Without autograd x itself is written to."""
        if torch.compiler.is_exporting():  # packing asks the device for sizes, which no graph can hold
            return self.masked(x, hw, keep)
        windows = self.windows(hw)
        touched = keep.shared(windows, lambda: touch(keep, windows))
        if not touched.buckets:
            return x
        first, second = (
            None if drop is None else drop.flatten(1).index_select(0, touched.images) for drop in self._drops(x)
        )
        flat = x.flatten(0, 1)
        rows = take(flat, touched.kept)
        rows = _add(rows, self.norm1, self.attn.packed(flat, rows, windows, touched), first)
        rows = _add(rows, self.norm2, self.mlp(rows), second)
        return put(flat, touched.kept, rows).view_as(x)

    def _drops(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return drop_paths(x, self.drop_path, self.training), drop_paths(x, self.drop_path, self.training)


def _add(x: Tensor, norm: LayerNorm, branch: Tensor, drop: Tensor | None) -> Tensor:
    return norm_then_add(norm, x, branch) if drop is None else x + norm(branch) * drop


class Stem(base.Stem):
    """4×4 convolution of stride 4, LayerNorm; the image is padded on the right and at the bottom."""

    def __init__(self, spec: GridSpec) -> None:
        super().__init__()
        width = spec.width(spec.stem_down)
        self.proj = nn.Conv2d(spec.in_channels, width, spec.stem_down, spec.stem_down)
        self.norm = LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) pixels → (B, N, C)."""
        down = self.proj.stride[0]
        h, w = images.shape[-2:]
        if h % down or w % down:
            images = F.pad(images, (0, -w % down, 0, -h % down))
        normed: Tensor = self.norm(as_tokens(self.proj(images)))
        return normed


class PatchEmbed(TokenEmbed):
    """Patch merging: 2×2 tokens side by side, a linear layer, LayerNorm; odd maps are padded with zero tokens."""

    def __init__(self, spec: GridSpec, rate: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(MERGED * spec.width(rate), spec.width(2 * rate), bias=False)
        self.norm = LayerNorm(spec.width(2 * rate))
        self.apply(init_weights)

    def forward(self, x: Tensor, hw: tuple[int, int], visible: Tensor | None = None) -> Tensor:
        """(B, N, C) → (B, N', C'); `visible` (B, N, 1) zeroes the tokens that are not there."""
        again = self.grad_checkpointing and keeps_inputs()
        merged = computed_again(self._merged, x, hw, visible) if again else self._merged(x, hw, visible)
        normed: Tensor = self.norm(merged)
        return normed

    def _merged(self, x: Tensor, hw: tuple[int, int], visible: Tensor | None) -> Tensor:
        """(B, N, C) → (B, N', C')."""
        return apply_linear(self.reduction, self._groups(x, hw, visible))

    def packed(self, x: Tensor, hw: tuple[int, int], rows: Tensor, visible: Tensor | None) -> Tensor:
        """(B, N, C) → (n, C'): the coarse tokens at `rows`."""
        groups = self._groups(x, hw, visible)
        normed: Tensor = self.norm(apply_linear(self.reduction, take(groups.flatten(0, 1), rows)))
        return normed

    def _groups(self, x: Tensor, hw: tuple[int, int], visible: Tensor | None) -> Tensor:
        """(B, N, C) → (B, N', 4·C): each 2×2 group's tokens, column by column (timm's order)."""
        (h, w), c = hw, x.shape[2]
        if visible is not None:
            x = x * visible.to(x.dtype)
        grid = x.view(-1, h, w, c)
        if h % 2 or w % 2:
            grid = F.pad(grid, (0, 0, 0, w % 2, 0, h % 2))
        grid = grid.reshape(-1, (h + 1) // 2, 2, (w + 1) // 2, 2, c)
        return grid.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)


class Output(base.Output):
    """What ends a row where the heads read it: a LayerNorm at the coarsest rate, nothing at finer ones.

    Plain SwinV2 has one norm, after its last stage; timm's features of finer stages have none.
    """

    def __init__(self, spec: GridSpec, rate: int) -> None:
        super().__init__()
        self.norm = LayerNorm(spec.width(rate)) if rate == spec.max_down else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        return x if self.norm is None else self.norm(x)


def init_weights(module: nn.Module) -> None:
    """SwinV2's initialisation: truncated normal .02 for linear layers, zero biases."""
    if isinstance(module, nn.Linear):
        truncated_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def from_timm(state: Mapping[str, Tensor]) -> TimmWeights:
    """A `swinv2_*` state dict by timm's or its authors' names, sorted by the part of a grid that it belongs to.

    The authors' patch merging ends a stage, timm's begins the next one.
    """
    blocks: dict[int, dict[int, StateDict]] = {}
    embeds: dict[int, StateDict] = {}
    official = "layers.0.downsample.reduction.weight" in state
    for key, tensor in state.items():
        match = _TIMM_LAYER.fullmatch(key)
        if match is None or key.endswith(_MADE_ANEW):
            continue
        i, part, number, name = int(match[1]), match[2], match[3], match[4]
        if part == "downsample":
            embeds.setdefault(i if official else i - 1, {})[name] = tensor
        else:
            blocks.setdefault(i, {}).setdefault(int(number), {})[name] = tensor
    outputs: list[StateDict] = [{} for _ in blocks]
    if outputs:
        outputs[-1] = {f"norm.{name}": tensor for name, tensor in prefixed(state, "norm.").items()}
    return TimmWeights(
        stem=prefixed(state, "patch_embed."),
        blocks=[[found[k] for k in sorted(found)] for _, found in sorted(blocks.items())],
        embeds=[embeds[i] for i in sorted(embeds)],
        outputs=outputs,
        head=prefixed(state, "head.fc.") or prefixed(state, "head."),
    )


def check_timm(spec: GridSpec, module: nn.Module) -> None:
    """Raise BundleError where timm's network measures positions by other windows than a network of `spec`.

    No state dict tells: the tables of positions are made anew, from the windows and from those of the pretraining.
    """
    blocks = [_timm_block(module, i) for i in range(len(spec.rates))]
    if None in blocks:
        return  # an unknown form; shapes will tell
    # timm shrinks its windows to its maps, of which the first is the largest.
    map_side, window = int(blocks[0].input_resolution[0]), int(blocks[0].window_size[0])
    needed, wrong = [], []
    for rate, block in zip(spec.rates, blocks, strict=True):
        trained = int(block.attn.pretrained_window_size[0])
        ours = spec.own("pretrained_window", rate) or spec.own("window", rate)
        if not (ours == trained if trained else min(ours, map_side) == window):
            wrong.append(rate)
        needed.append(trained or (window if rate in wrong else 0))
    if wrong:
        raise BundleError(
            f"weights: at rates {wrong} they know positions as shares of other windows than this grid's; make the "
            f"grid with pretrained_window={needed}"
        )


def _timm_block(module: nn.Module, stage: int) -> Any:
    """The first block of a stage of timm's network, which may be one of features alone; None without any."""
    parts = dict(module.named_modules())
    return parts.get(f"layers.{stage}.blocks.0", parts.get(f"layers_{stage}.blocks.0"))


MODULES = FamilyModules(Stem, SwinBlock, PatchEmbed, Output, from_timm, check_timm)
