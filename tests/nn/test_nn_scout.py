"""A scout: what it computes, what it costs, that all ways of computing agree, and what it keeps when it is cut."""

import copy

import numpy as np
import pytest
import torch
from modes import assert_alone_is_among_others, assert_modes_agree, with_lively_gates
from thinning import thinned
from torch import nn

from routespace.deploy.bundle import Card, load_bundle, save_bundle
from routespace.deploy.counters import torch_macs
from routespace.deploy.extract import extract
from routespace.errors import GridError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.scout import ScoutShape
from routespace.grid.spec import GridSpec
from routespace.nn.routing.scout import Scout, square_statistics
from routespace.nn.task_net import TaskNet

FIELDS = {"layers": 4, "max_down": 32, "widths": (8, 8, 16, 16), "heads": (1, 1, 2, 2), "image_size": 64,
          "mlp_ratios": (2,) * 4, "sr_ratios": (4, 2, 1, 1), "num_classes": 5}  # fmt: skip
LEADER = "l00_r04_transformer"


def scouted(routing="depth", *, lively=True, **fields):
    """A network whose rows follow the map of a scout."""
    torch.manual_seed(0)
    architecture = Architecture.routed(RoutingGrid(GridSpec.parse(FIELDS)), routing)
    net = TaskNet.classifier(architecture, GateSpec(**({"source": "map", "scout": 2, "openness": 0.5} | fields)))
    return (with_lively_gates(net) if lively else net).eval()


class Reference(nn.Module):
    """The same from torch's own layers, on maps with channels first."""

    def __init__(self, scout):
        super().__init__()
        shape = scout.shape
        self.enter = nn.Conv2d(2 * shape.width, shape.channels, 1)
        around = {"kernel_size": 5, "padding": 2, "groups": shape.channels}
        self.around = nn.ModuleList(
            nn.Conv2d(shape.channels, shape.channels, **around) for _ in range(shape.blocks)
        )
        self.norm = nn.ModuleList(nn.LayerNorm(shape.channels) for _ in range(shape.blocks))
        self.mix = nn.ModuleList(nn.Conv2d(shape.channels, shape.channels, 1) for _ in range(shape.blocks))
        with torch.no_grad():
            self.enter.weight.copy_(scout.enter_weight[..., None, None])
            self.enter.bias.copy_(scout.enter_bias)
            for name in ("around", "norm", "mix"):
                for block, layer in enumerate(getattr(self, name)):
                    layer.weight.copy_(getattr(scout, f"{name}_weight")[block].reshape(layer.weight.shape))
                    layer.bias.copy_(getattr(scout, f"{name}_bias")[block])

    def forward(self, squares):
        z = self.enter(squares)
        for around, norm, mix in zip(self.around, self.norm, self.mix, strict=True):
            z = z + mix(nn.functional.gelu(norm(around(z).movedim(1, -1)).movedim(-1, 1)))
        return nn.functional.gelu(z)


