"""Gradient checkpointing: the same results from less kept memory."""

import pytest
import torch
from tiny_grid import TINY_GRID

from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.families.base import modules_of
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import TaskNet


def step(net: TaskNet, images: torch.Tensor, routes: Routes) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Logits, gradients, and the bytes beside the weights that autograd keeps for the backward pass."""
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no address comes twice
        return tensor

    net.zero_grad()
    torch.manual_seed(0)  # of stochastic depth, which must drop the same branches when computed again
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        logits = net(images, routes=routes).logits
    logits.square().sum().backward()
    grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    return logits.detach(), grads, sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("execution", ["dense", "packed"])
@pytest.mark.parametrize("family", ["pvt_v2", "swin_v2"])
def test_same_step_from_less_memory(family, execution):
    torch.manual_seed(0)
    shape = {"sr_ratios": None, "window": 2} if family == "swin_v2" else {}
    grid = RoutingGrid(GridSpec(**TINY_GRID | {"family": family, "layers": 4, "depths": 2} | shape))
    net = TaskNet.classifier(Architecture.full(grid), GateSpec(), execution=execution, drop_path=0.3).train()
    images = torch.randn(3, 3, 32, 32)
    routes = Routes.random(net, images, keep=0.5, seed=0)
    logits, grads, kept = step(net, images, routes)
    net.set_grad_checkpointing()
    again, grads_again, kept_less = step(net, images, routes)
    assert torch.equal(logits, again)
    assert grads.keys() == grads_again.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grads_again[name], grad)
    assert kept_less < 0.5 * kept
    net.set_grad_checkpointing(False)
    assert step(net, images, routes)[2] == kept


def test_wide_edges_are_computed_once():
    """What they keep of an image is little beside their weights; others are computed again."""
    spec = GridSpec(**TINY_GRID)
    calls = []
    for rate, width in zip(spec.rates, spec.widths, strict=True):
        stage = modules_of(spec.family).stage(spec, rate, 1)
        stage.grad_checkpointing = True
        stage.blocks[0].norm2.register_forward_pre_hook(lambda *_, rate=rate: calls.append(rate))
        for side in (2, 4):
            stage(torch.randn(1, side**2, width, requires_grad=True), (side, side)).sum().backward()
    assert calls == [4] * 4 + [8] * 3


@pytest.mark.parametrize(("family", "own"), [("pvt_v2", {}), ("swin_v2", {"sr_ratios": None, "window": 2})])
def test_patch_embeddings_keep_their_input_and_what_their_product_makes(family, own):
    spec = GridSpec(**TINY_GRID | {"family": family} | own)
    embed = modules_of(spec.family).patch_embed(spec, 4)
    x, hw = torch.randn(2, 64, 8, requires_grad=True), (8, 8)
    visible = torch.rand(2, 64, 1).round()
    kept, grads = [], []
    for on in (False, True):
        embed.grad_checkpointing = on
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            y = embed(x, hw, visible)
        grads.append(torch.autograd.grad(y.square().sum(), [x, *embed.parameters()]))
        kept.append(max(tensor.numel() for tensor in saved if tensor is not x))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
    assert kept[0] >= x.numel() > y.numel() == kept[1]
