"""Networks of their own with another one's weights: a part of it, or all of it for images of another size.

small = extract(net, architecture)     filter the weights, load them strictly
same = resized(net, 96)                no weight depends on the image size, so all of them are kept
"""

from __future__ import annotations

import copy

import torch

from routespace.checked import checked
from routespace.grid.architecture import Architecture
from routespace.grid.spec import GridSpec
from routespace.nn.module import unwrap
from routespace.nn.route_net import RouteNet
from routespace.nn.running import pick_device
from routespace.nn.task_net import TaskNet
from routespace.nn.weights import Net, filled


@checked
def extract(net: Net, architecture: Architecture, *, device: str | torch.device | None = None) -> Net:
    """The network of `architecture` with its own copy of `net`'s weights, in the same types.

    It equals `net.restrict(architecture)` in every output, but shares nothing with `net`: keys of its state dict
    are a subset of the net's, and whatever happens to one leaves the other alone. Its stochastic depth is the
    net's, should it be trained. The random state is untouched.

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


@checked
def resized(net: Net, image_size: tuple[int, int] | int) -> Net:
    """The same network for images of another size, with its own copy of the weights, in the same types.

    It computes what `net` computes of such images; what is told of it (MACs, architecture, examples) is of them.

    Args:
        net: any network, or a wrapper such as torch.compile's; a bare backbone gives a backbone.
        image_size: height and width in pixels, or one number for a square.

    Raises:
        SpecError: a size that the grid does not take; the module is neither a TaskNet nor a RouteNet, nor one in a
            wrapper.
    """
    net = unwrap(net, wanted=(TaskNet, RouteNet))
    spec = resized_spec(net.spec, image_size)
    made = filled(lambda: _fresh(net, spec), net.state_dict())
    return made.train(net.training)


def resized_spec(spec: GridSpec, image_size: tuple[int, int] | int) -> GridSpec:
    """The grid for images of another size, with everything checked again, such as windows that were asked for.

    Raises:
        SpecError: no such size, or one that is too small.
    """
    size = spec.at(image_size).image_size
    return GridSpec.parse(spec.model_dump(mode="json") | {"image_size": size}, families=[spec.family])


def _fresh(net: Net, spec: GridSpec | None = None) -> Net:
    """A network like the given one, with weights of its own; of another spec's image size where one is given."""
    if isinstance(net, TaskNet):
        return TaskNet(_fresh(net.backbone, spec), copy.deepcopy(net.head))
    deciding, held = net.deciding, net.deciding.held
    made = RouteNet(_in_grid(net.architecture, spec), net.gate_spec, drop_path=net.drop_path)
    return made.decide(
        temperature=deciding.temperature,
        noise=deciding.noise,
        held=None if held is None else _in_grid(held, spec),
        execution=deciding.execution,
    )


def _in_grid(architecture: Architecture, spec: GridSpec | None) -> Architecture:
    """The same edges, in another grid of the same ones."""
    return architecture if spec is None else Architecture(spec, dict(architecture.edges))
