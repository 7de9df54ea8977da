"""Capacity: the best share of each image's tokens and groups, so that every shape is known beforehand."""

import math

import pytest
import torch
from modes import assert_modes_agree, assert_replays, with_lively_gates
from thinning import thinned
from torch.utils._python_dispatch import TorchDispatchMode

from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.routing.deciding import Deciding
from routespace.nn.routing.gates import Gate
from routespace.nn.routing.routes import EdgeRoute, Routes
from routespace.nn.task_net import TaskNet

FAMILIES = {
    "pvt_v2": {"mlp_ratios": (2, 2, 2), "sr_ratios": (2, 1, 1)},
    "swin_v2": {"mlp_ratios": (2, 2, 2), "window": 4},
}
STAIRS = [
    "l00_r04_transformer",
    "l01_r04_patch_embed",
    "l01_r08_transformer",
    "l02_r08_patch_embed",
    "l02_r16_transformer",
]
EVEN, ODD = (64, 64), (52, 76)  # maps of 16×16, 8×8 and 4×4 tokens; of 13×19, 7×10 and 4×5


def make_net(routing: str = "stairs", family: str = "pvt_v2", outputs: str = "coarsest", **gates) -> TaskNet:
    """`stairs` is the staircase with a gate at every edge; the others are the ablations."""
    torch.manual_seed(0)
    fields = {"layers": 3, "max_down": 16, "widths": (8, 16, 16), "heads": (1, 2, 2), "family": family}
    more = {"image_size": 64, "num_classes": 5, "outputs": outputs}
    grid = RoutingGrid(GridSpec.parse(fields | FAMILIES[family] | more))
    if routing == "stairs":
        passed = [grid.edges[name].partner for name in STAIRS if name.endswith("transformer")]
        architecture = Architecture(grid.spec, dict.fromkeys([*STAIRS, *passed], "gated"))
    else:
        architecture = Architecture.routed(grid, routing)
    spec = GateSpec(**{"columns": "token", "capacity": True, "keep": 0.4, **gates})
    return with_lively_gates(TaskNet.classifier(architecture, spec))


def per_image(routes: Routes, name: str) -> set[int]:
    return set(routes[name].kept.sum(1).tolist())


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("execution", ["dense", "packed", "auto"])
@pytest.mark.parametrize(
    ("size", "keep", "counts"),
    [
        (EVEN, 0.4, [103, 26, 11, 7, 3]),  # of 256 tokens, 64 groups, the 26 there, 16 groups, the 7 there
        (ODD, 0.4, [99, 28, 12, 7, 3]),  # of 247, 70, 28, 20 (which 28 tokens fill 7 of), 7
        (ODD, 0.9, [223, 63, 57, 16, 15]),  # 18 of 20 groups are wanted, but 63 tokens may lie in 16
    ],
)
def test_a_staircase_keeps_known_counts(family, execution, size, keep, counts):
    net = make_net(family=family, keep=keep)
    net.decide(execution=execution)
    for training in (True, False):
        routes = net.train(training)(torch.randn(3, 3, *size)).routes
        for name, count in zip(STAIRS, counts, strict=True):
            assert per_image(routes, name) == {count}
            assert routes[name].per_image == count
    went = routes["l01_r04_patch_embed"].kept
    assert not (routes["l01_r08_transformer"].kept & ~went).any()
    assert torch.equal(routes["l01_r08_transformer"].asked, went)


NETS = [
    ("stairs", {}),
    ("stairs", {"keys": "kept", "kind": "sigmoid", "keep": 0.7}),
    ("stairs", {"early_stop": True, "selection": "attention"}),
    ("scale", {}),
    ("both", {"keys": "kept"}),
]


@pytest.mark.parametrize(
    *thinned(family=list(FAMILIES), training=[True, False], size=[EVEN, ODD], made=NETS), ids=str
)
def test_masked_and_packed_agree(family, made, size, training):
    routing, gates = made
    net = make_net(routing, family, **gates).train(training)
    assert_modes_agree(net, torch.randn(3, 3, *size), Routes({}))


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("keep", [0.25, 0.7])
def test_random_routes_keep_equal_counts(family, keep):
    net = make_net("both", family, outputs="pyramid").eval()
    images = torch.randn(3, 3, *ODD)
    routes = Routes.random(net, images, keep=keep, columns=keep, seed=0)
    for name, route in routes.items():
        assert per_image(routes, name) == {math.ceil(keep * route.kept.shape[1])} == {route.per_image}
    assert_modes_agree(net, images, routes)


