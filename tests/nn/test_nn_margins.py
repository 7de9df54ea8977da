"""Gates that see: a token's surroundings, one map for all rows, a share of the batch, and what they cost."""

import copy
from itertools import product

import numpy as np
import pytest
import torch
from modes import assert_modes_agree, assert_same_usage, with_lively_gates
from thinning import thinned
from torch.nn import functional as F

from routespace.deploy.counters import torch_macs
from routespace.deploy.extract import extract
from routespace.errors import GridError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.leading import leading_row
from routespace.grid.spec import GridSpec
from routespace.nn.routing.margins import OPENS_ALL, Cut, MarginMap, in_context, share_cut, smoothed
from routespace.nn.task_net import TaskNet
from routespace.nn.weights import load_net, save_net

MODES = ("packed", "auto")


def grid(**changes):
    fields = {"layers": 4, "max_down": 32, "widths": (8, 8, 16, 16), "heads": (1, 1, 2, 2), "image_size": 64,
              "mlp_ratios": (2,) * 4, "sr_ratios": (4, 2, 1, 1), "num_classes": 5}  # fmt: skip
    return RoutingGrid(GridSpec.parse(fields | changes))


def mapped(architecture=None, **fields):
    """A network whose rows follow one map."""
    torch.manual_seed(0)
    spec = GateSpec(**({"source": "map", "openness": 0.5} | fields))
    return with_lively_gates(TaskNet.classifier(architecture or Architecture.routed(grid(), "depth"), spec)).eval()


def test_the_context_is_what_numpy_finds():
    x = torch.randn(2, 5 * 7, 3)
    found = in_context(x, (5, 7), 3).view(2, 5, 7, 9).numpy()
    tokens = x.view(2, 5, 7, 3).numpy()
    for row, column in ((0, 0), (2, 3), (4, 6)):
        square = tokens[:, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].reshape(2, -1, 3)
        wanted = np.concatenate([tokens[:, row, column], square.mean(1), square.std(1)], 1)
        assert np.allclose(found[:, row, column], wanted, atol=1e-4)
    assert in_context(torch.ones(1, 9, 2, requires_grad=True), (3, 3), 5).requires_grad is False


@pytest.mark.parametrize("hw", [(8, 8), (3, 7), (1, 5)])
def test_surroundings_by_products_and_by_convolutions_are_alike(monkeypatch, hw):
    x = torch.randn(3, hw[0] * hw[1], 4)
    by_products = in_context(x, hw, 5)
    monkeypatch.setattr("routespace.nn.routing.margins.FEW_NUMBERS", 0)
    assert torch.allclose(by_products, in_context(x, hw, 5), atol=1e-5)


def test_smoothing_averages_what_is_inside():
    margins = torch.zeros(1, 9)
    margins[0, 0] = 12.0
    assert smoothed(margins, (3, 3), 3).view(3, 3).tolist() == [
        [3, 2, 0],
        [2, pytest.approx(12 / 9), 0],
        [0, 0, 0],
    ]
    assert smoothed(margins, (3, 3), 1) is margins


@pytest.mark.parametrize("hw", [(8, 16), (7, 9), (1, 5)])
def test_a_coarser_map_is_the_maximum_of_what_each_token_covers(hw):
    margins = torch.randn(2, hw[0] * hw[1])
    size, coarse = hw, MarginMap(margins, hw)
    for side in (2, 4, 8):
        size = (-(-hw[0] // side), -(-hw[1] // side))
        padded = F.pad(margins.view(2, *hw), (0, size[1] * side - hw[1], 0, size[0] * side - hw[0]), value=-9.0)
        wanted = padded.view(2, size[0], side, size[1], side).amax((2, 4))
        assert torch.equal(coarse.at(size).view_as(wanted), wanted)
        if all(each % side == 0 for each in hw):
            assert torch.equal(wanted, F.adaptive_max_pool2d(margins.view(2, *hw), size))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99, 1.0])
def test_a_cut_opens_its_share_of_the_batch(share):
    margins = torch.randn(4, 250)
    assert (margins > share_cut(margins, share)).sum() == round(1000 * share)


