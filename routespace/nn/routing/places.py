"""GatePlaces: where each gate of a network decides, for images of a size.

Shape legend: B images · N tokens of the edge's map (coarse tokens for a patch embedding) · P = N, or 1 where a
decision is about the whole image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from routespace.grid.gate_spec import GateSpec, gate_places
from routespace.grid.spec import map_size
from routespace.nn.packing.maps import spread
from routespace.nn.plan import Row, Step


@dataclass(frozen=True)
class GatePlaces:
    """Where one gate decides: how many decisions, and how they are laid over the tokens.

    Attributes:
        decisions: independent decisions of one image.
        hw: height and width of the map over which they are spread; (1, 1) for whole images.
        side: side of one decision's square.
        down: it decides about a patch embedding, not about a row.
        ranked: it takes the best of each image, always the same number (capacity).
        path: what it skips takes a cheap path (`gates.skipped`).
    """

    decisions: int
    hw: tuple[int, int]
    side: int
    down: bool
    ranked: bool
    path: bool = False

    def spread(self, decided: Tensor) -> Tensor:
        """(B, decisions) → (B, P)."""
        return spread(decided, self.hw, self.side)


class HasGates(Protocol):
    """A network whose gates decide somewhere."""

    def gate_places(self, image_size: tuple[int, int] | torch.Size) -> Mapping[str, GatePlaces]:
        """Edge name → where its gate decides, for images of (H, W) pixels."""


def places_of(plan: Iterable[Step], gates: GateSpec, image_size: tuple[int, int]) -> dict[str, GatePlaces]:
    """Edge name → where its gate decides, for images of (H, W) pixels."""
    found = {}
    for step in plan:
        name = step.transformer if isinstance(step, Row) else step.name
        if not step.gated or name is None:
            continue
        down = not isinstance(step, Row)
        granularity = gates.columns if down else gates.rows
        hw = map_size(image_size, step.target[1])
        whole = granularity in ("layer", "image")
        found[name] = GatePlaces(
            decisions=1 if whole else gate_places(granularity, hw, gates.window),
            hw=(1, 1) if whole else hw,
            side=gates.window if granularity == "window" else 1,
            down=down,
            ranked=gates.capacity and granularity == "token",
            path=gates.skipped != "identity" and not down,
        )
    return found
