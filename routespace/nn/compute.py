"""Computing one edge for the tokens that were kept: `Dense`, the reference.

Shape legend: B images · N tokens of a map · P = N, or 1 where a mask is about whole images · C channels.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from routespace.nn.packing import Keep
from routespace.nn.place import Place


class Compute(Protocol):
    """A way to compute edges of which only some tokens or images were kept."""

    def row(
        self,
        stage: nn.Module,
        hw: tuple[int, int],
        here: Place,
        kept: Tensor,
        *,
        scale: Tensor | None,
        keys: Literal["all", "kept"],
    ) -> Tensor:
        """(B, N, C): scale·T(x) + (1 − scale)·x at kept tokens (scale None: T(x)), x elsewhere."""

    def embed(
        self, embed: nn.Module, hw: tuple[int, int], here: Place, kept: Tensor, *, scale: Tensor | None
    ) -> Tensor:
        """(B, N', C'): scale·P(x) at kept coarse tokens (scale None: P(x)), zero elsewhere."""


class Dense:
    """Compute everything and mask."""

    def row(
        self,
        stage: nn.Module,
        hw: tuple[int, int],
        here: Place,
        kept: Tensor,
        *,
        scale: Tensor | None,
        keys: Literal["all", "kept"],
    ) -> Tensor:
        """See Compute."""
        x = here.x
        y = stage(x, hw, keep_of(here, kept, hw, keys))
        if scale is not None:
            factor = scale.unsqueeze(-1).to(x.dtype)
            y = y * factor + x * (1 - factor)
        return torch.where(kept.unsqueeze(-1), y, x)

    def embed(
        self, embed: nn.Module, hw: tuple[int, int], here: Place, kept: Tensor, *, scale: Tensor | None
    ) -> Tensor:
        """See Compute."""
        y = embed(here.x, hw, here.visible(here.x.dtype))
        if scale is not None:
            y = y * scale.unsqueeze(-1).to(y.dtype)
        return torch.where(kept.unsqueeze(-1), y, torch.zeros_like(y))


def keep_of(here: Place, kept: Tensor, hw: tuple[int, int], keys: Literal["all", "kept"]) -> Keep | None:
    """What a stage has to know about its tokens; None when images are computed whole."""
    partial = here.reach is not None and here.reach.shape[1] > 1
    if kept.shape[1] == 1 and not partial:
        return None
    n = here.x.shape[1]
    visible = kept if keys == "kept" else (here.reach > 0 if partial and here.reach is not None else None)
    return Keep(kept.expand(-1, n), hw, None if visible is None else visible.expand(-1, n))
