"""Heads of architectures that never reach some of the grid's rates: what is left of them, costs and outputs."""

import numpy as np
import pytest
import torch
from dense_tiny import dense_net, pyramid_grid, target
from torch.nn import functional as F

from routespace.deploy.extract import extract
from routespace.deploy.verify import static_routes, verify
from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.sample import architectures_of, sample_static_bits
from routespace.nn.candidates import SharedParts
from routespace.nn.cost import network_cost
from routespace.nn.heads.kinds import make_head
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet

RATES = {"max_down": 32, "widths": [8, 16, 16, 24], "heads": [1, 2, 2, 2], "mlp_ratios": [2] * 4}
GRID = pyramid_grid(layers=2, sr_ratios=[2, 1, 1, 1], image_size=64, **RATES)
HEADS = {
    "retinanet": ("detect", {"classes": 3, "width": 32}),
    "retinanet, of the backbone": ("detect", {"classes": 3, "width": 32, "beyond": "backbone"}),
    "retinanet, finest 4": ("detect", {"classes": 3, "width": 32, "finest": 4}),
    "fcos": ("detect", {"classes": 3, "width": 64, "detector": "fcos"}),
    "mask r-cnn": ("instance", {"classes": 3, "width": 16, "proposals": 20, "max_detections": 10}),
    "semantic fpn": ("semantic", {"classes": 5, "channels": 64}),
    "semantic fpn, 3x3": ("semantic", {"classes": 5, "channels": 64, "decoder": "semantic_fpn_3x3"}),
    "upernet": ("semantic", {"classes": 5, "channels": 64, "decoder": "upernet"}),
}
SIZES = (64, 64), (75, 101)  # also one that no rate divides


def supernet(name: str) -> TaskNet:
    kind, settings = HEADS[name]
    net = dense_net(kind, grid=GRID, **settings)
    for weight in net.head.parameters():  # classifiers begin with next to nothing
        weight.data.add_(0.02 * torch.randn_like(weight))
    return net.eval()


def readable(net: TaskNet, architecture: Architecture) -> bool:
    return bool(set(net.head.reads(GRID.spec)) & set(architecture.output_rates))


def one_of_each() -> list[Architecture]:
    """A sampled architecture for each set of rates that can be reached."""
    bits = sample_static_bits(GRID, 20_000, seed=1, every_rate=False)
    entered = [bits[:, [edge.target == node for edge in GRID.edges.values()]].any(1) for node in GRID.outputs]
    _, first = np.unique(np.stack(entered, axis=1), axis=0, return_index=True)
    return architectures_of(GRID, bits[first])


PARTS = one_of_each()
TOLD = {(4,), (8, 16), (8, 32), (16, 32), (4, 16, 32)}  # an end, another, a gap, …
FEW = [part for part in PARTS if part.output_rates in TOLD]
MANY = pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["few", "all"])


def test_every_set_of_rates_is_sampled():
    assert len(PARTS) == 2**4 - 1


@MANY
@pytest.mark.parametrize("name", HEADS)
def test_a_part_of_any_rates_equals_the_supernet_along_it_and_costs_what_torch_counts(name, many):
    net, parts = supernet(name), PARTS if many else FEW[list(HEADS).index(name) % 2 :: 2]
    for number, part in enumerate(parts):
        if not readable(net, part):
            with pytest.raises(SpecError, match="keep a path to one of them"):
                net.restrict(part)
            continue
        small, size = extract(net, part), SIZES[number % 2]
        report = verify(net, part, small, image_size=size)
        assert report.ok, (part.output_rates, report.lines())
        assert report.macs[0] == report.macs[1] == network_cost(small, image_size=size).macs
        assert bool(small.head.lines()) == (small.head.reads(GRID.spec) != net.head.reads(GRID.spec))


