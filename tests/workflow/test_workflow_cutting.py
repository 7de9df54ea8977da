"""Cutting in steps: how many, inside what was left, taught by the first network, and what the bundle tells."""

import pytest
import torch
from train_tiny import tiny

from routespace import extract_bundle, load_bundle, load_run, train_recipe
from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.nn.cost import network_cost
from routespace.workflow.cutting import cut_down, cut_limits, way_in, with_choices
from routespace.workflow.fine_tuning import FineTuning


def test_no_cut_takes_more_than_its_share_and_all_take_the_same():
    tuning = FineTuning(8, most_cut=0.6)
    assert cut_limits(100, 40, tuning) == [40]
    assert cut_limits(100, 90, tuning) == [90]
    assert cut_limits(100, 120, tuning) == [120]
    assert cut_limits(100, 39, tuning) == pytest.approx([39**0.5 * 10, 39])
    assert cut_limits(100, 6.4, tuning) == pytest.approx([40, 16, 6.4])
    assert cut_limits(100, 6.4, FineTuning(2, most_cut=0.6)) == pytest.approx(
        [6.4**0.5 * 10, 6.4]
    )  # one epoch each at least
    assert cut_limits(100, 6.4, FineTuning(8)) == [6.4]  # at once
    for share in (0, 1.5, -1):
        with pytest.raises(SpecError, match=r"cut: .* is not allowed; give a share above 0"):
            FineTuning(1, most_cut=share)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("cutting") / "run"
    train_recipe(tiny(**{"grid.layers": 3, "train.epochs": 1, "train.mode": "sandwich", "budget.ratio": 0.8}), out)
    return load_run(out)


def test_a_part_with_its_choices_again_computes_the_same_and_may_lose_them(run):
    whole = run.net.architecture
    part = Architecture.staircase(whole.grid, (2, 1))
    small = run.net.restrict(part).eval()
    again = with_choices(small, whole)
    assert again.architecture.opened() == part
    assert again.architecture.contains(Architecture.staircase(whole.grid, (2, 0)))
    assert not again.architecture.contains(Architecture.staircase(whole.grid, (1, 1)))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.restrict(part)(images).logits, small(images).logits)


@pytest.mark.parametrize("by", [pytest.param("candidates", marks=pytest.mark.slow), "usage"])
def test_the_last_cut_is_made_inside_what_the_first_ones_left(run, by, tmp_path):
    whole = network_cost(run.net).macs
    wanted = 0.45 * whole
    tuning = FineTuning(3, teacher="none" if by == "usage" else None, most_cut=0.35)
    said = []
    state = torch.random.get_rng_state()
    stage = cut_down(run, {"macs": wanted}, tuning, by=by, tell=said.append)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert stage.cuts == 1
    assert stage.tuning.epochs == 1
    assert [way_in(each, "usage") for each in (run, stage.artifact)] == ["usage", "kl"]
    left = network_cost(stage.artifact.net.restrict(stage.artifact.net.architecture.opened())).macs
    assert wanted < left <= (wanted * whole) ** 0.5
    assert any("cut 1 of 2" in line for line in said)
    taken = extract_bundle(run, tmp_path / "small", limits={"macs": wanted}, by=by, tuning=tuning)
    assert taken.card.macs <= wanted
    assert taken.tuned["epochs"] == 1
    assert taken.card.provenance.parent == run.net.architecture.hash
    assert load_bundle(tmp_path / "small").net.architecture == taken.net.architecture


def test_one_cut_where_that_is_allowed(run):
    tuning = FineTuning(2)
    for limits, wanted in (({"macs": 0.5 * network_cost(run.net).macs}, tuning), ({"params": 1e9}, tuning)):
        stage = cut_down(run, limits, wanted, by="usage")
        assert (stage.artifact, stage.tuning, stage.cuts) == (run, tuning, 0)
    assert cut_down(run, {"macs": 1.0}, None, by="usage").artifact is run
