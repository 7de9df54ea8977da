"""Every way of computing a network must give the same: outputs to 1e-4, gradients to 1e-3, decisions exactly."""

import torch

from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import TaskNet


def outcome(net: TaskNet, execution: str, images: torch.Tensor, routes: Routes):
    """Logits and maps as one vector, the gradients of a loss on all of them, and the routes."""
    net.execution = execution
    net.zero_grad()
    torch.manual_seed(1)  # stochastic depth draws alike
    out = net(images, routes=routes, features=True)
    values = torch.cat([out.logits.flatten(), *(x.flatten() for x in out.features.values())])
    values.square().sum().backward()
    grads = {k: torch.zeros_like(p) if p.grad is None else p.grad.clone() for k, p in net.named_parameters()}
    return values.detach(), grads, out.routes


def assert_modes_agree(net: TaskNet, images: torch.Tensor, routes: Routes, modes=("packed", "auto")):
    values, grads, taken = outcome(net, "dense", images, routes)
    largest = max(g.norm() for g in grads.values())
    for mode in modes:
        other, other_grads, other_taken = outcome(net, mode, images, routes)
        assert (values - other).abs().max() < 1e-4
        for name, grad in grads.items():  # a gradient that is all rounding has no relative error
            assert (grad - other_grads[name]).norm() < 1e-3 * grad.norm() + 1e-6 * largest, name
        for name, route in taken.items():
            assert torch.equal(route.kept, other_taken[name].kept)
            assert torch.equal(route.counted, other_taken[name].counted)
            assert (route.asked is None) or torch.equal(route.asked, other_taken[name].asked)
        torch.manual_seed(1)
        with torch.no_grad():  # inference writes rows in place, where training copies
            assert (net(images, routes=routes).logits.flatten() - values[: len(images) * 5]).abs().max() < 1e-4


def with_lively_gates(net: TaskNet) -> TaskNet:
    """Gates that open here and close there, in training and, by their EMA copies, at inference."""
    for parameter in net.gates.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    for gate in net.gates.values():
        gate.update_ema(0.0)
    return net


def assert_replays(net: TaskNet, images: torch.Tensor, *, atol: float) -> Routes:
    """Its own decisions, recorded, give the same output and the same routes; returns them."""
    out = net(images)
    again = net(images, routes=out.routes.detach())
    assert torch.allclose(out.logits, again.logits, atol=atol)
    for name, route in out.routes.items():
        assert torch.equal(route.kept, again.routes[name].kept)
        assert torch.equal(route.counted, again.routes[name].counted)
    return out.routes
