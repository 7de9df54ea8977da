"""The budget: what a routed pass costs, and the loss that holds it to a target.

    expected_macs(net, routes)       of one batch, differentiable, from the decisions that the gates took
    counted_macs(net, usage)         from measured usage, as floats
    BudgetLoss                       weight·(E[MACs]/base − target)², DiT (arXiv 2308.03409) eq. 9
    closed_macs, open_macs            what the gates can reach

The loss sees hard samples of the gates (straight-through), so its expected cost is a mean of costs that were
really paid, not a product of probabilities.

Shape legend: E edges that have a price.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from routespace.errors import BudgetError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import Node
from routespace.grid.resources import NO_GATE, RESOURCES, Terms
from routespace.grid.usage import ALL_USED, EdgeUsage, Usage
from routespace.nn.plan import Row, compile_plan
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import AnyNet, head_cost_of, network_cost
from routespace.nn.usage import SAME_SIZE, UsageMeter
from routespace.train.recipe.parts import BudgetSpec
from routespace.train.recipe.recipe import Recipe

MOST_EXCESS_FRAC = 0.3  # of the target: a correction beyond this would be a fault elsewhere
MOST_SHIFT = 14.0  # logits: beyond it gates are all open, or all shut
UNUSED = EdgeUsage(tokens=0, images=0, asked=0)


@dataclass(frozen=True)
class Prices:
    """Prices of an architecture as float64 tensors on a device.

    Attributes:
        names: the E edges, in the grid's order, without identities.
        macs: (E,) MACs of each edge with its gate, by what has to run for them.
        constant: stem and outputs.
        none, all: 0-d 0 and 1, for shares that are known without asking the network.
    """

    names: tuple[str, ...]
    macs: Terms[Tensor]
    constant: float
    none: Tensor
    all: Tensor

    def column(self, shares: Sequence[object]) -> Tensor:
        """(E,) of shares, one 0-d tensor or 0 or 1 for each edge. No number is copied to the device."""
        parts = [share if isinstance(share, Tensor) else self.all if share else self.none for share in shares]
        return torch.stack(parts).double()


@lru_cache(maxsize=256)
def prices(
    architecture: Architecture, gates: GateSpec, device: torch.device, image_size: tuple[int, int] | None = None
) -> Prices:
    """The prices of an architecture at an image size, made once."""
    cost = architecture_cost(architecture, gates=gates, image_size=image_size)
    names = tuple(name for name, price in cost.edges.items() if price.macs)

    constant = cost.stem.macs + sum(price.macs for price in cost.outputs.values())
    terms = [RESOURCES["macs"].terms_of(cost.edges[name], cost.gates.get(name, NO_GATE)) for name in names]
    columns = torch.tensor(terms, dtype=torch.float64, device=device).view(-1, len(Terms._fields)).unbind(1)
    none, every = (torch.full((), number, device=device) for number in (0.0, 1.0))
    return Prices(names, Terms(*columns), float(constant), none, every)


def expected_macs(net: AnyNet, routes: Routes, *, image_size: tuple[int, int] | None = None) -> Tensor:
    """MACs of one image, averaged over a batch, from the decisions taken in it.

    Args:
        net: the network that took them.
        routes: its decisions; in training they carry the gates' gradients.
        image_size: height and width in pixels of the batch's images; the spec's own by default.

    Returns:
        0-d float64 tensor.
    """
    device = next(net.parameters()).device
    size = None if image_size is None or image_size == net.spec.image_size else image_size
    table = prices(net.architecture, _cost_relevant(net.gate_spec), device, size)
    usage = routes.usage()
    shares = [usage.get(name, ALL_USED) for name in table.names]
    tokens, images, asked = (table.column([share[part] for share in shares]) for part in range(3))
    spent: Tensor = table.macs.used(EdgeUsage(tokens, images, asked))
    return spent.sum() + (table.constant + head_cost_of(net, image_size=size).macs)


def counted_macs(net: AnyNet, usage: Usage, *, image_size: tuple[int, int] | None = None) -> float:
    """MACs of one image at the measured usage; edges that are not in it computed everything."""
    return float(network_cost(net, usage=usage, image_size=image_size).macs)


def metered_macs(net: AnyNet, meter: UsageMeter) -> float:
    """MACs of one image, averaged over what a meter saw, each image priced at its own size."""
    costs = (
        images * counted_macs(net, usage, image_size=None if size == SAME_SIZE else size)
        for size, (images, usage) in meter.by_size().items()
    )
    return sum(costs) / meter.images


def _cost_relevant(gates: GateSpec) -> GateSpec:
    """The spec without its threshold, which moves but costs nothing: one entry in the table of prices."""
    return gates.model_copy(update={"threshold": None})


def open_macs(architecture: Architecture, gates: GateSpec) -> float:
    """MACs with every gate open."""
    return float(architecture_cost(architecture, gates=gates).macs)


def closed_macs(architecture: Architecture, gates: GateSpec) -> float:
    """MACs with every gate closed: rows pass, images go down at the last chance, open edges run where reached.

    With early stopping a row's first closed gate is the last that is asked there, until a patch embedding
    refreshes its tokens.
    """
    going = {architecture.grid.stem: True}  # reached nodes, and whether their tokens have not stopped
    usage: dict[str, EdgeUsage] = {}

    def arrive(node: Node, active: bool) -> None:
        going[node] = going.get(node, False) or active

    for step in compile_plan(architecture):
        here, active = step.source in going, going.get(step.source, False)
        if isinstance(step, Row):
            if here:
                arrive(step.target, active and not (step.gated and gates.early_stop))
            if step.transformer is not None:
                open_here = here and not step.gated
                usage[step.transformer] = ALL_USED if open_here else UNUSED._replace(asked=int(active))
            continue
        stranded = step.last_chance and not any(node in going for node in step.spared_by)
        taken = here and (not step.gated or stranded)
        usage[step.name] = EdgeUsage(tokens=int(taken), images=int(taken), asked=int(here))
        if taken:
            arrive(step.target, True)
    return float(architecture_cost(architecture, gates=gates, usage=usage).macs)


def check_budget(recipe: Recipe, architecture: Architecture) -> int | None:
    """The target in MACs, or None.

    Raises:
        BudgetError: the gates cannot reach it, or need not: it is more than everything computed takes. The message
            names the least and the most possible.
    """
    target = recipe.budget_macs()
    if target is None or architecture.is_static:
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


class BudgetLoss:
    """weight·(E[MACs]/base − target)², with switch-on, moving target and multiplier.

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

    def __call__(self, macs: Tensor, progress: float) -> Tensor:
        """0-d loss of a batch's expected MACs (0-d)."""
        ratio = self.target_ratio(progress)
        if ratio is None:
            return torch.zeros((), device=macs.device)
        distance = (macs / self.base - ratio).float()
        return self.spec.weight * distance.square() + self.multiplier * distance

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
        missed where it counts. An epoch in which the target still moved says nothing about that.
        """
        settled = self.spec.warmup_frac if self.spec.schedule == "constant" else self.spec.settle_frac
        if self.spec.correct and progress >= settled:
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

    def load_state(self, state: dict[str, float]) -> None:
        """Go on from what `state` gave."""
        self.first_ratio, self.multiplier = state["first_ratio"], state["multiplier"]
        self.excess_ratio, self.shift = state["excess_ratio"], state["shift"]
