"""NodeState: a node of the grid while a network runs.

Nodes sum what enters them; a token that nobody sent is zero, is not computed by anyone, and costs nothing.

Shape legend: B images · N tokens of a map · P = N, or 1 where a mask is about whole images · C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


class NodeState:
    """A node's map and which of its tokens are there.

    Attributes:
        x: (B, N, C), zero where nothing arrived.
        reach: (B, P) floats, positive where something arrived, with the gates' gradient; None: everywhere.
        active: (B, P) bool, tokens that have not stopped (early stopping); None: everywhere.
        count: how many of the P are there in every image, where that is known without asking the device.
    """

    __slots__ = ("active", "count", "reach", "x")

    def __init__(
        self, x: Tensor, reach: Tensor | None = None, active: Tensor | None = None, count: int | None = None
    ) -> None:
        self.x = x
        self.reach = reach
        self.active = active
        self.count = count

    def mask(self, dtype: torch.dtype) -> Tensor | float:
        """(B, P, 1) of what arrived, or 1.0."""
        return 1.0 if self.is_whole or self.reach is None else (self.reach > 0).to(dtype).unsqueeze(-1)

    def unstopped(self) -> NodeState:
        """The same for an edge that asks no gate: it computes all that arrived, also what has stopped."""
        return NodeState(self.x, self.reach, count=self.count)

    def undecided(self) -> Tensor | None:
        """(B, P) bool of the tokens that a gate can decide about: arrived and not stopped; None for all."""
        if self.reach is None or self.active is None:
            return self.active if self.reach is None else self.reach > 0
        return (self.reach > 0) & self.active

    @property
    def is_whole(self) -> bool:
        """Whether every token of every image is there, as far as the host knows."""
        return self.reach is None or self.count == self.reach.shape[1]

    def arrived(self) -> Tensor | None:
        """(B, N) bool of the tokens that arrived; None for all, and when images are there whole or not at all."""
        return None if self.reach is None or self.is_whole or self.reach.shape[1] == 1 else self.reach > 0

    def visible(self, dtype: torch.dtype) -> Tensor | None:
        """(B, N, 1) of the tokens that arrived; None for all, and when images are there whole or not at all."""
        arrived = self.arrived()
        return None if arrived is None else arrived.to(dtype).unsqueeze(-1)

    def plus(self, other: NodeState) -> NodeState:
        """The element-wise sum of two arrivals at one node; nobody counts which tokens both brought in part."""
        reach = None
        if self.reach is not None and other.reach is not None:
            reach = 1 - (1 - self.reach) * (1 - other.reach)
        active = None
        if self.active is not None and other.active is not None:
            active = self.active | other.active
        count = reach.shape[1] if reach is not None and (self.is_whole or other.is_whole) else None
        return NodeState(self.x + other.x, reach, active, count)
