"""What edges are worth, by what happens without them: exact for one edge, refused in one line, left as it was."""

import pytest
import torch
from tiny_grid import TINY_GRID
from torch.nn import functional as F

from routespace.deploy.derive import derive
from routespace.deploy.removal import outputs_distance, removal_scores
from routespace.errors import DataError, GridError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.task_net import TaskNet


def net_of(architecture, **gates):
    torch.manual_seed(1)
    net = TaskNet.classifier(architecture, GateSpec(**gates)).eval()
    with torch.no_grad():
        net.head.weight.mul_(20)
    return net


@pytest.fixture(scope="module")
def grid():
    return RoutingGrid(GridSpec.parse(TINY_GRID | {"layers": 3}))


def batches(count=2):
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(4, 3, 32, 32, generator=generator), None) for _ in range(count)]


def kl(before, after):
    p = before.double().softmax(1)
    return float((p * (p.log() - after.double().log_softmax(1))).sum(1).mean())


def test_a_gated_edge_is_worth_being_missed_less_what_always_computing_it_changes(grid):
    net = net_of(Architecture.full(grid), openness=0.5)
    net.train()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    deciding = net.deciding
    scores = removal_scores(net, batches())
    assert net.training
    assert net.deciding == deciding
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in state.items())
    assert set(scores) == set(net.architecture.edges)
    net.eval()
    images = torch.cat([images for images, _ in batches()])
    edges = dict(net.architecture.edges)
    row, passing = "l01_r04_transformer", "l01_r04_identity"
    shut = Architecture.cleaned(grid.spec, {n: s for n, s in edges.items() if n != row} | {passing: "open"})
    always = Architecture.cleaned(grid.spec, {n: s for n, s in edges.items() if n != passing} | {row: "open"})
    with torch.no_grad():
        before = net(images).logits
        wanted = kl(before, net.restrict(shut)(images).logits) - kl(before, net.restrict(always)(images).logits)
    assert scores[row] == pytest.approx(wanted, abs=1e-9)
    assert 0 < scores[passing] < max(scores.values()) / 1000


def test_from_a_static_part_each_edge_is_worth_what_its_absence_changes(grid):
    net = net_of(Architecture.full(grid))
    stairs = Architecture.staircase(grid, (2, 1))
    scores = removal_scores(net, [images for images, _ in batches()], base=stairs)
    assert set(scores) == set(stairs.edges)
    images = torch.cat([images for images, _ in batches()])
    names = ["l00_r04_identity", *(name for name in stairs.edges if name != "l00_r04_transformer")]
    without = Architecture.static(grid.spec, names)
    with torch.no_grad():
        wanted = kl(net.restrict(stairs)(images).logits, net.restrict(without)(images).logits)
    assert scores["l00_r04_transformer"] == pytest.approx(wanted, abs=1e-9)
    assert scores["l02_r04_patch_embed"] == max(scores.values())  # the only way down
    with pytest.raises(GridError, match="base: it is no static part"):
        removal_scores(net, batches(), base=net.architecture)


def test_the_map_of_the_first_row_cannot_go_alone_and_other_networks_are_scored_as_well(grid):
    net = net_of(Architecture.routed(grid, "depth"), source="map", opening="share", keep=0.5)
    scores = removal_scores(net, batches())
    assert scores["l00_r04_transformer"] == max(abs(score) for score in scores.values())
    part = derive(net.architecture, {}, scores=scores, macs=10_000_000)
    assert net.architecture.contains(part)


def test_distances_of_outputs():
    a, b = torch.randn(5, 7), torch.randn(5, 7)
    assert outputs_distance(a, a) == pytest.approx(0, abs=1e-12)
    assert outputs_distance(a, b) == pytest.approx(kl(a, b))
    assert kl(a, b) == pytest.approx(
        float(F.kl_div(b.log_softmax(1), a.log_softmax(1), reduction="batchmean", log_target=True)), rel=1e-5
    )
    maps = {"x": torch.ones(2, 3, 4), "n": torch.arange(3)}
    moved = {"x": torch.full((2, 3, 4), 1.5), "n": torch.arange(3)}
    assert outputs_distance(maps, moved) == pytest.approx(0.25)


def test_images_are_needed(grid):
    with pytest.raises(DataError, match="no images to score edges on"):
        removal_scores(net_of(Architecture.staircase(grid)), [])
