"""The cheap path for skipped tokens: what it computes, where it is taken, and what it costs."""

import copy
import json
from itertools import product

import pytest
import torch
from modes import assert_alone_is_among_others, assert_modes_agree, assert_same_usage, only, with_lively_gates
from thinning import thinned
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from routespace.deploy.counters import compare, dense_usage, torch_macs
from routespace.deploy.extract import extract
from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.grid.usage import EdgeUsage
from routespace.nn.pretrained import load_network_weights
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import TaskNet
from routespace.nn.usage import measure_usage
from routespace.nn.weights import load_net, save_net
from routespace.train.macs import closed_macs, counted_macs, expected_macs

FIELDS = {"layers": 3, "max_down": 16, "widths": (8, 8, 16), "heads": (1, 1, 2), "image_size": 64,
          "mlp_ratios": (2,) * 3, "num_classes": 5}  # fmt: skip
PVT = RoutingGrid(GridSpec.parse(FIELDS | {"sr_ratios": (4, 2, 1)}))
SWIN = RoutingGrid(GridSpec.parse(FIELDS | {"family": "swin_v2", "window": 4}))
GRIDS = {"pvt_v2": PVT, "swin_v2": SWIN}
FIRST = "l00_r04_transformer"
WAYS = [
    {"source": "map"},
    {"rows": "image", "columns": "token"},
    {"rows": "window"},
    {"early_stop": True, "keys": "kept"},
    {"kind": "tanh"},
    {"capacity": True, "columns": "token"},
]


def network(grid=PVT, routing="both", *, skipped="linear", **fields):
    """A network in doubles: the norms of small tokens magnify rounding."""
    torch.manual_seed(0)
    gates = GateSpec(skipped=skipped, openness=0.5, **({"noise": 0.0} | fields))
    return with_lively_gates(TaskNet.classifier(Architecture.routed(grid, routing), gates)).double().eval()


def pictures(count=3, size=(64, 48)):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize(*thinned(net_of=list(product(GRIDS, [False, True])), fields=WAYS), ids=str)
def test_every_way_of_computing_agrees(net_of, fields):
    family, training = net_of
    net = network(GRIDS[family], skipped="mlp" if training else "linear", **fields).train(training)
    assert_modes_agree(net, pictures(), None)
    assert_same_usage(net, pictures(), None)
    routes = net(pictures()).routes.detach()
    assert_modes_agree(net, pictures(), routes)
    if not training:
        assert_alone_is_among_others(net, pictures(), None, ("dense", "packed"))


@pytest.mark.parametrize("skipped", ["linear", "mlp"])
def test_what_is_skipped_takes_a_norm_and_one_or_two_layers(skipped):
    net, seen = network(skipped=skipped), {}
    for name in (FIRST, "l01_r04_transformer"):
        net.edges[name].register_forward_hook(
            lambda _, given, out, name=name: seen.update({name: (given[0], out)})
        )
    route, path = net(pictures()).routes[FIRST], net.backbone.skips[FIRST]
    (x, y), (after, _), kept = seen[FIRST], seen["l01_r04_transformer"], route.kept.unsqueeze(-1)
    added = F.layer_norm(x, (8,), path.norm.weight, path.norm.bias)
    if skipped == "mlp":
        added = F.gelu(added @ path.first.weight.T + path.first.bias)
    added = added @ path.last.weight.T + path.last.bias
    assert 0 < route.kept.double().mean() < 1
    assert torch.allclose(after, torch.where(kept, y, x + added))


def test_an_untrained_path_changes_nothing_and_learns_at_once():
    plain, made = network(skipped="identity"), TaskNet.classifier(PVT_BOTH, GateSpec(skipped="linear", noise=0.0))
    torch.manual_seed(5)
    fresh = TaskNet.classifier(PVT_BOTH, GateSpec(noise=0.0)).state_dict()
    torch.manual_seed(5)
    begun = TaskNet.classifier(PVT_BOTH, GateSpec(skipped="linear", noise=0.0)).state_dict()
    assert all(torch.equal(begun[name], weight) for name, weight in fresh.items())
    made.double().load_state_dict(made.state_dict() | plain.state_dict())
    out = made.eval()(pictures())
    assert torch.equal(out.logits, plain(pictures()).logits)
    assert any(float(used.skipped.detach()) > 0 for used in out.routes.usage().values() if used.skipped)
    made(pictures()).logits.square().sum().backward()
    assert any(bool(path.last.weight.grad.any()) for path in made.backbone.skips.values())


PVT_BOTH = Architecture.routed(PVT, "both")


def test_tokens_that_nobody_sent_stay_nothing_and_stopped_ones_pass():
    routes = network(columns="token", early_stop=True)(pictures()).routes
    used = {name: route for name, route in routes.items() if route.skipped is not None}
    assert len(used) > 3
    for name, route in used.items():
        assert not (route.kept & (route.skipped > 0)).any(), name
        assert torch.equal(route.asked, route.kept | (route.skipped > 0)), name
    assert any(not route.asked.all() for route in used.values())


@pytest.mark.parametrize(*thinned(family=list(GRIDS), fields=WAYS), ids=str)
def test_the_price_is_what_torch_counts(family, fields):
    grid = GRIDS[family]
    gates = GateSpec(skipped="mlp" if "rows" in fields else "linear", **fields)
    architecture = Architecture.routed(grid, "both")
    net = TaskNet.classifier(architecture, gates)
    for size in ((64, 64) if grid is SWIN else (72, 88),):
        cost = architecture_cost(
            architecture, gates=gates, usage=dense_usage(architecture, gates), image_size=size
        )
        count = torch_macs(net, size, meta=False)
        assert (count.macs, count.unknown) == (cost.macs, {})
        plain = architecture_cost(
            architecture, gates=gates.model_copy(update={"skipped": "identity"}), image_size=size
        )
        assert (
            architecture_cost(architecture, gates=gates, image_size=size).macs == plain.macs
        )  # nothing is skipped
    assert sum(p.numel() for p in net.parameters()) == cost.params