def test_a_cut_keeps_a_running_mean_and_holds_it_at_inference():
    cut, margins = Cut(), torch.arange(10.0).view(2, 5)
    assert (margins > cut(margins, None)).all()  # a new one opens everything
    assert cut(margins, 0.5) == 4.0
    assert cut.value == 4.0  # the first batch's is taken as it is
    assert cut(margins + 100, 0.5) == 104.0
    assert cut.value == pytest.approx(4 + 0.05 * 100)
    for held in (cut(margins, None), cut.eval()(margins, 0.5), cut.train()(margins[:0], 0.5)):
        assert held == pytest.approx(9.0)
    assert torch.isfinite(torch.tensor(OPENS_ALL).half())


SEEING = [
    {},
    {"opening": "share", "teach": "dense"},
    {"capacity": True, "keep": 0.4},
    {"early_stop": True},
    {"context": 1},
    {"rows": "window", "window": 3, "opening": "share"},
    {"rows": "window", "window": 2, "context": 1, "early_stop": True},
    {"scout": 2, "opening": "share", "teach": "dense"},
    {"scout": 1, "scout_square": 4, "capacity": True, "keep": 0.4},
]


@pytest.mark.parametrize(*thinned(net_of=list(product(["depth", "both"], [False, True])), fields=SEEING), ids=str)
def test_every_way_of_computing_agrees(net_of, fields):
    routing, training = net_of
    if routing == "both" and training:
        fields = fields | {"noise": 0.0}
    net = mapped(Architecture.routed(grid(), routing), **({"noise": 0.0} | fields)).train(training)
    images = torch.randn(3, 3, 64, 48)
    assert_modes_agree(net, images, None, MODES)
    assert_same_usage(net, images, None, MODES)
    again = net(images).routes.detach()
    some = type(again)({name: again[name] for name in list(again)[:1]})  # the leading row replayed, others asked
    assert torch.allclose(net(images, routes=some).logits, net(images).logits, atol=1e-4)


def test_later_rows_decide_by_the_first_ones_margins():
    net = mapped(smooth=1)
    leader, *others = net.gates
    assert leader == leading_row(net.architecture) == "l00_r04_transformer"
    assert sum(p.numel() for p in net.gates.parameters()) == 2 * (3 * 8 + 1)
    assert not any(net.gates[name].learned for name in others)
    with torch.no_grad():
        routes = net(torch.randn(2, 3, 64, 64)).routes
    fine = routes[leader].kept.view(2, 1, 16, 16).float()
    for name, side in zip(others, (8, 4, 2), strict=True):
        assert torch.equal(F.adaptive_max_pool2d(fine, side).flatten(1) > 0, routes[name].kept), name


@pytest.mark.parametrize("fields", [{}, {"scout": 1}, {"context": 1, "smooth": 1}], ids=str)
def test_windows_open_for_the_best_of_their_tokens(fields):
    """Part windows at the edges included: 16×12 tokens at rate 4 in windows of 5."""
    net = mapped(rows="window", window=5, **fields)
    by_token = mapped(**fields)
    by_token.load_state_dict(net.state_dict())
    images = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        windows, tokens = net(images).routes, by_token(images).routes
    for name, places in net.gate_places((64, 48)).items():
        height, width = places.hw
        kept = tokens[name].chance.view(2, height, width) > 0.5
        for top in range(0, height, 5):
            for left in range(0, width, 5):
                found = windows[name].kept.view(2, height, width)[:, top : top + 5, left : left + 5].flatten(1)
                wanted = kept[:, top : top + 5, left : left + 5].flatten(1).any(1)
                assert torch.equal(found, wanted[:, None].expand_as(found)), (name, top, left)


PRICED = [
    {"source": "map"},
    {"context": 5},
    {"source": "map", "opening": "share"},
    {"source": "map", "rows": "window", "window": 3},
]


@pytest.mark.parametrize(*thinned(routing=["depth", "both"], fields=PRICED), ids=str)
def test_the_price_is_what_torch_counts(routing, fields):
    architecture, gates = Architecture.routed(grid(), routing), GateSpec(**fields)
    size = 72, 88
    cost = architecture_cost(architecture, gates=gates, image_size=size)
    net = TaskNet.classifier(architecture, gates)
    count = torch_macs(net, size, meta=False)
    assert count.macs == cost.macs
    assert not count.unknown
    rows = [name for name in cost.gates if "transformer" in name]
    dear = [name for name in rows if cost.gates[name].macs]
    assert dear == (["l00_r04_transformer"] if gates.source == "map" else rows)
    assert cost.gates[dear[0]].macs == 2 * 3 * 8 * 18 * 22
    assert sum(p.numel() for p in net.parameters()) == cost.params


