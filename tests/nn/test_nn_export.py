"""A routed network leaves through torch.export: no Python branch on a decision, any batch size."""

import pytest
import torch
from thinning import thinned
from torch import nn
from torch.export import Dim

from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.task_net import TaskNet


def small_net(routing: str = "both", *, layers: int = 1, **gates) -> TaskNet:
    """Two rows that meet; with a second layer, they also go on from what was skipped."""
    torch.manual_seed(0)
    spec = GridSpec.parse({"layers": layers, "max_down": 8, "size": "b0", "image_size": 64, "num_classes": 5})
    grid = RoutingGrid(spec)
    architecture = Architecture.full(grid) if routing == "both" else Architecture.routed(grid, routing)
    net = TaskNet.classifier(architecture, GateSpec(openness=0.5, **gates)).eval()
    for gate in net.gates.values():
        if gate.learned and gate.ema_weight is not None:
            nn.init.normal_(gate.ema_weight, std=0.5)
    for path in net.backbone.skips.values():
        nn.init.normal_(path.last.weight, std=0.1)
    return net


def assert_exports(net: TaskNet) -> None:
    images = torch.randn(3, 3, 64, 64)
    batch = {"images": {0: Dim("batch", min=2, max=64)}}
    exported = torch.export.export(net.as_module(), (images,), dynamic_shapes=batch).module()
    with torch.no_grad():
        for size in (2, 3, 7):
            images = torch.randn(size, 3, 64, 64)
            assert torch.allclose(exported(images), net(images).logits, atol=1e-4)


@pytest.mark.parametrize(
    "gates",
    [
        pytest.param({}, marks=pytest.mark.slow),  # its parts are in those below
        pytest.param({"kind": "tanh", "rows": "image"}, marks=pytest.mark.slow),
        {"kind": "sigmoid", "rows": "window", "columns": "token", "keys": "kept", "early_stop": True, "layers": 2},
        pytest.param({"capacity": True, "columns": "token", "keep": 0.4}, marks=pytest.mark.slow),
        pytest.param({"source": "map"}, marks=pytest.mark.slow),
        pytest.param({"columns": "token", "skipped": "mlp"}, marks=pytest.mark.slow),
        {"routing": "depth", "capacity": True, "keep": 0.4, "skipped": "mlp"},
    ],
    ids=[
        *("default", "tanh images", "everything per token", "equal counts", "one map", "a path for the skipped"),
        "equal counts and a path",
    ],
)
def test_dense_export(gates):
    assert_exports(small_net(**gates))


def test_auto_exports_as_dense():
    net = small_net("depth")
    net.decide(execution="auto")
    assert_exports(net)


@pytest.mark.parametrize(*thinned(execution=["dense", "packed"], scout=[0, 2]))
def test_export_of_one_map_and_its_cuts(execution, scout):
    net = small_net("depth", source="map", opening="share", scout=scout, layers=2)
    for gate in net.gates.values():
        gate.cut.value.fill_(0.1)
    net.decide(execution=execution)
    assert_exports(net)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"keys": "kept"},
        {"skipped": "mlp"},
        pytest.param({"skipped": "linear", "rows": "image"}, marks=pytest.mark.slow),
    ],
)
def test_packed_export(fields):
    net = small_net("depth", **fields)
    net.decide(execution="packed")
    assert_exports(net)


@pytest.mark.slow
def test_packed_export_of_per_token_scaling():
    net = small_net(columns="token")
    net.decide(execution="packed")
    assert_exports(net)


@pytest.mark.parametrize("skipped", [pytest.param("identity", marks=pytest.mark.slow), "linear"])
def test_capacity_export(skipped):
    net = small_net("depth", capacity=True, keep=0.4, skipped=skipped)
    net.decide(execution="packed")
    assert_exports(net)


@pytest.mark.parametrize("execution", [pytest.param("dense", marks=pytest.mark.slow), "packed"])
@pytest.mark.slow
def test_capacity_export_of_a_gated_staircase(execution):
    net = small_net(columns="token", capacity=True, keep=0.4, layers=2)
    rows = [f"{place}_{kind}" for place in ("l00_r04", "l01_r08") for kind in ("transformer", "identity")]
    stairs = dict.fromkeys([*rows, "l01_r04_patch_embed"], "gated")
    net = net.restrict(Architecture(net.spec, stairs))
    net.decide(execution=execution)
    assert_exports(net)
