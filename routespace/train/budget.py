"""The budget: the loss that holds what a routed pass costs to a target.

budget_loss(net, routes, macs=…)     weight·(E[MACs]/base − target)², DiT (arXiv 2308.03409) eq. 9; linear far away
BudgetLoss                           the same with a recipe's schedules, multiplier and threshold
check_budget(recipe, architecture)   whether the gates can reach it
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from routespace.checked import checked
from routespace.errors import BudgetError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.nn.module import unwrap
from routespace.nn.route_net import RouteNet
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import AnyNet, TaskNet
from routespace.train.macs import closed_macs, expected_macs, open_macs
from routespace.train.recipe.parts import BudgetSpec
from routespace.train.recipe.recipe import Recipe

FAR = 1.0  # of the base: from this distance on the loss grows linearly
MOST_EXCESS_FRAC = 0.3  # of the target: a correction beyond this would be a fault elsewhere
MOST_SHIFT = 14.0  # logits: beyond it gates are all open, or all shut


def check_budget(recipe: Recipe, architecture: Architecture) -> int | None:
    """The target of the training in MACs, or None: without a budget or gates, and where gates are not trained.

    Raises:
        BudgetError: the gates cannot reach it, or need not: it is more than everything computed takes. The message
            names the least and the most possible.
    """
    target = recipe.budget_macs()
    if target is None or architecture.is_static or recipe.train.mode == "sandwich":
        return None
    base = recipe.base_macs()
    field = "budget.macs" if recipe.budget.macs is not None else "budget.ratio"
    asked = f"{field}: {target / 1e6:.4g} MMACs ({target / base:.3f} of the {recipe.budget.of})"
    least, most = (limit(architecture, recipe.gates) for limit in (closed_macs, open_macs))
    if target < least:
        raise BudgetError(
            f"{asked} is impossible; with every gate closed this grid still takes {least / 1e6:.4g} MMACs (ratio "
            f"{least / base:.3f})"
        )
    if target > most:
        raise BudgetError(
            f"{asked} leaves nothing to save; with every gate open this grid takes {most / 1e6:.4g} MMACs (ratio "
            f"{most / base:.3f}); give less, or no budget: budget.ratio=null"
        )
    return target


def penalty(distance: Tensor) -> Tensor:
    """d² up to FAR and 2·d·FAR − FAR² beyond, for a distance in shares of the base (Huber's).

    A deep grid with open gates begins four bases away from its target. The slope of a square would outweigh the
    task's gradient several times there; of this it is the same as one base away, however deep the grid.
    """
    size = distance.abs()
    return torch.where(size <= FAR, size.square(), FAR * (2 * size - FAR))


@checked
def budget_loss(
    net: AnyNet,
    routes: Routes,
    *,
    macs: float,
    weight: float = 10.0,
    base: float | None = None,
    image_size: tuple[int, int] | None = None,
) -> Tensor:
    """weight·penalty(E[MACs]/base − macs/base), the budget of a training loop of one's own (DiT, eq. 9):

        for images, labels in batches:
            out = net(images)
            loss = F.cross_entropy(out.logits, labels) + budget_loss(net, out.routes, macs=30e6)
            loss.backward()
            optimizer.step(), optimizer.zero_grad()
            net.update_gate_ema()

    The network is in training mode. `train_recipe` has more: schedules, a threshold that is controlled, and the
    calibration of it afterwards (`calibrate_threshold`).

    Args:
        net: the network that took the decisions; in a wrapper such as DistributedDataParallel or not.
        routes: those of a batch, with the gates' gradients.
        macs: wanted of one image.
        weight: of the squared distance; beyond one base the loss grows linearly.
        base: MACs that the distance is a share of; those of the grid's plain staircase without it.
        image_size: height and width in pixels of the images; the spec's own by default.

    Returns:
        0-d tensor.

    Raises:
        BudgetError: the gates cannot reach `macs`, or it is no number.
        GridError: the grid has no plain staircase; give a base.
        SpecError: a negative weight, or a base that is no number above 0.
    """
    if not 0 <= weight < math.inf:
        raise SpecError(f"weight: {weight} is not allowed; give a number from 0 up, such as 10")
    if base is not None and not 0 < base < math.inf:
        raise SpecError(f"base: {base} is not allowed; give the MACs of one image, a number above 0")
    net = unwrap(net, wanted=(TaskNet, RouteNet))
    least = closed_macs(net.architecture, net.gate_spec)
    if not least <= macs < math.inf:
        raise BudgetError(
            f"macs: {macs / 1e6:.4g} MMACs is impossible; with every gate closed the network takes "
            f"{least / 1e6:.4g}"
        )
    if base is None:
        base = float(architecture_cost(Architecture.staircase(net.architecture.grid)).macs)
    distance = (expected_macs(net, routes, image_size=image_size) - macs) / base
    return weight * penalty(distance.float())


class BudgetLoss:
    """weight·penalty(E[MACs]/base − target), with switch-on, moving target and multiplier.

    Args:
        spec: weight, schedule and the rest.
        base: MACs that ratios are shares of.
        target: MACs to reach.

    Attributes:
        first_ratio: what was paid at the switch-on, from where a linear schedule falls; None before.
        excess_ratio: by how much validation images cost more than training images.
        multiplier: ν of the method of multipliers.
        shift: by how much the gates' threshold has been moved, in logits.
    """

    def __init__(self, spec: BudgetSpec, base: int, target: int) -> None:
        self.spec, self.base, self.target = spec, base, target
        self.first_ratio: float | None = None
        self.excess_ratio = 0.0
        self.multiplier = 0.0
        self.shift = 0.0

    def target_ratio(self, progress: float) -> float | None:
        """The ratio aimed at after a share `progress` of the training; None before the switch-on."""
        spec, final = self.spec, self.target / self.base - self.excess_ratio
        if progress < spec.warmup_frac:
            return None
        if spec.schedule == "constant" or progress >= spec.settle_frac:
            return final
        if self.first_ratio is None:
            return None
        part = (progress - spec.warmup_frac) / (spec.settle_frac - spec.warmup_frac)
        return self.first_ratio + part * (final - self.first_ratio)

    def numbers(self, progress: float) -> tuple[float | None, float]:
        """All that the loss of a step takes beside its MACs: the ratio aimed at, and the multiplier."""
        return self.target_ratio(progress), self.multiplier

    def __call__(self, macs: Tensor, progress: float) -> Tensor:
        """0-d loss of a batch's expected MACs (0-d)."""
        ratio, multiplier = self.numbers(progress)
        if ratio is None:
            return torch.zeros((), device=macs.device)
        distance = (macs / self.base - ratio).float()
        return self.spec.weight * penalty(distance) + multiplier * distance

    def update(self, macs: float, progress: float) -> None:
        """Take note of a step's expected MACs: multiplier and threshold move by their distance from the target."""
        if progress < self.spec.warmup_frac:
            return
        ratio = self.target_ratio(progress)
        if self.first_ratio is None:
            self.first_ratio = macs / self.base
        if ratio is not None and progress >= self.spec.open_frac:  # gates that are held do not answer
            distance = macs / self.base - ratio
            self.multiplier += self.spec.multiplier_lr * distance
            self.shift = max(-MOST_SHIFT, min(MOST_SHIFT, self.shift + self.spec.control * distance))

    def correct(self, trained_ratio: float, validated_ratio: float, progress: float) -> None:
        """Aim lower by what validation images cost more than an epoch's training images.

        Gates that see other photographs open more often or less; a target that is met on training images is then
        missed where it counts. An epoch in which the target still moved, or gates were held open, says nothing
        about that.
        """
        settled = self.spec.warmup_frac if self.spec.schedule == "constant" else self.spec.settle_frac
        if self.spec.correct and progress >= max(settled, self.spec.open_frac):
            most = MOST_EXCESS_FRAC * self.target / self.base
            self.excess_ratio = max(-most, min(most, validated_ratio - trained_ratio))

    def state(self) -> dict[str, float | None]:
        """What a checkpoint keeps."""
        return {
            "first_ratio": self.first_ratio,
            "excess_ratio": self.excess_ratio,
            "multiplier": self.multiplier,
            "shift": self.shift,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.first_ratio, self.multiplier = state["first_ratio"], state["multiplier"]
        self.excess_ratio, self.shift = state["excess_ratio"], state["shift"]