class NoWaiting(TorchDispatchMode):
    """Refuses whatever asks the device for a number or for a size."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in (torch.ops.aten.nonzero, torch.ops.aten._local_scalar_dense), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("execution", ["packed", "auto"])
@pytest.mark.parametrize(
    ("routing", "gates"),
    [
        ("stairs", {}),
        ("stairs", {"keys": "kept", "keep": 0.7, "selection": "attention"}),
        ("depth", {}),
        ("depth", {"columns": "image"}),
    ],
)
def test_static_shapes_wait_for_nothing(routing, gates, execution, monkeypatch):
    net = make_net(routing, **gates)
    net.decide(execution=execution)
    images = torch.randn(3, 3, *ODD)
    monkeypatch.setattr(torch.Tensor, "tolist", None)  # no operation on a CPU, but a wait elsewhere
    with NoWaiting():
        net.train()(images).logits.sum().backward()
        with torch.no_grad():
            net.eval()(images)


def test_what_waits_is_noticed():
    net = make_net(capacity=False).eval()
    net.decide(execution="packed")
    with NoWaiting(), pytest.raises(AssertionError, match="aten"):
        net(torch.randn(3, 3, *EVEN))


@torch.no_grad()
def test_rows_choose_among_what_several_arrivals_brought():
    """Their union is not counted beforehand, but the share is of what is there all the same."""
    net = make_net("both").eval()
    routes = net(torch.randn(4, 3, *ODD)).routes
    there = routes["l00_r04_patch_embed"].kept | routes["l01_r04_patch_embed"].kept
    row = routes["l01_r08_transformer"]
    assert row.per_image is None
    assert not (row.kept & ~there).any()
    counts = there.sum(1)
    assert (counts > 28).all()  # each alone brings 28
    assert row.kept.sum(1).tolist() == [math.ceil(0.4 * count) for count in counts.tolist()]
    assert per_image(routes, "l01_r08_patch_embed") == {8}
    assert routes["l00_r08_patch_embed"].per_image == 7


@pytest.mark.parametrize("execution", ["dense", "packed"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("routing", ["stairs", "both"])
def test_recorded_decisions_replay(routing, execution, training):
    net = make_net(routing).train(training)
    net.decide(execution=execution)
    images = torch.randn(3, 3, *ODD)
    taken = assert_replays(net, images, atol=1e-5)
    part = {name: route for name, route in taken.detach().items() if name.endswith("transformer")}
    moved = net(images.flip(0), routes=Routes(part)).routes  # what was there when it was recorded is not there now
    for name, route in moved.items():
        assert route.per_image is None or per_image(moved, name) == {route.per_image}


@pytest.mark.parametrize("execution", ["dense", "packed"])
def test_nobody_is_stranded_unless_a_replay_sends_nothing(execution):
    net = make_net().eval()
    net.decide(execution=execution)
    with torch.no_grad():
        for gate in net.gates.values():
            gate.ema_bias.copy_(torch.tensor([-50.0, 50.0]))  # a rank does not mind
    images = torch.randn(2, 3, *EVEN)
    assert per_image(net(images).routes, "l01_r04_patch_embed") == {26}
    groups = torch.zeros(2, 64, dtype=torch.bool)
    groups[0, 5] = True
    given = Routes({"l01_r04_patch_embed": EdgeRoute(groups, groups.float())})
    routes = net(images, routes=given).routes
    assert routes["l01_r04_patch_embed"].kept.sum(1).tolist() == [1, 64]
    assert routes["l02_r08_patch_embed"].kept.sum(1).tolist() == [1, 7]
    assert routes["l02_r16_transformer"].kept.sum(1).tolist() == [1, 3]


def test_gates_that_are_held_open_send_everything():
    net = make_net().train()
    net.decide(held=net.architecture.opened())
    for execution in ("dense", "packed"):
        net.decide(execution=execution)
        out = net(torch.randn(2, 3, *ODD))
        assert all(route.kept.all() and route.per_image is None for route in out.routes.values())


@pytest.mark.parametrize("rows", [True, False])
def test_a_gate_counts_on_the_device_as_on_the_host(rows):
    torch.manual_seed(0)
    hw, spec = (6, 7), GateSpec(columns="token", capacity=True, keep=0.3)
    gate = Gate(spec, "token", 4, rows=rows).eval()
    x = torch.randn(5, 42, 4)
    for count in (1, 2, 10, 20, 41, 42):
        present = torch.rand(5, 42).argsort(1) < count
        told = gate(x, hw, Deciding.at_start(spec), present=present, count=count)
        asked = gate(x, hw, Deciding.at_start(spec), present=present)
        assert torch.equal(told.value, asked.value)
        assert asked.per_image is None
        wanted = math.ceil(0.3 * count) if rows else min(math.ceil(0.3 * 12), math.ceil(count / 4))
        assert told.per_image == wanted
        assert told.value.sum(1).tolist() == [wanted] * 5
    nobody = torch.zeros(5, 42, dtype=torch.bool)
    assert not gate(x, hw, Deciding.at_start(spec), present=nobody).value.any()
