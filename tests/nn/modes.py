"""Every way of computing a network must give the same: outputs to 1e-4, gradients to 1e-3, decisions exactly."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from routespace.grid.cost import architecture_cost
from routespace.nn.routing.routes import EdgeRoute, Routes
from routespace.nn.task_net import TaskNet
from routespace.nn.usage import UsageMeter


def outputs(net: TaskNet, images: torch.Tensor, routes: Routes | None):
    """Logits and maps as one matrix, a row an image, and the routes."""
    torch.manual_seed(1)  # stochastic depth draws alike
    out = net(images, routes=routes, features=True)
    return torch.cat([x.flatten(1) for x in (out.logits, *out.features.values())], 1), out.routes


def outcome(net: TaskNet, execution: str, images: torch.Tensor, routes: Routes | None):
    """Logits and maps, a row an image, the gradients of a loss on all of them, and the routes."""
    net.decide(execution=execution)
    net.zero_grad()
    values, taken = outputs(net, images, routes)
    if values.requires_grad:  # not where hooks or frozen parts leave nothing to learn
        values.square().sum().backward()
    grads = {k: torch.zeros_like(p) if p.grad is None else p.grad.clone() for k, p in net.named_parameters()}
    return values.detach(), grads, taken.detach()


def assert_close(values: torch.Tensor, other: torch.Tensor) -> None:
    """To 1e-4, of the greatest value where that is above 1; two of nothing are close."""
    assert values.shape == other.shape
    if values.numel():
        assert (values - other).abs().max() < 1e-4 * max(1.0, float(values.abs().max()))


def assert_same_routes(taken: Routes, other: Routes) -> None:
    assert list(taken) == list(other)
    for name, route in taken.items():
        twin = other[name]
        assert torch.equal(route.kept, twin.kept), name
        assert torch.allclose(route.counted, twin.counted, atol=1e-5), name
        assert (route.asked is None) == (twin.asked is None), name
        assert (route.asked is None) or torch.equal(route.asked, twin.asked), name
        skipped, other_skipped = (0 if one.skipped is None else one.skipped for one in (route, twin))
        assert bool(torch.as_tensor(skipped == other_skipped).all()), name


def assert_modes_agree(net: TaskNet, images: torch.Tensor, routes: Routes | None, modes=("packed", "auto")):
    values, grads, taken = outcome(net, "dense", images, routes)
    largest = max(g.norm() for g in grads.values())
    for mode in modes:
        other, other_grads, other_taken = outcome(net, mode, images, routes)
        assert_close(values, other)
        for name, grad in grads.items():  # a gradient that is all rounding has no relative error
            assert (grad - other_grads[name]).norm() < 1e-3 * grad.norm() + 1e-6 * largest + 1e-12, name
        assert_same_routes(taken, other_taken)
        with torch.no_grad():  # inference writes rows in place, where training copies
            assert_close(values, outputs(net, images, routes)[0])


def used_macs(net: TaskNet, taken: Routes, images: int) -> tuple[dict[str, list[float]], float]:
    """The usage of a pass, and the MACs of one image at it."""
    meter = UsageMeter()
    meter.update(taken, images)
    usage = meter.usage()
    macs = architecture_cost(net.architecture, gates=net.gate_spec, usage=usage).macs
    return {name: [float(share) for share in shares] for name, shares in usage.items()}, float(macs)


def assert_same_usage(net: TaskNet, images: torch.Tensor, routes: Routes | None, modes=("packed", "auto")):
    """Usage and counted MACs are alike in every mode."""
    found = []
    for mode in ("dense", *modes):
        net.decide(execution=mode)
        with torch.no_grad():
            found.append(used_macs(net, outputs(net, images, routes)[1], len(images)))
    (usage, macs), *others = found
    for other, other_macs in others:
        assert other_macs == pytest.approx(macs, rel=1e-6)
        assert other.keys() == usage.keys()
        for name, shares in usage.items():
            assert other[name] == pytest.approx(shares, abs=1e-6), name


@torch.no_grad()
def assert_alone_is_among_others(net: TaskNet, images: torch.Tensor, routes: Routes | None, modes):
    """An image's outputs and decisions do not depend on the other images of its batch."""
    for mode in modes:
        net.decide(execution=mode)
        values, taken = outputs(net, images, routes)
        for i in range(len(images)):
            alone = None if routes is None else only(routes, i)
            value, own = outputs(net, images[i : i + 1], alone)
            assert_close(values[i : i + 1], value)
            assert_same_routes(only(taken, i), own)


def only(routes: Routes, image: int) -> Routes:
    """The decisions of one image of a batch."""

    def part(mask: torch.Tensor | None) -> torch.Tensor | None:
        return None if mask is None else mask[image : image + 1]

    return Routes(
        {
            name: replace(
                route,
                kept=part(route.kept),
                counted=part(route.counted),
                chance=part(route.chance),
                asked=part(route.asked),
                value=part(route.value),
                skipped=part(route.skipped),
            )
            for name, route in routes.items()
        }
    )


def random_routes(net: TaskNet, images: torch.Tensor, shares: tuple[float, ...], seed: int) -> Routes:
    """Decisions of every gate of which each keeps one of these shares, nothing and everything among them."""
    generator = torch.Generator().manual_seed(seed)
    edges = {}
    for name, places in net.gate_places(images.shape[-2:]).items():
        share = shares[int(torch.randint(len(shares), (), generator=generator))]
        draw = torch.rand((len(images), places.decisions), generator=generator)
        kept = places.spread(draw < share)
        edges[name] = EdgeRoute.of(kept, path=places.path)
    return Routes(edges)


@contextmanager
def settled_noise() -> Iterator[None]:
    """Gates draw the same noise at every call: packed ones are not asked where nobody is, and would draw less."""

    def noise(like, *, shared):
        shape = (1, *like.shape[1:]) if shared else like.shape
        return torch.rand(shape, generator=torch.Generator().manual_seed(2)).logit(1e-7)

    with patch("routespace.nn.routing.gates.logistic_noise", noise):
        yield


def with_lively_gates(net: TaskNet) -> TaskNet:
    """Gates that open here and close there, in training and, by their EMA copies, at inference.

    What they skip takes paths that do something, where there are any.
    """
    for parameter in net.gates.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    for path in net.backbone.skips.values():
        torch.nn.init.normal_(path.last.weight, std=0.1)
        torch.nn.init.normal_(path.last.bias, std=0.1)
    for gate in net.gates.values():
        gate.update_ema(0.0)
        if gate.cut is not None:
            gate.cut.value.fill_(0.2)
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
