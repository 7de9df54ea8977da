"""Computing one edge for the tokens that were kept: `Dense`, the reference, `Packed`, and `Auto`, either.

    Dense    computes everything and masks. No shape depends on a decision, so it can be exported and traced.
    Packed   computes what was kept: images of which something was kept, then of these the kept tokens.
    Auto     packs an edge where few enough of its tokens are kept in this batch.

Shape legend: B images · N tokens of a map · P = N, or 1 where a mask is about whole images · C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from routespace.nn.families.base import Stage, TokenEmbed
from routespace.nn.kernels.linear import onednn_is_used
from routespace.nn.packing.keep import KeptTokens, kept_rows
from routespace.nn.packing.rows import spread_rows, take
from routespace.nn.routing.state import NodeState

Execution = Literal["dense", "packed", "auto"]
Keys = Literal["all", "kept"]
PACK_BELOW = 0.9  # share of kept tokens from which on packing takes more time than it saves …
# … and sooner on small or narrow maps, in eager execution on a CPU (measured on PVTv2). The unit is the time that
# a dense block's element-wise parts take for one number; its matrix products take C / CHANNELS more …
CHANNELS, FAST_CHANNELS = 100, 220  # by torch's own products, and by oneDNN's
CALLS = 15_000  # what a packed block's further calls take
MOVES = 0.3  # what moving one number takes


@dataclass(frozen=True)
class EdgeInput:
    """What is to be computed on one edge.

    Attributes:
        here: the node that it reads.
        hw: height and width of that node's map.
        kept: (B, P) bool, the tokens to compute: of the map for a row, of the coarser map for a patch embedding.
        scale: (B, P), what the result is multiplied by; None for 1.
        keys: what keys and values are made of (rows).
        per_image: number of kept tokens of every image, where the selection makes them equal.
        width: channels of the result (patch embeddings).
    """

    here: NodeState
    hw: tuple[int, int]
    kept: Tensor
    scale: Tensor | None = None
    keys: Keys = "all"
    per_image: int | None = None
    width: int = 0

    @property
    def share(self) -> float:
        """The share of tokens that is kept, which waits for the device unless the selection fixes it."""
        if self.per_image is not None:
            return self.per_image / self.kept.shape[1]
        return float(self.kept.float().mean())

    def only(self, images: Tensor) -> EdgeInput:
        """The same for some images of the batch."""
        reach = None if self.here.reach is None else self.here.reach.index_select(0, images)
        scale = None if self.scale is None else self.scale.index_select(0, images)
        here = NodeState(take(self.here.x, images), reach)
        return replace(self, here=here, kept=self.kept.index_select(0, images), scale=scale)


class Compute(Protocol):
    """A way to compute edges of which only some tokens or images were kept."""

    def absent(self, here: NodeState) -> bool:
        """True when nothing of a node is there to be computed, so that its gates need not be asked."""

    def row(self, stage: nn.Module, work: EdgeInput) -> Tensor:
        """(B, N, C): scale·T(x) + (1 − scale)·x at kept tokens, x elsewhere."""

    def embed(self, embed: nn.Module, work: EdgeInput) -> Tensor:
        """(B, N', C'): scale·P(x) at kept coarse tokens, zero elsewhere."""


class Dense:
    """Compute everything and mask."""

    def absent(self, here: NodeState) -> bool:
        """See Compute; a dense pass never looks."""
        return False

    def row(self, stage: nn.Module, work: EdgeInput) -> Tensor:
        """See Compute."""
        x = work.here.x
        y = blend(x, stage(x, work.hw, kept_tokens(work)), work.scale)
        return torch.where(work.kept.unsqueeze(-1), y, x)

    def embed(self, embed: nn.Module, work: EdgeInput) -> Tensor:
        """See Compute."""
        x = work.here.x
        y = scaled(embed(x, work.hw, work.here.visible(x.dtype)), work.scale)
        return torch.where(work.kept.unsqueeze(-1), y, torch.zeros_like(y))


class Packed:
    """Compute the kept tokens of the whole batch, and nothing for images of which nothing was kept."""

    def absent(self, here: NodeState) -> bool:
        """See Compute."""
        if torch.compiler.is_exporting() or (here.count is not None and here.active is None):
            return False
        there = here.there()
        return there is not None and not bool(there.any())

    def row(self, stage: nn.Module, work: EdgeInput) -> Tensor:
        """See Compute."""
        x, scale, keep = work.here.x, work.scale, kept_tokens(work)
        images = _chosen(work.kept) if keep is None else keep.occupied
        if images is None:
            return self._rows(stage, work.hw, x, keep, scale)
        if not images.shape[0] and not torch.compiler.is_exporting():
            return x
        part = None if scale is None else scale.index_select(0, images)
        chosen = None if keep is None else keep.only(images)
        return x.index_copy(0, images, self._rows(stage, work.hw, take(x, images), chosen, part))

    def _rows(
        self, stage: nn.Module, hw: tuple[int, int], x: Tensor, keep: KeptTokens | None, scale: Tensor | None
    ) -> Tensor:
        """All images of x, each with something kept."""
        y = stage(x, hw) if keep is None or keep.is_everything else stage(x, hw, keep, packed=True)
        return blend(x, y, scale)

    def embed(self, embed: nn.Module, work: EdgeInput) -> Tensor:
        """See Compute."""
        x, (h, w) = work.here.x, work.hw
        images = None if work.per_image is not None else _chosen(work.kept)
        if images is None:
            return self._patches(embed, work)
        if not images.shape[0] and not torch.compiler.is_exporting():
            return x.new_zeros(x.shape[0], -(-h // 2) * -(-w // 2), work.width)
        return spread_rows(self._patches(embed, work.only(images)), images, x.shape[0])

    def _patches(self, embed: nn.Module, work: EdgeInput) -> Tensor:
        """(B, N', C'), where something is kept of every image."""
        x, hw, kept = work.here.x, work.hw, work.kept
        visible, (b, tokens) = work.here.visible(x.dtype), kept.shape
        if tokens == 1:
            return scaled(embed(x, hw, visible), work.scale)
        if not isinstance(embed, TokenEmbed):
            y = scaled(embed(x, hw, visible), work.scale)
            return torch.where(kept.unsqueeze(-1), y, torch.zeros_like(y))
        rows = kept_rows(kept, work.per_image)
        part = embed.packed(x, hw, rows, visible)
        return scaled(spread_rows(part, rows, b * tokens).view(b, tokens, part.shape[1]), work.scale)


class Auto:
    """Pack an edge where little enough is kept, in this batch; else compute it densely."""

    def __init__(self) -> None:
        self.dense = Dense()
        self.packed = Packed()

    def absent(self, here: NodeState) -> bool:
        """See Compute."""
        return self.packed.absent(here)

    def row(self, stage: nn.Module, work: EdgeInput) -> Tensor:
        """See Compute."""
        below = _pack_below(work.here.x, compiled=isinstance(stage, Stage) and stage.compiled)
        dense = work.kept.shape[1] > 1 and max(below, 0) < work.share < 1  # keeping nothing costs nothing packed
        return (self.dense if dense else self.packed).row(stage, work)

    def embed(self, embed: nn.Module, work: EdgeInput) -> Tensor:
        """See Compute."""
        dense = work.kept.shape[1] > 1 and work.share >= PACK_BELOW
        return (self.dense if dense else self.packed).embed(embed, work)


def _pack_below(x: Tensor, *, compiled: bool) -> float:
    """The share of kept tokens of (B, N, C) below which a packed edge takes less time than a masked one."""
    if compiled or x.device.type != "cpu":
        return PACK_BELOW
    channels = FAST_CHANNELS if onednn_is_used() else CHANNELS
    dense = x.numel() * (1 + x.shape[2] / channels)
    return min(PACK_BELOW, 1 - (CALLS + MOVES * x.numel()) / dense)


def blend(x: Tensor, y: Tensor, scale: Tensor | None) -> Tensor:
    """(B, N, C): scale·y + (1 − scale)·x, with scale (B, P); y where there is none."""
    return y if scale is None else torch.lerp(x, y, scale.unsqueeze(-1).to(x.dtype))


def scaled(y: Tensor, scale: Tensor | None) -> Tensor:
    """(B, N, C): scale·y, with scale (B, P); y where there is none."""
    return y if scale is None else y * scale.unsqueeze(-1).to(y.dtype)


def make_compute(execution: Execution, images: Tensor) -> Compute:
    """The way of computing that a mode names, for a batch of images (B, C, H, W).

    `auto` has nothing to measure in an export, which is dense; a batch of nothing has nothing to pack.
    """
    exporting = torch.compiler.is_exporting()
    if execution == "packed" and (exporting or images.shape[0]):
        return Packed()
    return Auto() if execution == "auto" and not exporting and images.shape[0] else Dense()


def kept_tokens(work: EdgeInput) -> KeptTokens | None:
    """What a stage has to know about its tokens; None when images are computed whole."""
    here, kept, hw = work.here, work.kept, work.hw
    partial = here.reach is not None and here.reach.shape[1] > 1
    if kept.shape[1] == 1 and not partial:
        return None
    n = here.x.shape[1]
    kept = kept.expand(-1, n)
    if work.keys == "kept":
        return KeptTokens(kept, hw, per_image=work.per_image, sees_kept=True)
    visible = (here.reach > 0).expand(-1, n) if partial and here.reach is not None else None
    return KeptTokens(kept, hw, visible, per_image=work.per_image)


def _chosen(kept: Tensor) -> Tensor | None:
    """(B, P) bool → the images of which something is kept, increasing; None for all of them."""
    if torch.compiler.is_exporting():
        return kept[:, 0].nonzero().squeeze(1) if kept.shape[1] == 1 else None
    images = kept.any(1).nonzero().squeeze(1)
    return None if images.shape[0] == kept.shape[0] else images
