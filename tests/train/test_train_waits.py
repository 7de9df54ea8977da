"""The passes of a training step ask a device for no numbers: GPUs would stand still until the answer is there."""

import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet
from routespace.recipes import load_recipe
from routespace.train.budget import BudgetLoss
from routespace.train.data.loaders import make_loaders
from routespace.train.passes import OnePass, Runner
from routespace.train.step_loss import StepLoss

ASKING = {"_local_scalar_dense", "nonzero", "bincount", "masked_select", "equal", "_unique2", "unique_dim"}
PICKING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # by truth values: how many there are is asked


class Waits(TorchDispatchMode):
    """Where a device would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        picks = name in PICKING and any(part is not None and part.dtype == torch.bool for part in args[1])
        if name in ASKING or picks:
            frames = [one for one in traceback.extract_stack() if "/torch/" not in one.filename]
            self.seen.append(f"{name} at {frames[-2].filename}:{frames[-2].lineno}")
        return func(*args, **(kwargs or {}))


class Plain:
    """What a pass asks of accelerate."""

    def backward(self, loss):
        loss.backward()


def net_and_task(name: str):
    changes = {"train.batch_size": 4, "data.train_size": 8, "grid.image_size": 64, "grid.widths": [4, 8, 8, 12]}
    recipe = load_recipe(name).override(changes)
    task = recipe.task.make(recipe.grid)
    net = TaskNet(RouteNet(recipe.architecture(), recipe.gates), task.head(recipe.grid))
    return recipe, net.train().decide(execution="dense"), task


@pytest.mark.parametrize("name", ["digits_semantic", "digits_detect"])
def test_passes_of_dense_tasks_wait_for_no_device(name):
    recipe, net, task = net_and_task(name)
    budget = BudgetLoss(recipe.budget, recipe.base_macs(), recipe.budget_macs())
    passes = OnePass(Runner(StepLoss(net, task, budget, recipe.train), Plain()))
    (group,) = next(iter(make_loaders(recipe).train))
    prepared = [type(group)(*task.prepare(group, torch.device("cpu"), training=True))]
    with Waits() as waits:
        passes(prepared, 0.9, 0)
    assert waits.seen == []
    assert any(weight.grad is not None for weight in net.head.parameters())


def test_picking_by_truth_values_is_seen():
    with Waits() as waits:
        torch.arange(4)[torch.arange(4) > 1]
    assert len(waits.seen) == 1