def test_it_is_saved_and_loaded_with_its_cuts(tmp_path):
    net = mapped(opening="share", teach="dense")
    net.gates["l02_r16_transformer"].cut.value.fill_(1.5)
    save_net(net, tmp_path)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        loaded = load_net(tmp_path).eval().decide(execution="dense")
        assert torch.equal(loaded(images).logits, net(images).logits)


def test_a_part_keeps_the_row_that_makes_the_map_or_no_gate():
    net, spec = mapped(), mapped().spec
    edges = dict(net.architecture.edges)
    kept = {**edges, "l01_r08_transformer": "open"}
    kept.pop("l01_r08_identity")
    part = extract(net, Architecture(spec, kept))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(part(images).logits, net.restrict(Architecture(spec, kept))(images).logits)
    assert extract(net, net.architecture.opened()).architecture.is_static
    without = {**edges, "l00_r04_transformer": "open"}
    without.pop("l00_r04_identity")
    with pytest.raises(GridError, match="l00_r04_transformer, whose gate makes the map"):
        net.restrict(Architecture(spec, without))


def test_a_row_that_cannot_lead_is_refused():
    small = grid(layers=2, max_down=8, widths=(8, 8), heads=(1, 1), mlp_ratios=(2, 2), sr_ratios=(2, 1))
    late = {"l00_r04_patch_embed": "gated", "l00_r04_identity": "open", "l01_r04_patch_embed": "open",
            "l00_r08_transformer": "gated", "l00_r08_identity": "gated", "l01_r08_identity": "open"}  # fmt: skip
    with pytest.raises(GridError, match="gates decide what arrives there"):
        mapped(Architecture(small.spec, late))
    coarse = late | {"l00_r04_patch_embed": "open", "l01_r04_transformer": "gated", "l01_r04_identity": "gated"}
    coarse.pop("l01_r04_patch_embed")
    with pytest.raises(GridError, match="but l01_r04_transformer is finer"):
        mapped(Architecture(grid(**FINE).spec, coarse))


FINE = {"layers": 2, "max_down": 8, "widths": (8, 8), "heads": (1, 1), "mlp_ratios": (2, 2), "sr_ratios": (2, 1),
        "outputs": "pyramid"}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "map", "rows": "image"}, "it needs rows 'token'"),
        ({"opening": "share", "kind": "tanh"}, "kind 'gumbel' or 'sigmoid'"),
        ({"teach": "dense", "selection": "random"}, "selection 'learned'"),
        ({"context": 4}, "4 is even"),
        ({"opening": "share", "capacity": True}, "leave out capacity"),
    ],
)
def test_gates_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(SpecError, match=message):
        GateSpec.parse(fields)


def test_made_gates_do_not_change_their_source():
    with pytest.raises(SpecError, match=r"gates\.source: 'own' does not fit"):
        mapped().decide(gates=GateSpec())
    with pytest.raises(SpecError, match=r"gates\.context: 1 does not fit"):
        mapped().decide(gates=GateSpec(source="map", context=1))


def test_what_a_taught_gate_decides_gives_it_no_gradient():
    images = torch.randn(2, 3, 64, 64)
    for teach, learns in (("none", True), ("dense", False)):
        net = mapped(teach=teach).train()
        net(images).logits.square().sum().backward()
        weight = net.gates["l00_r04_transformer"].weight
        assert (weight.grad is not None and bool(weight.grad.any())) == learns


def test_half_precision_decides_by_whole_numbers():
    """Under autocast margins keep their bits, so a share stays a share."""
    net = mapped(opening="share", noise=0.0).train()
    net.decide(shares=dict.fromkeys(net.gates, 0.3))
    with torch.autocast("cpu", torch.bfloat16):
        routes = net(torch.randn(4, 3, 64, 64)).routes
    assert routes["l00_r04_transformer"].kept.float().mean() == pytest.approx(0.3, abs=0.01)
    half = copy.deepcopy(net).bfloat16().eval()
    assert torch.isfinite(half(torch.randn(2, 3, 64, 64).bfloat16()).logits).all()
