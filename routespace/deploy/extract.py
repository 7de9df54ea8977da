"""Taking a part of a network out: filter the weights, load them strictly into a network of their own."""

from __future__ import annotations

import torch

from routespace.errors import GridError
from routespace.grid.architecture import Architecture
from routespace.nn.route_net import RouteNet


def extract(net: RouteNet, architecture: Architecture) -> RouteNet:
    """The network of `architecture` with its own copy of `net`'s weights, same types, same device.

    It equals `net.restrict(architecture)` in every output, but shares nothing with `net`: keys of its state dict
    are a subset of the net's, and whatever happens to one leaves the other alone. The random state is untouched.

    Args:
        net: the supernet, or any network that contains the architecture.
        architecture: what to take; gated edges are allowed where `net` has the gates.

    Raises:
        GridError: `architecture` is no part of the network's.
    """
    if not net.architecture.contains(architecture):
        raise GridError(
            f"architecture: {architecture.hash} is no part of {net.architecture.hash}; it needs the same grid, "
            f"edges that exist here, and gates only where this network has them"
        )
    device = next(net.parameters()).device
    with torch.random.fork_rng(devices=[]):
        part = RouteNet(architecture, net.gate_spec, execution=net.execution)
    state, wanted = net.state_dict(), part.state_dict()
    part.load_state_dict({key: state[key].clone() for key in wanted}, strict=True, assign=True)
    part.to(device)  # buffers that are not saved
    part.temperature = net.temperature
    return part.train(net.training)
