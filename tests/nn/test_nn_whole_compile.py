"""`torch.compile(net)`: one graph, with the network's own numbers and gradients."""

import pytest
import torch
from tiny_grid import TINY_GRID

from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.task_net import TaskNet

SPECS = {
    "pvt_v2": TINY_GRID | {"layers": 1},
    "swin_v2": {key: value for key, value in TINY_GRID.items() if key != "sr_ratios"}
    | {"layers": 1, "family": "swin_v2", "window": 4},
}


@pytest.fixture(autouse=True)
def compiles_afresh():
    """All tests compile the same `forward`, of which torch keeps no more than eight forms."""
    torch.compiler.reset()


def make(family: str, *, static: bool, training: bool) -> TaskNet:
    torch.manual_seed(0)
    grid = RoutingGrid(GridSpec(**SPECS[family]))
    architecture = Architecture.staircase(grid) if static else Architecture.full(grid)
    return TaskNet.classifier(architecture, GateSpec(kind="tanh", openness=0.5)).train(training)


def outcome(net, images: torch.Tensor) -> list[torch.Tensor]:
    out = net(images)
    parameters = [p for p in net.parameters() if p.requires_grad]
    grads = torch.autograd.grad(out.logits.square().sum(), parameters, allow_unused=True)
    kept = [route.kept.float() for route in out.routes.values()]
    return [out.logits.detach(), *kept, *(torch.zeros(1) if g is None else g for g in grads)]


def assert_same(net, compiled, images) -> None:
    for expected, given in zip(outcome(net, images), outcome(compiled, images), strict=True):
        assert torch.allclose(expected, given, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", SPECS)
def test_the_whole_supernet_is_one_graph(family):
    net = make(family, static=False, training=True)
    assert_same(net, torch.compile(net, backend="eager", fullgraph=True), torch.randn(3, 3, 32, 32))


@pytest.mark.parametrize(
    ("training", "scout"), [(True, 2), *(pytest.param(False, n, marks=pytest.mark.slow) for n in (2, 0))]
)
def test_one_map_for_all_rows_is_one_graph(training, scout):
    torch.manual_seed(0)
    seeing = {"source": "map", "opening": "share", "scout": scout, "skipped": "mlp" if scout else "identity"}
    gates = GateSpec(noise=0.0, kind="sigmoid", **seeing)
    net = TaskNet.classifier(Architecture.routed(RoutingGrid(GridSpec(**TINY_GRID)), "depth"), gates)
    for gate in net.gates.values():
        gate.cut.value.fill_(2.2)  # about where half of the tokens are
    net.train(training)
    assert_same(net, torch.compile(net, backend="eager", fullgraph=True), torch.randn(3, 3, 32, 32))


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "supernet"])
@pytest.mark.parametrize("family", SPECS)
def test_the_whole_network_compiles_for_this_processor(family, static, training):
    net = make(family, static=static, training=training)
    compiled = torch.compile(net, fullgraph=True)
    for batch in (3, 5):  # a second size is where numbers become free ones
        assert_same(net, compiled, torch.randn(batch, 3, 32, 32))
