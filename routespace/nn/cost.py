"""What one image costs in a network as it is: its gates, and the head that it really has."""

from __future__ import annotations

from routespace.grid.cost import ArchitectureCost, architecture_cost
from routespace.grid.families.base import EdgeCost
from routespace.grid.prices import cost_table
from routespace.grid.usage import Usage
from routespace.nn.heads.base import NO_COST, Head
from routespace.nn.module import unwrap
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import AnyNet, TaskNet


def network_cost(
    net: AnyNet, *, usage: Usage | None = None, image_size: tuple[int, int] | int | None = None
) -> ArchitectureCost:
    """What one image costs in a network as it is: its gates, and the head that it really has.

    Args:
        net: with or without a head, in a wrapper such as torch.compile's or not.
        usage: measured shares; everything computed without it.
        image_size: height and width in pixels, or one number, when not the spec's own.

    Raises:
        SpecError: an image size that the grid cannot take.
    """
    net = unwrap(net, wanted=(TaskNet, RouteNet))
    cost = architecture_cost(net.architecture, gates=net.gate_spec, usage=usage, image_size=image_size)
    return cost.with_head(head_cost_of(net, image_size=image_size))


def head_cost_of(net: AnyNet, *, image_size: tuple[int, int] | int | None = None) -> EdgeCost:
    """What the head that a network really has costs for one image; nothing where it has none of ours."""
    if not (isinstance(net, TaskNet) and isinstance(net.head, Head)):
        return NO_COST
    spec = net.spec if image_size is None else cost_table(net.architecture.grid, image_size).spec
    return net.head.cost(spec)
