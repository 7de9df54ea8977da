"""How a training meets its budget: by a loss on expected MACs, or by shares of tokens that each row opens.

spending = Spending(recipe, architecture, target)
spending.loss                        what StepLoss adds to the task's loss, or None
spending.opened(progress)            the share of tokens that each row opens, or None
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator

from routespace.grid.architecture import Architecture
from routespace.nn.routing.gates import threshold_logit
from routespace.nn.task_net import TaskNet
from routespace.train.budget import BudgetLoss
from routespace.train.calibrate import set_threshold
from routespace.train.recipe.recipe import Recipe
from routespace.train.shares import RowShares, agree_on_cuts


class Spending:
    """A budget while it is trained for.

    Args:
        recipe: budget and gates of a phase.
        architecture: whose gates spend it, priced at the phase's image size.
        target_macs: the budget, or None.
        base_macs: that ratios are relative to; None for the recipe's own. Both are of an image of the network's
            size, as are all MACs that are told.
        held: whether gates decide nothing.

    Attributes:
        base_macs: MACs that ratios are relative to.
        shares: where gates open shares, else None.
        loss: where there is a budget and no shares, else None.
    """

    def __init__(
        self,
        recipe: Recipe,
        architecture: Architecture,
        target_macs: int | None,
        *,
        base_macs: int | None = None,
        held: bool = False,
    ) -> None:
        own = recipe.base_macs()
        self.base_macs, self._gates = own if base_macs is None else base_macs, recipe.gates
        self._size = own / self.base_macs  # from MACs of an image of the network's size to those of the phase's
        target = None if target_macs is None else target_macs * self._size
        self.shares = None if held else RowShares.of(recipe, architecture, target)
        self.loss: BudgetLoss | None = None
        if target_macs is not None and self.shares is None:
            self.loss = BudgetLoss(recipe.budget, self.base_macs, target_macs)

    def opened(self, progress: float) -> dict[str, float] | None:
        """Transformer edge → share of its tokens to open, after a share `progress` of the training."""
        return self.shares.at(progress) if self.shares is not None else None

    def target_ratio(self, progress: float) -> float | None:
        """What is aimed at then, as a multiple of the base; None without a target."""
        if self.shares is not None:
            return self.shares.macs(progress) / (self.base_macs * self._size)
        return self.loss.target_ratio(progress) if self.loss is not None else None

    def agree(self, nets: Sequence[TaskNet], accelerator: Accelerator) -> None:
        """After a step: the same cuts in every process, and in the averaged network."""
        if self.shares is not None:
            agree_on_cuts(nets, accelerator)

    def update(self, nets: Sequence[TaskNet], macs: float, progress: float) -> None:
        """After a step that took so many MACs an image: move what the loss controls."""
        if self.loss is not None:
            self.loss.update(macs, progress)
            self._move_threshold(nets)

    def correct(self, trained: float, validated: float, began: float) -> None:
        """After an epoch: MACs of its training images and of validation images, and where it began.

        It is judged by where it began: the target must not have moved in it.
        """
        if self.loss is not None:
            self.loss.correct(trained / self.base_macs, validated / self.base_macs, began)
        if self.shares is not None:
            self.shares.correct(trained * self._size, validated * self._size, began)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "budget": self.loss.state() if self.loss is not None else None,
            "excess_macs": self.shares.excess if self.shares is not None else None,
        }

    def follow(self, nets: Sequence[TaskNet], former: Spending) -> None:
        """Go on where the spending of the phase before stood; what validation costs is another thing here."""
        if self.loss is not None and former.loss is not None:
            self.loss.load_state(former.loss.state() | {"excess_ratio": 0.0})
            self._move_threshold(nets)

    def load_state(self, nets: Sequence[TaskNet], state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        if self.loss is not None:
            self.loss.load_state(state["budget"])
            self._move_threshold(nets)
        if self.shares is not None:
            self.shares.excess = state["excess_macs"]

    def _move_threshold(self, nets: Sequence[TaskNet]) -> None:
        """Put the gates' threshold where the budget has moved it."""
        if self.loss is None or not self.loss.spec.control:
            return
        for net in nets:
            set_threshold(net, threshold_logit(self._gates.open_above) + self.loss.shift)
