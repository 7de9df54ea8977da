"""Computing one edge for the tokens that were kept: `Dense`, the reference, `Packed`, and `Auto`, either.

    Dense    computes everything and masks. No shape depends on a decision, so it can be exported and traced.
    Packed   computes what was kept: images of which something was kept, then of these the kept tokens.
    Auto     packs an edge where less than PACK_BELOW of its tokens are kept in this batch.

Shape legend: B images · N tokens of a map · P = N, or 1 where a mask is about whole images · C channels.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from routespace.nn.packing import Keep
from routespace.nn.place import Place
from routespace.nn.rows import spread_rows, take
from routespace.nn.stage import TokenEmbed

Execution = Literal["dense", "packed", "auto"]
Keys = Literal["all", "kept"]
PACK_BELOW = 0.9  # share of kept tokens from which on moving rows costs more than it saves


class Compute(Protocol):
    """A way to compute edges of which only some tokens or images were kept."""

    def absent(self, here: Place) -> bool:
        """True when nothing of a node is there to be computed, so that its gates need not be asked."""

    def row(
        self,
        stage: nn.Module,
        hw: tuple[int, int],
        here: Place,
        kept: Tensor,
        *,
        scale: Tensor | None,
        keys: Keys,
        per_image: int | None = None,
    ) -> Tensor:
        """(B, N, C): scale·T(x) + (1 − scale)·x at kept tokens (scale None: T(x)), x elsewhere.

        `per_image` is the number of kept tokens of every image where the selection makes them equal.
        """

    def embed(
        self,
        embed: nn.Module,
        hw: tuple[int, int],
        here: Place,
        kept: Tensor,
        *,
        scale: Tensor | None,
        width: int,
    ) -> Tensor:
        """(B, N', C'): scale·P(x) at kept coarse tokens (scale None: P(x)), zero elsewhere; `width` is C'."""


class Dense:
    """Compute everything and mask."""

    def absent(self, here: Place) -> bool:
        """See Compute; a dense pass never looks."""
        return False

    def row(
        self,
        stage: nn.Module,
        hw: tuple[int, int],
        here: Place,
        kept: Tensor,
        *,
        scale: Tensor | None,
        keys: Keys,
        per_image: int | None = None,
    ) -> Tensor:
        """See Compute."""
        x = here.x
        y = stage(x, hw, keep_of(here, kept, hw, keys))
        if scale is not None:
            y = torch.lerp(x, y, scale.unsqueeze(-1).to(x.dtype))
        return torch.where(kept.unsqueeze(-1), y, x)

    def embed(
        self,
        embed: nn.Module,
        hw: tuple[int, int],
        here: Place,
        kept: Tensor,
        *,
        scale: Tensor | None,
        width: int,
    ) -> Tensor:
        """See Compute."""
        y = embed(here.x, hw, here.visible(here.x.dtype))
        if scale is not None:
            y = y * scale.unsqueeze(-1).to(y.dtype)
        return torch.where(kept.unsqueeze(-1), y, torch.zeros_like(y))


