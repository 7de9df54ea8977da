"""Evaluating many parts of a supernet at once gives exactly what each gives alone."""

import weakref

import pytest
import torch
from tiny_grid import TINY_GRID

from routespace import evaluate_candidates
from routespace.errors import DataError, GridError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import RoutingGrid
from routespace.grid.sample import sample_static
from routespace.grid.spec import GridSpec
from routespace.nn.candidates import SharedParts
from routespace.nn.task_net import TaskNet
from routespace.train.candidates import not_behind
from routespace.train.evaluate import evaluate

WIDE = TINY_GRID | {
    "layers": 5,
    "max_down": 32,
    "widths": [8, 8, 16, 16],
    "heads": [1, 2, 2, 4],
    "mlp_ratios": [2, 2, 2, 2],
    "sr_ratios": [4, 2, 1, 1],
    "image_size": 64,
}
SWIN = {name: value for name, value in WIDE.items() if name != "sr_ratios"} | {"family": "swin_v2", "window": 4}
GRIDS = {
    "coarsest": WIDE,
    "pyramid": WIDE | {"outputs": "pyramid"},
    "several blocks": WIDE | {"depths": [1, 2, 1, 3, 1]},
    "swin_v2": SWIN,
}


def supernet(fields):
    torch.manual_seed(2)
    return TaskNet.classifier(Architecture.full(RoutingGrid(GridSpec.parse(fields)))).eval()


def batches(count=2, size=4):
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(size, 3, 64, 64, generator=generator), torch.randint(10, (size,), generator=generator))
        for _ in range(count)
    ]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_outputs_are_those_of_each_part_alone_to_the_last_bit(grid, seed):
    net = supernet(GRIDS[grid])
    parts = sample_static(net.architecture.grid, 12, seed=seed)
    shared = SharedParts(net, parts)
    images = batches(1)[0][0]
    with torch.no_grad():
        found = dict(shared(images))
        for place, part in enumerate(parts):
            assert torch.equal(found[place], net.restrict(part)(images).logits)
    assert 0 < shared.share < 1


def test_numbers_are_those_of_evaluate():
    net = supernet(WIDE)
    parts = sample_static(net.architecture.grid, 6, seed=3)
    parts += [parts[2], Architecture.staircase(net.architecture.grid)]
    net.train()
    found = evaluate_candidates(net, parts, batches())
    assert net.training
    for part, numbers in zip(parts, found, strict=True):
        alone = evaluate(net.restrict(part), batches())
        for name in ("accuracy", "loss", "images", "counted_macs"):
            assert numbers[name] == alone[name], name
    assert found[2] == found[6]


def test_what_is_shared_is_computed_once():
    net = supernet(WIDE)
    grid = net.architecture.grid
    parts = [Architecture.staircase(grid, split) for split in ((2, 1, 1, 1), (2, 1, 1, 0), (2, 1, 0, 1))]
    calls = dict.fromkeys(net.edges, 0)
    for name, edge in net.edges.items():
        edge.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    evaluate_candidates(net, parts, batches(1))
    assert calls["l00_r04_transformer"] == calls["l01_r04_transformer"] == calls["l02_r08_transformer"] == 1
    assert calls["l03_r16_transformer"] == 1
    assert calls["l04_r32_transformer"] == 1  # the third goes down a layer earlier
    assert sum(calls.values()) < sum(len([n for n in part.edges if "identity" not in n]) for part in parts)


def test_maps_are_dropped_as_soon_as_nobody_reads_them():
    net = supernet(WIDE)
    grid = net.architecture.grid
    parts = [Architecture.staircase(grid, split) for split in ((2, 1, 1, 1), (1, 2, 1, 1), (2, 1, 1, 0))]
    made, most = [], 0

    def note(module, inputs, output):
        nonlocal most
        made.append(weakref.ref(output))
        most = max(most, sum(ref() is not None for ref in made))

    for edge in net.edges.values():
        edge.register_forward_hook(note)
    with torch.no_grad():
        for _, _ in SharedParts(net, parts)(batches(1)[0][0]):
            pass
    assert len(made) > 12
    assert most <= 4  # one path's, and where another one parts from it
    assert all(ref() is None for ref in made)


def test_what_cannot_be_evaluated_is_refused_in_one_line():
    net = supernet(WIDE)
    grid = net.architecture.grid
    with pytest.raises(SpecError, match="has gates; give static ones"):
        evaluate_candidates(net, [Architecture.routed(grid, "depth")], batches())
    with pytest.raises(SpecError, match="there are none; give one or more"):
        evaluate_candidates(net, [], batches())
    stairs = net.restrict(Architecture.staircase(grid))
    with pytest.raises(GridError, match="is no part of"):
        evaluate_candidates(stairs, [Architecture.staircase(grid, (1, 1, 1, 1))], batches())
    with pytest.raises(DataError, match="no images"):
        evaluate_candidates(net, [stairs.architecture], [])


def test_parts_that_are_clearly_behind_are_measured_no_further():
    net = supernet(WIDE)
    grid = net.architecture.grid
    good, bad = (Architecture.staircase(grid, split) for split in ((2, 1, 1, 1), (1, 0, 0, 0)))
    pictures = batches(12, 16)
    with torch.no_grad():
        labels = [net.restrict(good)(images).logits.argmax(1) for images, _ in pictures]
    loader = [(images, label) for (images, _), label in zip(pictures, labels, strict=True)]
    with torch.no_grad():  # a part whose answers are others
        net.edges["l04_r32_transformer"].requires_grad_(False)
        wrong = [(net.restrict(bad)(images).logits.argmax(1) == label).float().mean() for images, label in loader]
    full = evaluate_candidates(net, [bad, good, bad], loader)
    found = evaluate_candidates(net, [bad, good, bad], loader, drop_errors=4.0)
    assert found[1] | {"seconds": 0} == full[1] | {"seconds": 0}
    assert found[1]["accuracy"] == 1.0
    behind = sum(wrong) / len(wrong) < 0.8
    assert found[0]["dropped"] == found[2]["dropped"] == behind
    assert not any(part["dropped"] for part in full)
    if behind:
        assert found[0]["images"] < found[1]["images"] == 12 * 16


def test_who_is_behind():
    even = [0.5, 0.6, 0.4, 0.5, 0.55]
    low = [score - 0.3 for score in even]
    assert not_behind([0, 1], [even, low], 4.0) == [0]
    assert not_behind([0, 1], [even, low], -4.0) == [1]  # where less is better
    assert not_behind([0, 1], [even[:3], low[:3]], 4.0) == [0, 1]  # too few to tell
    noisy = [0.9, 0.0, 0.8, 0.1, 0.3]
    assert not_behind([0, 1], [even, noisy], 4.0) == [0, 1]
    assert not_behind([2], [[], [], even], 4.0) == [2]
