"""Computing one edge for the tokens that were kept: `Dense`, the reference, `Packed`, and `Auto`, either.

    Dense    computes everything and masks. No shape depends on a decision, so it can be exported and traced.
    Packed   computes what was kept: images of which something was kept, then of these the kept tokens.
    Auto     packs an edge where few enough of its tokens are kept in this batch.

Shape legend: B images · N tokens of a map · P = N, or 1 where a mask is about whole images · C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from routespace.grid.spec import map_size
from routespace.nn.families.base import Stage, TokenEmbed, has_hooks
from routespace.nn.families.packing_costs import PACKING_COSTS
from routespace.nn.packing.keep import KeptTokens, kept_rows
from routespace.nn.packing.rows import spread_rows, take
from routespace.nn.routing.deciding import Execution
from routespace.nn.routing.skipped import add_masked, add_packed
from routespace.nn.routing.state import NodeState

Keys = Literal["all", "kept"]
PACK_BELOW = 0.9  # share of kept tokens from which on packing takes more time than it saves


@dataclass(frozen=True)
class EdgeInput:
    """What is to be computed on one edge.

    Attributes:
        node: the node that it reads.
        hw: height and width of that node's map.
        kept: (B, P) bool, the tokens to compute: of the map for a row, of the coarser map for a patch embedding.
        scale: (B, P), what the result is multiplied by; None for 1.
        keys: what keys and values are made of (rows).
        per_image: number of kept tokens of every image, where the selection makes them equal.
        width: channels of the result (patch embeddings).
        lengths: kept tokens of each image, where the host knows them already (rows).
        mask: `kept` as floats, where somebody has made them (rows).
    """

    node: NodeState
    hw: tuple[int, int]
    kept: Tensor
    scale: Tensor | None = None
    keys: Keys = "all"
    per_image: int | None = None
    width: int = 0
    lengths: list[int] | None = None
    mask: Tensor | None = None

    @property
    def is_whole(self) -> bool:
        """Whether everything is there and kept, as far as the host knows."""
        return self.per_image == self.kept.shape[1] and self.node.is_whole

    @property
    def share(self) -> float:
        """The share of tokens that is kept, which waits for the device unless the selection fixes it."""
        if self.per_image is not None:
            return self.per_image / self.kept.shape[1]
        if self.lengths is not None:
            return sum(self.lengths) / max(1, self.kept.numel())
        return int(self.kept.sum()) / max(1, self.kept.numel())

    def counted(self) -> EdgeInput:
        """The same with `lengths`, where tokens are kept and the host has to ask for their number anyway."""
        if self.per_image is not None or self.lengths is not None or self.kept.shape[1] == 1:
            return self
        numbers = self.kept if self.mask is None or self.kept.is_cuda else self.mask  # a CPU adds floats faster
        return replace(self, lengths=[int(count) for count in numbers.sum(1).tolist()])

    def only(self, images: Tensor) -> EdgeInput:
        """The same for some images of the batch."""
        reach = None if self.node.reach is None else self.node.reach.index_select(0, images)
        scale = None if self.scale is None else self.scale.index_select(0, images)
        node = NodeState(take(self.node.x, images), reach)
        return replace(
            self, node=node, kept=self.kept.index_select(0, images), scale=scale, lengths=None, mask=None
        )


class Compute(Protocol):
    """A way to compute edges of which only some tokens or images were kept."""

    def finds_nothing(self, node: NodeState) -> bool:
        """True when nothing of a node is there to be computed, so that its gates need not be asked."""

    def row(self, stage: nn.Module, edge: EdgeInput) -> Tensor:
        """(B, N, C): scale·T(x) + (1 − scale)·x at kept tokens, x elsewhere."""

    def skip(self, path: nn.Module, y: Tensor, skipped: Tensor, per_image: int | None) -> Tensor:
        """(B, N, C): a row's result with what its cheap path adds at skipped tokens; see `skipped.py`."""

    def embed(self, embed: nn.Module, edge: EdgeInput) -> Tensor:
        """(B, N', C'): scale·P(x) at kept coarse tokens, zero elsewhere."""


class Dense:
    """Compute everything and mask."""

    def finds_nothing(self, node: NodeState) -> bool:
        """See Compute; a dense pass never looks."""
        return False

    def row(self, stage: nn.Module, edge: EdgeInput) -> Tensor:
        """See Compute."""
        x, keep = edge.node.x, kept_tokens(edge)
        y = blend(x, stage(x, edge.hw, keep), edge.scale)
        return y if keep is not None else torch.where(edge.kept.unsqueeze(-1), y, x)  # a stage passes skipped ones

    def skip(self, path: nn.Module, y: Tensor, skipped: Tensor, per_image: int | None) -> Tensor:
        """See Compute."""
        return add_masked(path, y, skipped)

    def embed(self, embed: nn.Module, edge: EdgeInput) -> Tensor:
        """See Compute."""
        x = edge.node.x
        y = scaled(embed(x, edge.hw, edge.node.visible(x.dtype)), edge.scale)
        return torch.where(edge.kept.unsqueeze(-1), y, torch.zeros_like(y))