@pytest.mark.filterwarnings("ignore")  # fvcore traces with torch.jit, which warns
def test_all_counters_agree():
    report = compare(PVT_BOTH, gates=GateSpec(skipped="linear"))
    assert report.ok, report
    assert "skipped tokens" in report.lines()[1]


@torch.no_grad()
def test_packed_execution_computes_the_path_for_the_skipped_tokens_alone():
    """By torch's counter it takes what usage tells, beyond what the same decisions take without paths."""
    counts = []
    for skipped in ("identity", "mlp"):
        net = network(routing="depth", skipped=skipped).decide(execution="packed")
        routes = Routes.random(net.backbone, pictures(1), keep=0.3, seed=1)
        with FlopCounterMode(display=False) as counter:
            usage = {
                name: EdgeUsage(*map(float, used))
                for name, used in net(pictures(1), routes=routes).routes.usage().items()
            }
        cost = architecture_cost(net.architecture, gates=net.gate_spec, usage=usage, image_size=(64, 48))
        counts.append((counter.get_total_flops() // 2, cost.macs))
    assert usage[FIRST].skipped == pytest.approx(1 - usage[FIRST].tokens)
    more, told = counts[1][0] - counts[0][0], counts[1][1] - counts[0][1]
    assert more == pytest.approx(told)
    assert more > 0


def test_expected_and_counted_macs_agree_and_closing_a_gate_saves_less():
    images = pictures()
    for skipped in ("identity", "linear"):
        net = network(skipped=skipped, rows="token").train()
        out = net(images)
        macs = expected_macs(net, out.routes, image_size=(64, 48))
        usage = {
            name: EdgeUsage(*(float(torch.as_tensor(s).detach()) for s in u))
            for name, u in out.routes.usage().items()
        }
        size = counted_macs(net, {}) / counted_macs(net, {}, image_size=(64, 48))
        assert float(macs.detach()) == pytest.approx(size * counted_macs(net, usage, image_size=(64, 48)))
        macs.backward()
        bias = net.gates[FIRST].bias.grad
        slope = float(bias[0] - bias[1])
        if skipped == "identity":
            steepest = slope
    assert 0 < slope < steepest


@torch.no_grad()
def test_shut_gates_cost_what_closed_macs_tells():
    for early_stop in (False, True):
        net = network(early_stop=early_stop)
        for gate in net.gates.values():
            gate.weight.zero_()
            gate.bias.copy_(torch.tensor([-9.0, 9.0]))
            gate.update_ema(0.0)
        usage = measure_usage(net, [pictures(2, (64, 64))])
        assert counted_macs(net, usage) == pytest.approx(closed_macs(net.architecture, net.gate_spec))
        assert usage[FIRST].skipped == 1


@torch.no_grad()
def test_held_gates_take_no_path_and_a_part_without_gates_has_none():
    net, images = network(), pictures()
    opened = net.architecture.opened()
    with net.deciding_as(held=opened):
        out = net(images)
        assert all(route.skipped is None for route in out.routes.values())
    small = extract(net, opened)
    assert not any("skips." in name for name in small.state_dict())
    assert torch.allclose(small(images).logits, out.logits)
    stairs = Architecture.staircase(PVT)
    with net.deciding_as(held=stairs):
        assert torch.allclose(extract(net, stairs)(images).logits, net(images).logits)
    edges = dict(net.architecture.edges)
    edges.pop("l01_r04_identity")
    part = Architecture(net.spec, edges | {"l01_r04_transformer": "open"})
    small = extract(net, part)
    assert "l01_r04_transformer" not in small.backbone.skips
    assert FIRST in small.backbone.skips
    assert torch.equal(small(images).logits, net.restrict(part)(images).logits)


@torch.no_grad()
def test_it_is_saved_and_loaded_and_networks_from_before_load(tmp_path):
    for skipped in ("linear", "mlp", "identity"):
        net = network(skipped=skipped)
        save_net(net, tmp_path)
        if skipped == "identity":  # as it was written before there were paths
            data = json.loads((tmp_path / "network.json").read_text())
            data["gates"].pop("skipped")
            (tmp_path / "network.json").write_text(json.dumps(data))
        assert torch.allclose(load_net(tmp_path)(pictures()).logits, net(pictures()).logits)


def test_paths_go_with_the_weights_of_a_network():
    given, fresh = network(), TaskNet.classifier(PVT_BOTH, GateSpec(skipped="linear")).double()
    kept = load_network_weights(fresh, given)
    assert not any(name.startswith("skips") for name in kept)
    for name, path in given.backbone.skips.items():
        assert torch.equal(fresh.backbone.skips[name].last.weight, path.last.weight)
    assert f"skips.{FIRST}" in load_network_weights(copy.deepcopy(fresh), network(skipped="identity"))


def test_one_image_replays_its_decisions_with_their_path():
    net = network()
    out = net(pictures())
    alone = net(pictures()[:1], routes=only(out.routes.detach(), 0))
    assert torch.allclose(alone.logits, out.logits[:1])
    assert torch.equal(alone.routes[FIRST].skipped, out.routes[FIRST].skipped[:1])


def test_what_makes_no_sense_is_refused():
    with pytest.raises(SpecError, match="relaxation 'soft' none is"):
        GateSpec.parse({"skipped": "linear", "relaxation": "soft"})
    with pytest.raises(SpecError, match=r"gates\.skipped: 'identity' does not fit"):
        network().decide(gates=GateSpec())
