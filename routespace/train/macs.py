"""What a routed pass costs, in MACs of one image.

    expected_macs(net, routes)       of one batch, differentiable, from the decisions that the gates took
    counted_macs(net, usage)         from measured usage, as floats
    metered_macs(net, meter)         the same for images of several sizes
    closed_macs, open_macs           what the gates can reach

The budget's loss sees hard samples of the gates (straight-through), so its expected cost is a mean of costs that
were really paid, not a product of probabilities.

Shape legend: E edges that have a price.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

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