class Packed:
    """Compute the kept tokens of the whole batch, and nothing for images of which nothing was kept."""

    def finds_nothing(self, node: NodeState) -> bool:
        """See Compute."""
        if torch.compiler.is_exporting() or (node.count is not None and node.active is None):
            return False
        undecided = node.undecided()
        return undecided is not None and not bool(undecided.any())

    def row(self, stage: nn.Module, edge: EdgeInput) -> Tensor:
        """See Compute."""
        x, scale = edge.node.x, edge.scale
        if edge.is_whole:
            return blend(x, stage(x, edge.hw), scale)
        keep = kept_tokens(edge)
        images = images_with_kept(edge.kept) if keep is None else keep.occupied
        if images is None:
            return self._rows(stage, edge.hw, x, keep, scale)
        if not torch.compiler.is_exporting() and not images.shape[0]:
            return x
        part = None if scale is None else scale.index_select(0, images)
        chosen = None if keep is None else keep.only(images, _all_that_keep(keep))
        return x.index_copy(0, images, self._rows(stage, edge.hw, take(x, images), chosen, part))

    def _rows(
        self, stage: nn.Module, hw: tuple[int, int], x: Tensor, keep: KeptTokens | None, scale: Tensor | None
    ) -> Tensor:
        """All images of x, each with something kept."""
        y = stage(x, hw) if keep is None or keep.is_everything else stage(x, hw, keep, packed=True)
        return blend(x, y, scale)

    def skip(self, path: nn.Module, y: Tensor, skipped: Tensor, per_image: int | None) -> Tensor:
        """See Compute."""
        return add_packed(path, y, skipped, per_image)

    def embed(self, embed: nn.Module, edge: EdgeInput) -> Tensor:
        """See Compute."""
        x = edge.node.x
        images = None if edge.per_image is not None else images_with_kept(edge.kept)
        if images is None:
            return self._patches(embed, edge)
        if not torch.compiler.is_exporting() and not images.shape[0]:
            return x.new_zeros(x.shape[0], math.prod(map_size(edge.hw, 2)), edge.width)
        return spread_rows(self._patches(embed, edge.only(images)), images, x.shape[0])

    def _patches(self, embed: nn.Module, edge: EdgeInput) -> Tensor:
        """(B, N', C'), where something is kept of every image."""
        x, hw, kept = edge.node.x, edge.hw, edge.kept
        visible, (b, tokens) = edge.node.visible(x.dtype), kept.shape
        if tokens == 1 or edge.is_whole:
            return scaled(embed(x, hw, visible), edge.scale)
        if not isinstance(embed, TokenEmbed) or has_hooks(embed):  # who listens hears whole maps
            y = scaled(embed(x, hw, visible), edge.scale)
            return torch.where(kept.unsqueeze(-1), y, torch.zeros_like(y))
        rows = kept_rows(kept, edge.per_image)
        part = embed.packed(x, hw, rows, visible)
        return scaled(spread_rows(part, rows, b * tokens).view(b, tokens, part.shape[1]), edge.scale)


class Auto:
    """Pack an edge where little enough is kept, in this batch; else compute it densely."""

    def __init__(self) -> None:
        self.dense = Dense()
        self.packed = Packed()

    def finds_nothing(self, node: NodeState) -> bool:
        """See Compute."""
        return self.packed.finds_nothing(node)

    def row(self, stage: nn.Module, edge: EdgeInput) -> Tensor:
        """See Compute."""
        edge = edge.counted()
        below = _pack_below(edge.node.x, stage if isinstance(stage, Stage) else None)
        dense = edge.kept.shape[1] > 1 and max(below, 0) < edge.share < 1  # keeping nothing costs nothing packed
        return (self.dense if dense else self.packed).row(stage, edge)

    def skip(self, path: nn.Module, y: Tensor, skipped: Tensor, per_image: int | None) -> Tensor:
        """See Compute."""
        return self.packed.skip(path, y, skipped, per_image)

    def embed(self, embed: nn.Module, edge: EdgeInput) -> Tensor:
        """See Compute."""
        dense = edge.kept.shape[1] > 1 and PACK_BELOW <= edge.share < 1
        return (self.dense if dense else self.packed).embed(embed, edge)


def _pack_below(x: Tensor, stage: Stage | None) -> float:
    """The share of kept tokens of (B, N, C) below which a packed edge takes less time than a masked one."""
    if x.device.type != "cpu" or (stage is not None and stage.compiled):
        return PACK_BELOW
    costs = PACKING_COSTS if stage is None else stage.packing_costs
    dense = x.numel() * (1 + x.shape[2] / costs.channels)
    return min(PACK_BELOW, 1 - (costs.calls + costs.moves * x.numel()) / dense)


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


def kept_tokens(edge: EdgeInput) -> KeptTokens | None:
    """What a stage has to know about its tokens; None when images are computed whole."""
    arrived, kept, hw = edge.node.arrived(), edge.kept, edge.hw
    if kept.shape[1] == 1 and arrived is None:
        return None
    n = edge.node.x.shape[1]
    kept = kept.expand(-1, n)
    sees_kept = edge.keys == "kept"
    return KeptTokens(
        kept,
        hw,
        None if sees_kept else arrived,
        per_image=edge.per_image,
        sees_kept=sees_kept,
        lengths=edge.lengths,
        mask=edge.mask if edge.mask is not None and edge.mask.shape[1] == n else None,
    )


def _all_that_keep(keep: KeptTokens) -> list[int] | None:
    """Kept tokens of each occupied image, where the host knows."""
    return None if torch.compiler.is_exporting() else [n for n in keep.lengths if n]


def images_with_kept(kept: Tensor) -> Tensor | None:
    """(B, P) bool → the images of which something is kept, increasing; None for all of them."""
    if torch.compiler.is_exporting():
        return kept[:, 0].nonzero().squeeze(1) if kept.shape[1] == 1 else None
    images = kept.any(1).nonzero().squeeze(1)
    return None if images.shape[0] == kept.shape[0] else images
