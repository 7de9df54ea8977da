"""What a routed pass costs, in MACs of one image.

    expected_macs(net, routes)       of one batch, differentiable, from the decisions that the gates took
    counted_macs(net, usage)         from measured usage, as floats
    metered_macs(net, meter)         the same for images of several sizes
    size_factor(net, size)           from MACs at a size to MACs at the grid's own
    closed_macs, open_macs           what the gates can reach

The budget's loss sees hard samples of the gates (straight-through), so its expected cost is a mean of costs that
were really paid, not a product of probabilities.

A budget is about an image of the grid's size. What images of other sizes cost is told as a share of what the whole
network costs at their size, and that share counts: a smaller photograph saves nothing.

Shape legend: E edges that have a price.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from routespace.grid.architecture import Architecture
from routespace.grid.cost import ArchitectureCost, architecture_cost, measured_cost
from routespace.grid.families.base import EdgeCost
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import Node
from routespace.grid.resources import NO_GATE, RESOURCES, Terms
from routespace.grid.usage import ALL_USED, EdgeUsage, SizedUsage, Usage
from routespace.nn.cost import head_cost_of
from routespace.nn.heads.base import NO_COST
from routespace.nn.plan import Row, compile_plan
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import AnyNet, TaskNet
from routespace.nn.usage import UsageMeter

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
    with torch.inference_mode(False):  # who asks first may be looking only, and who asks next may be training
        columns = torch.tensor(terms, dtype=torch.float64, device=device).view(-1, len(Terms._fields)).unbind(1)
        none, every = (torch.full((), number, device=device) for number in (0.0, 1.0))
    return Prices(names, Terms(*columns), float(constant), none, every)


def expected_macs(net: AnyNet, routes: Routes, *, image_size: tuple[int, int] | None = None) -> Tensor:
    """MACs of one image of the grid's size, averaged over a batch, from the decisions taken in it.

    Args:
        net: the network that took them.
        routes: its decisions; in training they carry the gates' gradients.
        image_size: height and width in pixels of the batch's images; the spec's own by default. See `size_factor`.

    Returns:
        0-d float64 tensor.
    """
    device = next(net.parameters()).device
    size = None if image_size is None or image_size == net.spec.image_size else image_size
    table = prices(net.architecture, _cost_relevant(net.gate_spec), device, size)
    usage = routes.usage()
    shares = [usage.get(name, ALL_USED) for name in table.names]
    columns = (table.column([share[part] for share in shares]) for part in range(len(EdgeUsage._fields)))
    spent: Tensor = table.macs.used(EdgeUsage(*columns))
    found: Tensor = spent.sum() + (table.constant + budgeted_head(net, image_size=size).macs)
    return found if size is None else found * size_factor(net, size)


def counted_macs(net: AnyNet, usage: Usage, *, image_size: tuple[int, int] | None = None) -> float:
    """MACs of one image at the measured usage, as a budget counts them; edges not in it computed everything."""
    cost = architecture_cost(net.architecture, gates=net.gate_spec, usage=usage, image_size=image_size)
    return float(cost.with_head(budgeted_head(net, image_size=image_size)).macs)


def metered_macs(net: AnyNet, meter: UsageMeter) -> float:
    """MACs of one image of the grid's size, averaged over what a meter saw; see `measured_cost`."""
    return budgeted_cost(net, meter.by_size(net.spec.image_size)).macs


def budgeted_cost(net: AnyNet, parts: Sequence[SizedUsage], *, as_fed: bool = False) -> ArchitectureCost:
    """What one image takes of what a budget counts, from measured usage; see `measured_cost`."""
    head_at = partial(_head_at, net)
    return measured_cost(net.architecture, parts, gates=net.gate_spec, head_at=head_at, as_fed=as_fed)


def _head_at(net: AnyNet, size: tuple[int, int] | None) -> EdgeCost:
    return budgeted_head(net, image_size=size)


def size_factor(net: AnyNet, size: tuple[int, int]) -> float:
    """MACs of the whole network for an image of the grid's size, over those for one of (H, W) pixels."""
    return counted_macs(net, {}) / counted_macs(net, {}, image_size=size)


def budgeted_head(net: AnyNet, *, image_size: tuple[int, int] | None = None) -> EdgeCost:
    """What of a network's head a budget counts: a classifier, and nothing of the heads of dense tasks."""
    counts = isinstance(net, TaskNet) and net.head.budgeted
    return head_cost_of(net, image_size=image_size) if counts else NO_COST


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
                shut = UNUSED._replace(asked=int(active), skipped=int(active and step.gated))
                usage[step.transformer] = ALL_USED if open_here else shut
            continue
        stranded = step.last_chance and not any(node in going for node in step.spared_by)
        taken = here and (not step.gated or stranded)
        usage[step.name] = EdgeUsage(tokens=int(taken), images=int(taken), asked=int(here))
        if taken:
            arrive(step.target, True)
    return float(architecture_cost(architecture, gates=gates, usage=usage).macs)
