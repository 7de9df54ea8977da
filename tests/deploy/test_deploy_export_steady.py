"""Files are compared with gated networks on images whose decisions no rounding turns."""

import pytest
import torch
from tiny_grid import TINY_GRID

from routespace.deploy.examples import example_images
from routespace.deploy.export import steady
from routespace.deploy.export.steady import steady_images
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.task_net import TaskNet

SIZE = (32, 32)


def make_net(kind, **gates):
    """A network whose gates tell tokens apart."""
    torch.manual_seed(0)
    architecture = getattr(Architecture, kind)(RoutingGrid(GridSpec.parse(TINY_GRID)))
    net = TaskNet.classifier(architecture, GateSpec(**gates)).eval()
    for gate in net.gates.values():
        torch.nn.init.normal_(gate.ema_weight)
    return net


def chances(net, images):
    with torch.no_grad():
        routes = net(images).routes
    return {name: route.chance for name, route in routes.items() if route.chance is not None}


def test_images_on_which_a_margin_lies_on_its_threshold_are_passed_over():
    net = make_net("full", rows="token", openness=0.5)
    first = example_images(net, 1, SIZE, seed=1)
    one = chances(net, first)["l00_r04_transformer"][0]
    tied = float(one[(one - 0.5).abs().argmin()])
    net.decide(gates=net.gate_spec.model_copy(update={"threshold": tied}))
    found = steady_images(net, 1, SIZE, seed=1)
    assert found.slack == 0
    assert not torch.equal(found.images, first)
    assert min(float((chance - tied).abs().min()) for chance in chances(net, found.images).values()) > 1e-6


def test_where_no_decision_is_sure_a_file_may_differ_by_what_they_change(monkeypatch):
    net = make_net("full", rows="token", openness=0.5)
    compared, differ = set(), steady.difference
    monkeypatch.setattr(steady, "MOVED", 0.3)
    monkeypatch.setattr(steady, "difference", lambda one, other: compared.update(one, other) or differ(one, other))
    found = steady_images(net, 2, SIZE, seed=2)
    assert torch.equal(found.images, example_images(net, 2, SIZE, seed=2))
    assert found.slack > 1e-3
    assert compared == {"logits"}  # which a file gives, and not the maps below them


@pytest.mark.parametrize("kind", ["staircase", "full"])
def test_what_decides_nothing_is_compared_on_the_first_images(kind):
    net = make_net(kind).restrict(Architecture.staircase(RoutingGrid(GridSpec.parse(TINY_GRID))))
    assert net.architecture.is_static
    found = steady_images(net, 1, SIZE, seed=3)
    assert found.slack == 0
    assert torch.equal(found.images, example_images(net, 1, SIZE, seed=3))
