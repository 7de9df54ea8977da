"""PVTv2 (arXiv 2106.13797), routable, with the state-dict keys of timm's `pvt_v2_*`.

The block has its own file, `pvt_v2_block`.

Shape legend: B images · H, W map sides · N = H·W tokens · n kept tokens of the batch · C channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from routespace.grid.families.pvt_v2 import EMBED_KERNEL, STEM_KERNEL
from routespace.grid.spec import GridSpec, map_size
from routespace.nn.families import base
from routespace.nn.families.again import computed_again, keeps_inputs
from routespace.nn.families.base import FamilyModules, StateDict, TimmWeights, TokenEmbed, as_maps_are, prefixed
from routespace.nn.families.pvt_v2_block import NORM_EPS, PvtBlock, init_weights
from routespace.nn.kernels.linear import linear
from routespace.nn.kernels.norm import LayerNorm, norm_of_map
from routespace.nn.packing.maps import as_map, as_tokens

_TIMM_STAGE = re.compile(r"stages[._](\d+)\.(.+)")  # `stages_0` in timm's networks of features alone
_OFFICIAL = re.compile(r"(patch_embed|block|norm)(\d)\.(.+)")


class Stem(base.Stem):
    """7×7 convolution of stride 4, LayerNorm."""

    def __init__(self, spec: GridSpec) -> None:
        super().__init__()
        width = spec.width(spec.stem_down)
        self.proj = nn.Conv2d(spec.in_channels, width, STEM_KERNEL, spec.stem_down, STEM_KERNEL // 2)
        self.norm = LayerNorm(width)
        self.apply(init_weights)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) pixels → (B, N, C)."""
        if images.is_cuda:  # of channels-last images a token map comes, of others a copy of one
            images = images.contiguous(memory_format=torch.channels_last)
        return norm_of_map(self.norm, self.proj, images)


class PatchEmbed(TokenEmbed):
    """LayerNorm of the row that is left, 3×3 convolution of stride 2, LayerNorm."""

    def __init__(self, spec: GridSpec, rate: int) -> None:
        super().__init__()
        self.norm_in = LayerNorm(spec.width(rate), eps=NORM_EPS)
        self.proj = as_maps_are(
            nn.Conv2d(spec.width(rate), spec.width(2 * rate), EMBED_KERNEL, 2, EMBED_KERNEL // 2)
        )
        self.norm = LayerNorm(spec.width(2 * rate))
        self.apply(init_weights)

    def forward(self, x: Tensor, hw: tuple[int, int], visible: Tensor | None = None) -> Tensor:
        """(B, N, C) → (B, N', C'); `visible` (B, N, 1) zeroes the tokens that are not there."""
        if self.grad_checkpointing and keeps_inputs():
            normed: Tensor = self.norm(as_tokens(computed_again(self._convolved, x, hw, visible)))
            return normed
        return norm_of_map(self.norm, self.proj, as_map(self._seen(x, visible), hw))

    def _seen(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """(B, N, C) → (B, N, C), the norm of what is there."""
        h: Tensor = self.norm_in(x)
        return h if visible is None else h * visible.to(h.dtype)

    def _convolved(self, x: Tensor, hw: tuple[int, int], visible: Tensor | None) -> Tensor:
        """(B, N, C) → (B, C', H', W')."""
        maps: Tensor = self.proj(as_map(self._seen(x, visible), hw))
        return maps

    def packed(self, x: Tensor, hw: tuple[int, int], rows: Tensor, visible: Tensor | None) -> Tensor:
        """(B, N, C) → (n, C'): the patches under the coarse tokens at `rows`, times the kernel as a matrix."""
        h = self._seen(x, visible)
        index, inside = patch_index(rows, hw)
        patches = h.flatten(0, 1).index_select(0, index.flatten()).view(*index.shape, h.shape[2])
        patches = (patches * inside.unsqueeze(-1).to(h.dtype)).flatten(1)
        kernel = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        normed: Tensor = self.norm(linear(patches, kernel, self.proj.bias))
        return normed


def patch_index(rows: Tensor, hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where the 3×3 patches of stride 2 under some coarse tokens read the fine map.

    Args:
        rows: (n,) positions of these tokens in the flat (B·N') coarse batch.
        hw: height and width of the fine map.

    Returns:
        (n, 9) positions in the flat (B·N) fine batch, and (n, 9) bool: inside the map (else position 0).
    """
    (h, w), (coarse_h, coarse_w) = hw, map_size(hw, 2)
    tokens = coarse_h * coarse_w
    image, token = rows // tokens, rows % tokens
    steps = torch.arange(EMBED_KERNEL, device=rows.device) - EMBED_KERNEL // 2
    y = (token // coarse_w * 2)[:, None, None] + steps[:, None]
    x = (token % coarse_w * 2)[:, None, None] + steps[None, :]
    inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
    index = torch.where(inside, (image[:, None, None] * h + y) * w + x, 0)
    return index.flatten(1), inside.flatten(1)


class Output(base.Output):
    """The LayerNorm that ends a stage, where a row is read by the heads."""

    def __init__(self, spec: GridSpec, rate: int) -> None:
        super().__init__()
        self.norm = LayerNorm(spec.width(rate), eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        normed: Tensor = self.norm(x)
        return normed


def _timm_key(key: str) -> str:
    """timm's name of a tensor of the authors' own files; every other name as it is."""
    key = key.replace("dwconv.dwconv", "dwconv")
    match = _OFFICIAL.fullmatch(key)
    if match is None:
        return key
    part, stage, name = match[1], int(match[2]) - 1, match[3]
    if part == "patch_embed":
        return f"patch_embed.{name}" if stage == 0 else f"stages.{stage}.downsample.{name}"
    return f"stages.{stage}.{'blocks' if part == 'block' else part}.{name}"


def from_timm(state: Mapping[str, Tensor]) -> TimmWeights:
    """A `pvt_v2_*` state dict by timm's or its authors' names, sorted by the part of a grid that it belongs to."""
    blocks: dict[int, dict[int, StateDict]] = {}
    embeds: dict[int, StateDict] = {}
    outputs: dict[int, StateDict] = {}
    state = {_timm_key(key): tensor for key, tensor in state.items()}
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
    embeds.pop(max(blocks, default=0), None)  # nothing leaves the last stage
    return TimmWeights(
        stem=prefixed(state, "patch_embed."),
        blocks=[[found[k] for k in sorted(found)] for _, found in sorted(blocks.items())],
        embeds=[embeds[i] for i in sorted(embeds)],
        outputs=[outputs[i] for i in sorted(outputs)],
        head=prefixed(state, "head."),
    )


MODULES = FamilyModules(Stem, PvtBlock, PatchEmbed, Output, from_timm)
