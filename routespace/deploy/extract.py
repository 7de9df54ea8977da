"""Taking a part of a network out: filter the weights, load them strictly into a network of their own."""

from __future__ import annotations

from routespace.grid.architecture import Architecture
from routespace.nn.module import unwrap
from routespace.nn.route_net import RouteNet
from routespace.nn.weights import filled


def extract(net: RouteNet, architecture: Architecture) -> RouteNet:
    """The network of `architecture` with its own copy of `net`'s weights, same types, same device.

    It equals `net.restrict(architecture)` in every output, but shares nothing with `net`: keys of its state dict
    are a subset of the net's, and whatever happens to one leaves the other alone. The random state is untouched.

    Args:
        net: the supernet, or any network that contains the architecture, or a wrapper such as torch.compile's.
        architecture: what to take; gated edges are allowed where `net` has the gates.

    Raises:
        GridError: `architecture` is no part of the network's.
        SpecError: the module is no RouteNet, nor one in a wrapper.
    """
    net = unwrap(net, wanted=RouteNet)
    part = filled(architecture, net.gate_spec, net.restrict(architecture).state_dict())
    part.execution, part.temperature, part.noise = net.execution, net.temperature, net.noise
    return part.train(net.training)
