"""Whoever listens to a part of a network is heard in every execution: Grad-CAM, activation statistics, probes."""

import pytest
import torch
from thinning import thinned
from tiny_grid import TINY_GRID
from torch import nn

from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import TaskNet

FAMILIES = {"pvt_v2": {}, "swin_v2": {"family": "swin_v2", "window": 4, "sr_ratios": None}}
ROW, EMBED = "l00_r04_transformer", "l00_r04_patch_embed"
PARTS = {
    "edge": (ROW, ""),
    "first block": (ROW, "blocks.0"),
    "last block": (ROW, "blocks.1"),
    "attention": (ROW, "blocks.0.attn"),
    "feed-forward": (ROW, "blocks.1.mlp"),
    "norm": (ROW, "blocks.0.norm1"),
    "patch embedding": (EMBED, ""),
    "its norm": (EMBED, "norm"),
}
EXECUTIONS = ("dense", "packed", "auto")


def make(family: str) -> tuple[TaskNet, torch.Tensor, Routes]:
    torch.manual_seed(0)
    grid = RoutingGrid(GridSpec.parse({**TINY_GRID, **FAMILIES[family], "depths": 2}))
    net = TaskNet.classifier(Architecture.full(grid), GateSpec(columns="token")).eval()
    for parameter in net.parameters():  # SwinV2's branches start at zero
        parameter.data += 0.1 * torch.randn_like(parameter)
    images = torch.randn(2, 3, 32, 32)
    return net, images, Routes.random(net, images, keep=0.4, columns=0.4)


def part_of(net: TaskNet, edge: str, name: str) -> nn.Module:
    return net.edges[edge].get_submodule(name)


@pytest.mark.parametrize(*thinned(family=list(FAMILIES), part=list(PARTS), gradients=[True, False]))
def test_each_part_is_heard_and_says_the_same_in_every_execution(family, part, gradients):
    edge, name = PARTS[part]
    net, images, routes = make(family)
    wanted = net(images, routes=routes).logits
    heard: list[torch.Tensor] = []
    part_of(net, edge, name).register_forward_hook(lambda _, __, found: heard.append(found))
    for execution in EXECUTIONS:
        with torch.set_grad_enabled(gradients):
            found = net.decide(execution=execution)(images, routes=routes).logits
        assert torch.allclose(found, wanted, atol=1e-5)
    assert len(heard) == len(EXECUTIONS)
    if name in ("", "blocks.0", "blocks.1"):  # the insides of a block see packed rows, or whole maps
        assert all(torch.allclose(heard[0], other, atol=1e-5) for other in heard)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_heard_is_not_written_to_afterwards(family):
    net, images, routes = make(family)
    net.decide(execution="packed")
    first, kept = part_of(net, ROW, "blocks.0"), []
    first.register_forward_hook(lambda _, __, found: kept.extend([found, found.clone()]))
    with torch.no_grad():
        net(images, routes=routes)
    assert torch.equal(kept[0], kept[1])


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_class_activation_maps(execution):
    """Grad-CAM: the map of a block, weighted by the gradient of a class."""
    net, images, routes = make("pvt_v2")
    seen = {}
    part_of(net, ROW, "blocks.1").register_forward_hook(lambda _, __, found: seen.update(map=found))
    logits = net.decide(execution=execution)(images, routes=routes).logits
    (gradient,) = torch.autograd.grad(logits[:, 3].sum(), seen["map"])
    cam = (gradient.mean(1, keepdim=True) * seen["map"]).sum(-1).relu()
    assert cam.shape == (2, 64)
    assert gradient.any()