class Packed:
    """Compute the kept tokens of the whole batch, and nothing for images of which nothing was kept."""

    def absent(self, here: Place) -> bool:
        """See Compute."""
        if torch.compiler.is_exporting():
            return False
        there = here.there()
        return there is not None and not bool(there.any())

    def row(
        self,
        stage: nn.Module,
        hw: tuple[int, int],
        here: Place,
        kept: Tensor,
        *,
        scale: Tensor | None,
        keys: Keys,
        per_image: int | None = None,
    ) -> Tensor:
        """See Compute."""
        x = here.x
        keep = keep_of(here, kept, hw, keys, per_image)
        images = _chosen(kept) if keep is None else keep.occupied
        if images is not None:
            if not images.shape[0] and not torch.compiler.is_exporting():
                return x
            part = None if scale is None else scale.index_select(0, images)
            chosen = None if keep is None else keep.only(images)
            return x.index_copy(0, images, self._rows(stage, hw, take(x, images), chosen, part))
        return self._rows(stage, hw, x, keep, scale)

    def _rows(
        self, stage: nn.Module, hw: tuple[int, int], x: Tensor, keep: Keep | None, scale: Tensor | None
    ) -> Tensor:
        """All images of x, each with something kept."""
        y = stage(x, hw) if keep is None or keep.is_everything else stage(x, hw, keep, packed=True)
        return y if scale is None else torch.lerp(x, y, scale.unsqueeze(-1).to(x.dtype))

    def embed(
        self,
        embed: nn.Module,
        hw: tuple[int, int],
        here: Place,
        kept: Tensor,
        *,
        scale: Tensor | None,
        width: int,
    ) -> Tensor:
        """See Compute."""
        x, visible = here.x, here.visible(here.x.dtype)
        images = _chosen(kept)
        if images is None:
            return self._patches(embed, hw, x, kept, visible, scale)
        b = x.shape[0]
        if not images.shape[0] and not torch.compiler.is_exporting():
            return x.new_zeros(b, -(-hw[0] // 2) * -(-hw[1] // 2), width)
        visible, scale = (None if part is None else part.index_select(0, images) for part in (visible, scale))
        y = self._patches(embed, hw, take(x, images), kept.index_select(0, images), visible, scale)
        return spread_rows(y, images, b)

    def _patches(
        self,
        embed: nn.Module,
        hw: tuple[int, int],
        x: Tensor,
        kept: Tensor,
        visible: Tensor | None,
        scale: Tensor | None,
    ) -> Tensor:
        """All images of x, each with something kept."""
        if kept.shape[1] == 1:
            y = embed(x, hw, visible)
            return y if scale is None else y * scale.unsqueeze(-1).to(y.dtype)
        b, tokens = kept.shape
        if isinstance(embed, TokenEmbed):
            rows = kept.flatten().nonzero().squeeze(1)
            y = spread_rows(embed.packed(x, hw, kept, visible), rows, b * tokens).view(b, tokens, -1)
        else:
            y = embed(x, hw, visible)
            y = torch.where(kept.unsqueeze(-1), y, torch.zeros_like(y))
        return y if scale is None else y * scale.unsqueeze(-1).to(y.dtype)


class Auto:
    """Pack an edge where little enough is kept, in this batch; else compute it densely."""

    def __init__(self) -> None:
        self.dense = Dense()
        self.packed = Packed()

    def absent(self, here: Place) -> bool:
        """See Compute."""
        return self.packed.absent(here)

    def row(
        self,
        stage: nn.Module,
        hw: tuple[int, int],
        here: Place,
        kept: Tensor,
        *,
        scale: Tensor | None,
        keys: Keys,
        per_image: int | None = None,
    ) -> Tensor:
        """See Compute."""
        share = float(kept.float().mean()) if per_image is None else per_image / kept.shape[1]
        way = self.dense if kept.shape[1] > 1 and PACK_BELOW <= share < 1 else self.packed
        return way.row(stage, hw, here, kept, scale=scale, keys=keys, per_image=per_image)

    def embed(
        self,
        embed: nn.Module,
        hw: tuple[int, int],
        here: Place,
        kept: Tensor,
        *,
        scale: Tensor | None,
        width: int,
    ) -> Tensor:
        """See Compute."""
        tokens = kept.shape[1] > 1 and float(kept.float().mean()) >= PACK_BELOW
        way = self.dense if tokens else self.packed
        return way.embed(embed, hw, here, kept, scale=scale, width=width)


def make_compute(execution: Execution) -> Compute:
    """The way of computing that a mode names; `auto` has nothing to measure in an export, which is dense."""
    if execution == "packed":
        return Packed()
    return Dense() if execution == "dense" or torch.compiler.is_exporting() else Auto()


def keep_of(
    here: Place, kept: Tensor, hw: tuple[int, int], keys: Keys, per_image: int | None = None
) -> Keep | None:
    """What a stage has to know about its tokens; None when images are computed whole."""
    partial = here.reach is not None and here.reach.shape[1] > 1
    if kept.shape[1] == 1 and not partial:
        return None
    n = here.x.shape[1]
    kept = kept.expand(-1, n)
    if keys == "kept":
        return Keep(kept, hw, kept, per_image)
    visible = (here.reach > 0).expand(-1, n) if partial and here.reach is not None else None
    return Keep(kept, hw, visible, per_image)


def _chosen(kept: Tensor) -> Tensor | None:
    """(B, P) bool → the images of which something is kept, increasing; None for all of them."""
    if torch.compiler.is_exporting():
        return kept[:, 0].nonzero().squeeze(1) if kept.shape[1] == 1 else None
    images = kept.any(1).nonzero().squeeze(1)
    return None if images.shape[0] == kept.shape[0] else images
