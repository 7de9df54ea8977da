"""search/timing.py: a measured latency is that of a network that saves what its gates close."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from devices import DEVICES
from fake_evaluator import fresh
from tiny_grid import TINY_GRID

from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet
from routespace.search.candidate import RecipeCandidate
from routespace.search.evaluator import train_candidate
from routespace.search.timing import image_ms
from routespace.train.recipe.recipe import Recipe

IMAGES = [torch.zeros(1, 3, 32, 32)] * 2


def routed_net() -> TaskNet:
    return TaskNet.classifier(Architecture.full(RoutingGrid(GridSpec.parse(TINY_GRID))), GateSpec()).train()


@pytest.mark.parametrize("device", DEVICES)
def test_a_routed_network_is_timed_as_it_saves_and_left_as_it_was(device: str) -> None:
    net, seen = routed_net(), set()
    net.decide(execution="dense")
    net.register_forward_pre_hook(lambda net, args: seen.add((net.execution, net.training, args[0].device.type)))
    assert image_ms(net, IMAGES, device=device) > 0
    assert seen == {("auto", False, device)}
    assert (net.execution, net.training, next(net.parameters()).device.type) == ("dense", True, "cpu")


def test_a_network_is_left_as_it_was_when_timing_fails() -> None:
    net = routed_net()
    net.decide(execution="dense")
    with pytest.raises(Exception, match="images"):
        image_ms(net, [torch.zeros(1, 5, 32, 32)])
    assert (net.execution, net.training) == ("dense", True)


def test_a_trial_is_timed_in_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own training is dense: every budget would take the same time."""
    seen = list[str]()
    forward = RouteNet.forward

    def watched(net: RouteNet, images: torch.Tensor, **options: object) -> object:
        if len(images) == 1:
            seen.append(net.execution)
        return forward(net, images, **options)

    monkeypatch.setattr(RouteNet, "forward", watched)
    data = {"digit_px": [8, 24], "train_size": 32, "val_size": 3, "test_size": 1}
    train = {"epochs": 0, "batch_size": 32, "device": "cpu", "execution": "dense"}
    recipe = Recipe.parse(
        {"name": "tiny", "grid": TINY_GRID, "data": data, "train": train, "search": {"space": {"seed": [0]}}}
    )
    candidate = RecipeCandidate.of(recipe, {})
    found = train_candidate(candidate, fresh(tmp_path), objectives=("accuracy", "latency_ms"))
    assert found["latency_ms"] > 0
    assert set(seen) == {"auto"}
