"""train/foresight.py and the search of calibration: what one pass says of other thresholds, and few passes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train_tiny import tiny

from routespace.nn.task_net import TaskNet
from routespace.nn.usage import metered
from routespace.train.calibrate import STEPS, Trial, calibrate_threshold, set_threshold, tried_thresholds
from routespace.train.foresight import BINS, LOGIT_RANGE, Chances
from routespace.train.macs import closed_macs, open_macs

MAP = {"routing": "depth", "gates__source": "map", "gates__opening": "share", "gates__teach": "dense"}
EDGE = 2 * LOGIT_RANGE / BINS  # between two bins; a decision hardly ever lies there


def network(**changes) -> TaskNet:
    torch.manual_seed(0)
    recipe = tiny(**changes)
    net = TaskNet.classifier(recipe.architecture(), recipe.gates).eval()
    for gate in net.gates.values():  # as after a training: margins far from each other, and cut in the middle
        if gate.learned and gate.weight is not None:
            gate.ema_weight.mul_(50)
        if gate.cut is not None:
            gate.cut.value.zero_()
    return net


def batches(sizes=((32, 32),)):
    noise = torch.Generator().manual_seed(0)
    return [torch.randn(5, 3, *size, generator=noise) * torch.rand(5, 1, *size, generator=noise) for size in sizes]


@torch.no_grad()
def seen(net, logit, images):
    set_threshold(net, logit)
    chances = Chances()
    return metered(net, images, chances.update).usage(), chances


@settings(max_examples=20)
@given(at=st.integers(-300, 300), to=st.integers(-300, 300), skipped=st.sampled_from(["identity", "linear"]))
def test_of_one_map_other_thresholds_are_foreseen_exactly(at, to, skipped):
    net = network(**MAP, gates__skipped=skipped)
    usage, chances = seen(net, at * EDGE, batches())
    found = chances.foreseen(usage, at=at * EDGE, to=to * EDGE)
    there, _ = seen(net, to * EDGE, batches())
    assert found.keys() == there.keys()
    for name, used in there.items():
        assert found[name].tokens == pytest.approx(used.tokens, abs=1e-6), name
        assert found[name].images == pytest.approx(used.images, abs=1e-6), name
        assert found[name].skipped == pytest.approx(used.skipped, abs=1e-6), name


@pytest.mark.parametrize("rows", ["token", "window", "image", "layer"])
def test_of_any_gates_the_same_threshold_is_foreseen_as_it_was(rows):
    usage, chances = seen(network(gates__rows=rows, gates__columns="token"), 0.1, batches())
    assert chances.foreseen(usage, at=0.1, to=0.1) == usage


FEW = [(MAP, 2), ({"gates__kind": "tanh", "routing": "depth"}, 2), ({"gates__columns": "token"}, 4)]


@pytest.mark.parametrize("ratio", [0.2, 0.5])
@pytest.mark.parametrize(("changes", "most"), FEW, ids=["map", "tanh", "tokens that go down"])
def test_calibration_takes_few_passes(changes, most, ratio, monkeypatch):
    net, images = network(**changes), Counting(batches([(32, 32)] * 10))
    monkeypatch.setattr("routespace.train.calibrate.HELD_BYTES", 0)
    low, high = closed_macs(net.architecture, net.gate_spec), open_macs(net.architecture, net.gate_spec)
    found = calibrate_threshold(net, images, low + ratio * (high - low))
    assert found.macs == pytest.approx(found.target, rel=0.0025)
    assert images.passes - 1 <= most  # and one to see whether they can be held


def test_a_walk_and_false_position_go_on_where_nothing_is_foreseen():
    """MACs that jump, as of gates of whole images: the search ends at the jump, on either side of it."""

    def trial(logit):
        return Trial(logit, 100.0 if logit < 1.23456 else 50.0, lambda _: None)

    for start in (0.0, 5.0):
        tried = tried_thresholds(trial, start, 80.0)
        assert len(tried) <= STEPS
        assert {found.macs for found in tried[-STEPS:]} == {50.0, 100.0}
        near = sorted(abs(found.logit - 1.23456) for found in tried)
        assert near[0] < 0.01
    assert (
        len(tried_thresholds(lambda logit: Trial(logit, 100.0, lambda _: None), 0.0, 80.0)) < 8
    )  # nothing closes them
    misled = tried_thresholds(
        lambda logit: Trial(logit, 80.0 - logit, lambda _: -3.0), -2.0, 77.0
    )  # the wrong way
    assert misled[-1].macs == pytest.approx(77.0, rel=0.0025)


class Counting:
    """Batches that are made anew in each pass, and how many passes there were."""

    def __init__(self, images):
        self.images, self.passes = images, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.images)
