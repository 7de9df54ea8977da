"""Gradient checkpointing: the same results from less kept memory."""

import pytest
import torch
from tiny_grid import TINY_GRID

from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
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