@pytest.mark.parametrize("name", HEADS)
def test_held_gates_leave_the_same_maps_out(name):
    net, images = supernet(name), torch.randn(2, 3, *SIZES[1])
    for part in FEW:
        if not readable(net, part) or static_routes(net, part, images) is None:
            continue
        with torch.no_grad(), net.deciding_as(held=part):
            held = net(images)
        wanted = net.restrict(part)
        with torch.no_grad():
            expected = wanted.head.tensors(wanted(images).outputs)
        torch.testing.assert_close(wanted.head.tensors(held.outputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_a_part_learns_the_weights_of_the_whole(name):
    net = supernet(name).train()
    part = next(one for one in PARTS if one.output_rates == (8, 32))
    small = net.restrict(part).train()
    known = [
        target((64, 64), [[4.0, 8.0, 30.0, 40.0]], [1]) | {"masks": torch.ones(1, 64, 64, dtype=torch.bool)}
    ] * 2
    outputs = small(torch.randn(2, 3, 64, 64)).outputs
    loss = outputs.square().sum() if isinstance(outputs, torch.Tensor) else sum(outputs.losses(known).values())
    loss.backward()
    learned = {name for name, weight in net.head.named_parameters() if weight.grad is not None}
    assert learned == dict(small.head.named_parameters()).keys()
    whole = dict(net.head.named_parameters())
    assert all(whole[name] is weight for name, weight in small.head.named_parameters())


@pytest.mark.parametrize("name", ["retinanet", "fcos", "mask r-cnn"])
def test_anchors_stay_unless_they_are_finer_than_any_map(name):
    net = supernet(name)
    full = net.head.pyramid_rates
    for part in FEW:
        if readable(net, part):
            head = net.restrict(part).head
            finest = min(rate for rate in part.output_rates if rate in net.head.grid_rates)
            assert head.pyramid_rates == tuple(rate for rate in full if rate >= finest)
            out = net.restrict(part)(torch.randn(1, 3, 64, 64)).outputs
            assert len(out.detections([(64, 64)])) == 1


def test_missing_levels_are_made_of_those_that_there_are():
    net = supernet("retinanet, finest 4")
    maps = {8: torch.randn(1, 16, 13, 8), 16: torch.randn(1, 16, 7, 4)}
    fpn = net.head.pyramid.fpn
    got = net.head.over([8, 16]).pyramid(maps)
    inner16 = fpn.inner_blocks[2](maps[16])
    inner8 = fpn.inner_blocks[1](maps[8]) + F.interpolate(inner16, size=(13, 8), mode="nearest")
    wanted = [fpn.layer_blocks[1](inner8), fpn.layer_blocks[2](inner16)]
    wanted.append(wanted[-1][..., ::2, ::2])  # rate 32: every second place of the last
    p6 = fpn.extra_blocks.p6(wanted[-1])
    torch.testing.assert_close(got, [*wanted, p6, fpn.extra_blocks.p7(F.relu(p6))])
    assert [tuple(x.shape[-2:]) for x in got] == [(13, 8), (7, 4), (4, 2), (2, 1), (1, 1)]
    between = net.head.over([4, 16]).pyramid({4: torch.randn(1, 8, 25, 16), 16: maps[16]})
    top = F.interpolate(inner16, size=(13, 8), mode="nearest")
    torch.testing.assert_close(between[1], fpn.layer_blocks[1](top))  # rate 8, of what comes from above


def test_without_the_backbones_last_map_the_one_beyond_it_is_every_second_place_of_the_pyramids():
    net = supernet("retinanet, of the backbone")
    fpn, maps = net.head.pyramid.fpn, {8: torch.randn(1, 16, 13, 8), 16: torch.randn(1, 16, 7, 4)}
    part = net.head.over([8, 16])
    *levels, first, second = part.pyramid(maps)
    wanted = levels[-1][..., ::2, ::2]
    torch.testing.assert_close([first, second], [wanted, fpn.extra_blocks.p7(F.relu(wanted))])
    assert not [name for name, _ in part.named_parameters() if ".p6." in name]
    assert any(line.endswith("reads 8, 16 and makes 32, 64, 128 of them") for line in part.lines())
    whole = {8: maps[8], 32: torch.randn(1, 24, 4, 2)}  # it reads the last one, and lacks one before it
    between = net.head.over([8, 32]).pyramid(whole)
    torch.testing.assert_close(between[-2], fpn.extra_blocks.p6(whole[32]))


def test_upernet_without_some_maps_fuses_what_it_fused():
    net = supernet("upernet")
    decoder = net.head.decoder
    maps = [torch.randn(1, c, 16 >> n, 16 >> n) for n, c in enumerate((8, 16, 16, 24))]
    part = net.head.over([8, 32]).decoder
    conv, norm, act = decoder.decoder.fusion_block
    fused = torch.zeros(1, 64, 8, 8)
    top = decoder.decoder.psp(decoder.decoder.feature_norms[3](maps[3]))
    lateral = decoder.decoder.fpn_lateral_blocks[1].conv_norm_relu(decoder.decoder.feature_norms[1](maps[1]))
    big = F.interpolate(top, size=(8, 8), mode="bilinear")
    levels = {1: decoder.decoder.fpn_conv_blocks[1](lateral + big), 3: big}
    for place, level in levels.items():
        fused = fused + F.conv2d(level, conv.weight[:, 64 * place : 64 * place + 64], padding=1)
    torch.testing.assert_close(part([maps[1], maps[3]]), act(norm(fused)), rtol=1e-4, atol=1e-5)


def test_semantic_fpn_without_the_finest_map_gives_what_it_would_have_grown():
    """Without rate 4 the last doubling falls away; where all branches double once more, nothing else changes."""
    net = supernet("semantic fpn")
    maps = {rate: torch.randn(1, c, 64 // rate, 64 // rate) for rate, c in ((8, 16), (16, 16), (32, 24))}
    part = net.head.over([8, 16, 32])
    assert part.rates == (8, 16, 32)
    small = part.decoder(list(maps.values()))
    assert small.shape[-2:] == (8, 8)
    top, levels = None, {}
    for place, rate in ((3, 32), (2, 16), (1, 8)):
        lateral = net.head.decoder.laterals[place](maps[rate])
        top = lateral if top is None else lateral + F.interpolate(top, size=lateral.shape[-2:], mode="nearest")
        levels[place] = top
    grown = sum(net.head.decoder.branches[place](level) for place, level in levels.items())
    doubled = F.interpolate(small, scale_factor=2.0, mode="bilinear", align_corners=True)
    torch.testing.assert_close(doubled, grown, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_candidates_of_different_rates_are_evaluated_together(name):
    net, images = supernet(name), torch.randn(1, 3, 64, 64)
    parts = [part for part in FEW if readable(net, part)]
    with torch.no_grad():
        for place, outputs in SharedParts(net, parts)(images):
            alone = net.restrict(parts[place])
            torch.testing.assert_close(alone.head.tensors(outputs), alone.head.tensors(alone(images).outputs))


@pytest.mark.parametrize("name", ["retinanet", "upernet"])
def test_a_part_of_a_part_and_a_fresh_network_have_the_same_keys(name):
    net = supernet(name)
    kind, settings = HEADS[name]
    wide = next(one for one in PARTS if one.output_rates == (8, 16, 32))
    narrow = next(one for one in PARTS if one.output_rates == (8, 16))
    again = net.head.over(wide.output_rates).over(narrow.output_rates)
    fresh = TaskNet(RouteNet(narrow), make_head(GRID.spec, {"kind": kind, **settings}))
    assert (
        again.state_dict().keys()
        == fresh.head.state_dict().keys()
        == net.restrict(narrow).head.state_dict().keys()
    )
    assert again.lines() == fresh.head.lines()
    assert len(fresh.head.lines()) == 1
    assert "the architecture never reaches rates" in fresh.head.lines()[0]


def test_what_a_head_does_without_is_told():
    net = supernet("retinanet")
    told = {rates: net.head.over(rates).lines() for rates in ((4, 8, 16, 32), (8, 16), (16, 32), (8, 32))}
    assert told[4, 8, 16, 32] == ()
    assert told[8, 16] == (
        "task: the architecture never reaches rates 32; the detector reads 8, 16 and makes 32, 64, 128 of them",
    )
    assert "never reaches rates 8; the detector reads 16, 32 and makes 64, 128" in told[16, 32][0]
    assert "never reaches rates 16; the detector reads 8, 32 and makes 16, 64, 128" in told[8, 32][0]


def test_a_classifier_needs_its_map():
    grid = pyramid_grid(num_classes=10)
    part = Architecture.static(grid.spec, ["l00_r04_transformer", "l01_r04_transformer"])
    with pytest.raises(SpecError, match="a classifier reads the map at rate 8; keep a path to it"):
        TaskNet.classifier(part)
    maps = TaskNet.classifier(Architecture.static(pyramid_grid().spec, list(part.edges)))
    assert list(maps(torch.randn(1, 3, 32, 32)).outputs) == [4]
