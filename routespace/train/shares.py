"""Shares: a budget met by construction. Each row's gate opens a share of the tokens that follows from its rate.

    shares = RowShares.of(recipe, architecture, target)     # with gates.opening: share
    net.decide(shares=shares.at(progress))

An object of area a (as a share of the image) at rate r touches about k(r) = (√a + r/side)² of the tokens: its own
side, widened by one token, as objects do not end where tokens do. The a that makes

    fixed + Σ routed(row) · min(1, k(rate)) = target

is found by bisection. Coarse rows, whose tokens are few and large, so keep more of theirs than fine ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from accelerate import Accelerator

from routespace.errors import BudgetError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.leading import gated_rows
from routespace.nn.routing.gates import Gate
from routespace.nn.task_net import TaskNet
from routespace.train.budget import MOST_EXCESS_FRAC
from routespace.train.recipe.parts import BudgetSpec
from routespace.train.recipe.recipe import Recipe

HALVINGS = 50  # of the interval of areas: beyond what a float tells
FEW = 0.03  # of a row's tokens: what is small on an image fills about as much, with all that is around it


class RowShares:
    """The shares of a training: everything while gates are held open, then a straight line down to the final ones.

    Args:
        sides: transformer edge → side of its tokens, as a share of the image's.
        routed: transformer edge → MACs of all its tokens together, by which they are above those of skipped ones.
        fixed: MACs of all else.
        target: MACs to meet; None opens the share `keep` of every row.
        keep: see `GateSpec`.
        budget: `open_frac`, until when everything is open; `settle_frac`, from when the final shares hold; and
            `correct`.

    Attributes:
        excess: by how many MACs validation images cost more than training images.
    """

    def __init__(
        self,
        sides: Mapping[str, float],
        routed: Mapping[str, int],
        *,
        fixed: float,
        target: float | None,
        keep: float,
        budget: BudgetSpec,
    ) -> None:
        self.sides, self.routed, self.fixed = dict(sides), dict(routed), fixed
        self.target, self.keep, self.budget = target, keep, budget
        self.excess = 0.0

    @classmethod
    def of(cls, recipe: Recipe, architecture: Architecture, target: float | None) -> RowShares | None:
        """Those of a recipe; None where no gate opens a share.

        Raises:
            BudgetError: patch embeddings are gated too, so that shares of rows do not fix the cost; or the budget
                leaves nothing for tokens.
        """
        gates, rows = recipe.gates, gated_rows(architecture)
        if gates.opening != "share" or not rows:
            return None
        columns = [name for name in architecture.gated_edges if name.endswith("patch_embed")]
        if columns:
            raise BudgetError(
                f"gates.opening: 'share' sets what rows cost, but {columns[0]} is gated too; take routing "
                f"'depth', or opening 'threshold'"
            )
        cost = architecture_cost(architecture, gates=gates)
        # What a token costs more where it is computed than where it is skipped: its whole price without paths.
        paths = {row.name: cost.gates[row.name].skipped_macs for row in rows}
        routed = {row.name: cost.edges[row.name].routed_macs - paths[row.name] for row in rows}
        fixed = cost.macs - sum(routed.values())
        if target is not None and target <= fixed:
            raise BudgetError(
                f"budget: {target / 1e6:.4g} MMACs leaves no tokens to gates that open a share; what each image "
                f"takes beside them is {fixed / 1e6:.4g} MMACs: give more, or take opening 'threshold'"
            )
        side_px = math.sqrt(math.prod(architecture.spec.image_size))
        return cls(
            {row.name: row.rate * (gates.window if gates.rows == "window" else 1) / side_px for row in rows},
            routed,
            fixed=fixed,
            target=target,
            keep=gates.keep,
            budget=recipe.budget,
        )

    @property
    def final(self) -> dict[str, float]:
        """Transformer edge → share of its tokens, when the shares have settled."""
        if self.target is None:
            return dict.fromkeys(self.routed, self.keep)
        return solved(self.sides, self.routed, self.target - self.excess - self.fixed)

    def lines(self) -> tuple[str, ...]:
        """What to tell before hours are spent on a budget that leaves next to nothing to choose."""
        name, share = min(self.final.items(), key=lambda one: one[1])
        if self.target is None or share >= FEW:
            return ()
        return (
            f"budget: {self.target / 1e6:.4g} MMACs lets {name} compute {share:.1%} of its tokens, as an image "
            f"takes {self.fixed / 1e6:.4g} MMACs before one is chosen; a larger budget would leave more",
        )

    @property
    def settled(self) -> float:
        """Share of the training from which the final shares hold: never while gates are still held open."""
        return max(self.budget.open_frac, self.budget.settle_frac)

    def at(self, progress: float) -> dict[str, float]:
        """Transformer edge → share to open, after a share `progress` of the training."""
        start = self.budget.open_frac
        if progress >= self.settled:
            return self.final
        part = max(0.0, progress - start) / (self.settled - start) if self.settled > start else 0.0
        return {name: 1 - (1 - share) * part for name, share in self.final.items()}

    def macs(self, progress: float) -> float:
        """MACs of one training image at the shares of that moment."""
        shares = self.at(progress)
        return self.fixed + sum(macs * shares[name] for name, macs in self.routed.items())

    def correct(self, trained: float, validated: float, progress: float) -> None:
        """Open less or more, by what validation images cost more or less than an epoch's training images (MACs).

        The same cuts let through another share of other photographs. An epoch in which the shares still moved says
        nothing about that.
        """
        if self.target is not None and self.budget.correct and progress >= self.settled:
            most = MOST_EXCESS_FRAC * self.target
            self.excess = max(-most, min(most, validated - trained))


def solved(sides: Mapping[str, float], routed: Mapping[str, int], left: float) -> dict[str, float]:
    """The share of each row that takes `left` MACs together.

    Args:
        sides: transformer edge → side of its tokens, as a share of the image's.
        routed: transformer edge → MACs of all its tokens.
        left: MACs for all of them. Less than the smallest object takes is shared out in proportion to that.
    """

    def shares(area: float) -> dict[str, float]:
        return {name: min(1.0, (math.sqrt(area) + side) ** 2) for name, side in sides.items()}

    def spent(area: float) -> float:
        return sum(routed[name] * share for name, share in shares(area).items())

    if spent(0.0) > left:
        return {name: share * max(0.0, left) / spent(0.0) for name, share in shares(0.0).items()}
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) < left else (low, middle)
    return shares(low)


@torch.no_grad()
def agree_on_cuts(nets: Iterable[TaskNet], accelerator: Accelerator) -> None:
    """Give every process the mean of all processes' running cuts, and the moving average of weights the same.

    Each process sees a part of the batch, and its quantiles are those of its part.

    Args:
        nets: the network that trains, then others that are to have its cuts.
        accelerator: knows the other processes.
    """
    first, *others = (
        [gate.cut for gate in net.gates.values() if isinstance(gate, Gate) and gate.cut] for net in nets
    )
    if accelerator.num_processes > 1 and first:
        mean = accelerator.reduce(torch.stack([cut.value for cut in first]), "mean")
        for cut, value in zip(first, mean, strict=True):
            cut.value.copy_(value)
    for cuts in others:
        for cut, own in zip(cuts, first, strict=True):
            cut.value.copy_(own.value)
