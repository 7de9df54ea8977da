"""Taking a part of a network out: filter the weights, load them strictly into a network of their own."""

from __future__ import annotations

import copy

import torch

from routespace.grid.architecture import Architecture
from routespace.nn.module import unwrap
from routespace.nn.route_net import RouteNet
from routespace.nn.running import pick_device
from routespace.nn.task_net import TaskNet
from routespace.nn.weights import Net, filled


def extract(net: Net, architecture: Architecture, *, device: str | torch.device | None = None) -> Net:
    """The network of `architecture` with its own copy of `net`'s weights, in the same types.

    It equals `net.restrict(architecture)` in every output, but shares nothing with `net`: keys of its state dict
    are a subset of the net's, and whatever happens to one leaves the other alone. The random state is untouched.

    Args:
        net: the supernet, or any network that contains the architecture, or a wrapper such as torch.compile's; a
            bare backbone gives a backbone.
        architecture: what to take; gated edges are allowed where `net` has the gates.
        device: where the part shall be; None for the net's own device.

    Raises:
        GridError: `architecture` is no part of the network's.
        SpecError: the module is neither a TaskNet nor a RouteNet, nor one in a wrapper; or no such device.
    """
    net = unwrap(net, wanted=(TaskNet, RouteNet))
    part = net.restrict(architecture)
    made = filled(lambda: _fresh(part), part.state_dict())
    if device is not None:
        made.to(pick_device(device))
    return made.train(net.training)


def _fresh(net: Net) -> Net:
    """A network like the given one, with weights of its own."""
    if isinstance(net, TaskNet):
        return TaskNet(_fresh(net.backbone), copy.deepcopy(net.head))
    made = RouteNet(net.architecture, net.gate_spec)
    deciding = net.deciding
    return made.decide(
        temperature=deciding.temperature, noise=deciding.noise, held=deciding.held, execution=deciding.execution
    )