@pytest.mark.parametrize("side", [1, 2, 4])
@pytest.mark.parametrize("hw", [(8, 12), (7, 5), (1, 1)])
def test_it_computes_what_torchs_layers_compute(hw, side):
    torch.manual_seed(0)
    scout, x = Scout(ScoutShape(width=3, channels=6, blocks=3, side=side)), torch.randn(2, hw[0] * hw[1], 3)
    for weight in scout.parameters():
        nn.init.normal_(weight, std=0.5)
    coarse = -(-hw[0] // side), -(-hw[1] // side)
    squares = square_statistics(x, hw, side).transpose(1, 2).unflatten(2, coarse)
    wanted = Reference(scout)(squares).flatten(2).transpose(1, 2)
    assert torch.allclose(scout(x, hw), wanted, atol=1e-5)


def test_squares_are_told_by_their_mean_and_deviation():
    x = torch.randn(2, 5 * 7, 3, requires_grad=True)
    found, tokens = square_statistics(x, (5, 7), 2).view(2, 3, 4, 6), x.detach().view(2, 5, 7, 3).numpy()
    for row, column in ((0, 0), (1, 3), (2, 3)):  # whole, cut at one side, and at two
        square = tokens[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(2, -1, 3)
        wanted = np.concatenate([square.mean(1), np.maximum(square.std(1), 1e-5**0.5)], 1)
        assert np.allclose(found[:, row, column], wanted, atol=1e-4)
    assert not found.requires_grad


@pytest.mark.parametrize(*thinned(routing=["depth", "both"], of=[(1, 16, 2), (2, 16, 4), (4, 7, 2)]))
def test_the_price_is_what_torch_counts(routing, of):
    scout, channels, side = of
    fields = {"scout": scout, "scout_width": channels, "scout_square": side, "kind": "sigmoid"}
    net = scouted(routing, **fields)
    for size in ((64, 64), (50, 70)):
        cost = architecture_cost(net.architecture, gates=net.gate_spec, image_size=size)
        count = torch_macs(net, size, meta=False)
        assert count.macs == cost.macs
        assert not count.unknown
    assert sum(p.numel() for p in net.parameters()) == cost.params
    squares = {2: 7 * 9, 4: 4 * 5}[side]  # of the 13×18 tokens at rate 4
    each = 16 * channels + scout * (25 * channels + channels**2) + channels
    assert cost.gates[LEADER].macs == squares * each
    assert [name for name, gate in cost.gates.items() if gate.macs and "transformer" in name] == [LEADER]


def test_a_square_is_decided_as_one_before_it_is_smoothed():
    net = scouted(smooth=1)
    with torch.no_grad():
        routes = net(torch.randn(2, 3, 56, 72)).routes
    kept = routes[LEADER].kept.view(2, 7, 2, 9, 2)
    assert 0.1 < kept.float().mean() < 0.9
    assert torch.equal(kept, kept[:, :, :1, :, :1].expand_as(kept))
    assert torch.equal(routes["l01_r08_transformer"].kept.view(2, 7, 9), kept[:, :, 0, :, 0])


@pytest.mark.parametrize(
    "fields", [{}, {"opening": "share", "scout_square": 8}, {"capacity": True, "keep": 0.4}], ids=str
)
def test_an_image_is_decided_alone(fields):
    assert_alone_is_among_others(scouted(**fields), torch.randn(3, 3, 64, 48), None, ("dense", "packed", "auto"))


def test_inference_decides_by_averages():
    net, images = scouted(), torch.randn(2, 3, 64, 64)
    gate = net.gates[LEADER]
    x = torch.randn(2, 256, 8)
    before = gate.margins(x, (16, 16))
    with torch.no_grad():
        for weight in gate.parameters():
            weight.add_(0.5 * torch.randn_like(weight))
    assert torch.equal(gate.margins(x, (16, 16)), before)
    weight, average = gate.scout.around_weight.clone(), gate.scout.ema_around_weight.clone()
    net.backbone.update_gate_ema()
    assert torch.allclose(gate.scout.ema_around_weight, average + 0.01 * (weight - average), atol=1e-6)
    assert not torch.equal(gate.margins(x, (16, 16)), before)
    live = gate.train().margins(x, (16, 16))
    gate.update_ema(0.0)
    assert torch.equal(gate.eval().margins(x, (16, 16)), live)
    assert torch.isfinite(net(images).logits).all()


def test_the_task_teaches_it_unless_the_dense_pass_does():
    images = torch.randn(2, 3, 64, 64)
    for teach, learns in (("none", True), ("dense", False)):
        net = scouted(teach=teach).train()
        net(images).logits.square().sum().backward()
        for weight in net.gates[LEADER].scout.parameters():
            assert (weight.grad is not None and bool(weight.grad.any())) == learns


def test_a_part_keeps_the_scout_or_no_gate(tmp_path):
    net = scouted(opening="share")
    edges = dict(net.architecture.edges)
    follower = {name: state for name, state in edges.items() if name != "l01_r08_identity"}
    part = extract(net, Architecture(net.spec, follower | {"l01_r08_transformer": "open"}))
    save_bundle(part, tmp_path / "part", Card.of(part))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = net.restrict(part.architecture)(images).logits
        for execution in ("dense", "packed", "auto"):
            again = load_bundle(tmp_path / "part").net.eval().decide(execution=execution)
            assert torch.allclose(again(images).logits, wanted, atol=1e-5)
    assert not [name for name in extract(net, net.architecture.opened()).state_dict() if "gates" in name]
    headless = {name: state for name, state in edges.items() if name != "l00_r04_identity"}
    with pytest.raises(GridError, match=f"{LEADER}, whose gate makes the map"):
        net.restrict(Architecture(net.spec, headless | {LEADER: "open"}))


def test_half_precision_decides_by_whole_numbers():
    net = scouted(opening="share", noise=0.0).train()
    net.decide(shares=dict.fromkeys(net.gates, 0.3))
    with torch.autocast("cpu", torch.bfloat16):
        routes = net(torch.randn(4, 3, 64, 64)).routes
    assert routes[LEADER].kept.float().mean() == pytest.approx(0.3, abs=0.01)
    half = copy.deepcopy(net).bfloat16().eval()
    assert torch.isfinite(half(torch.randn(2, 3, 64, 64).bfloat16()).logits).all()


@pytest.mark.parametrize("training", [False, True])
def test_nothing_and_tiny_maps_are_computed(training):
    net = scouted(noise=0.0).train(training)
    assert net(torch.randn(0, 3, 64, 64)).logits.shape == (0, 5)
    assert_modes_agree(net, torch.randn(2, 3, 37, 33), None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scout": 2}, "scout: 2 blocks look for all rows at once; they need source 'map'"),
        ({"scout": 2, "source": "map", "context": 5}, "context: 5 has no reader"),
        ({"scout": 2, "source": "map", "rows": "image"}, "it needs rows 'token'"),
        ({"scout": 17, "source": "map"}, "scout"),
        ({"scout_width": 0}, "scout_width"),
        ({"scout_square": 3}, "scout_square"),
    ],
)
def test_gates_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(SpecError, match=message):
        GateSpec.parse(fields)


def test_a_made_scout_keeps_its_size():
    with pytest.raises(SpecError, match=r"gates\.context: 5 does not fit"):
        scouted().decide(gates=GateSpec(source="map"))
    with pytest.raises(SpecError, match=r"gates\.scout: 4 does not fit; this network's gates were made with 2"):
        scouted().decide(gates=GateSpec(source="map", scout=4))
    with pytest.raises(SpecError, match=r"gates\.scout_square: 4 does not fit"):
        scouted().decide(gates=GateSpec(source="map", scout=2, scout_square=4))


@pytest.mark.parametrize("mode", ["dense", "packed"])
def test_it_can_be_laid_out_moved_and_cast_with_its_network(mode):
    """torch lays out what has four or five dimensions, and asks of `channels_last` that it has four."""
    net, images = scouted(), torch.randn(2, 3, 64, 64)
    expected = net(images).logits
    moved = copy.deepcopy(net).to(memory_format=torch.channels_last).decide(execution=mode)
    assert torch.allclose(moved(images.to(memory_format=torch.channels_last)).logits, expected, atol=1e-5)
    assert {name: weight.shape for name, weight in moved.state_dict().items()} == {
        name: weight.shape for name, weight in net.state_dict().items()
    }
    double = moved.double()
    assert double.gates[LEADER].scout.around_weight.dtype == torch.float64
    assert double.to("meta").gates[LEADER].scout.around_weight.is_meta


def test_its_weights_stay_parameters_that_learn_when_it_is_laid_out():
    scout = Scout(ScoutShape(8, 4, 2, 2))
    optimizer = torch.optim.SGD(scout.parameters(), lr=0.1)
    scout.to(memory_format=torch.channels_last)
    before = scout.around_weight.detach().clone()
    scout(torch.randn(1, 16, 8), (4, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(scout.around_weight, before)
