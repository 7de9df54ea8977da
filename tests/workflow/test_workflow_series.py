"""Several networks of falling budgets: each cut from the one before, trained on, and saved with the others."""

import json

import pytest
import torch
from train_tiny import tiny

from routespace import (
    BudgetError,
    BundleError,
    FineTuning,
    SpecError,
    evaluate_network,
    extract_bundle,
    extract_series,
    load_bundle,
    load_run,
    train_recipe,
)
from routespace.grid.cost import architecture_cost
from routespace.train.stopping import TrainingStoppedError
from routespace.workflow import series as workflow_series
from routespace.workflow import taking
from routespace.workflow.artifacts import load_artifact

TUNING = FineTuning(1, "none")
TOLD = {"image_size", "macs", "score", "why_not", "epochs", "tuned"}  # of each image size that was tried
CHANGES = {"grid__layers": 3, "train__epochs": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a supernet on images of 32 px."""
    out = tmp_path_factory.mktemp("series") / "run"
    train_recipe(tiny(**CHANGES, train__mode="sandwich"), out)
    return load_run(out)


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    """A finished run of a plain network of three blocks."""
    out = tmp_path_factory.mktemp("series") / "static"
    train_recipe(tiny(**CHANGES, routing="static"), out)
    return load_run(out)


@pytest.fixture
def tunings(monkeypatch):
    """Pairs of the weights that a fine-tuning began with, and those that it made."""
    found, real = [], taking.fine_tune

    def heard(artifact, small, *args, **options):
        before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
        result = real(artifact, small, *args, **options)
        found.append((before, result.net.state_dict()))
        return result

    monkeypatch.setattr(taking, "fine_tune", heard)
    return found


def within(small, large) -> bool:
    """Whether all weights of one are the other's."""
    return all(torch.equal(tensor, large[name]) for name, tensor in small.items())


def test_each_network_is_cut_from_the_trained_one_before(run, tunings, tmp_path):
    base = run.recipe.base_macs()
    budgets = {"half": 0.5 * base, "large": 0.9 * base, "0.7": 0.7 * base}
    found = extract_series(run, tmp_path / "all", macs=budgets, by="kl", tuning=TUNING, image_size=[24, 32])
    assert [member.name for member in found.members] == ["large", "0.7", "half"]
    (first, tuned), (second, again), (third, _) = tunings
    assert within(first, run.net.state_dict())
    assert within(second, tuned)
    assert not within(second, run.net.state_dict())
    assert within(third, again)
    table = json.loads((tmp_path / "all" / "series.json").read_text())["networks"]
    assert table == found.rows()
    sides = [row["image_size"][0] for row in table]
    assert sides == sorted(sides, reverse=True)
    for row, member in zip(table, found.members, strict=True):
        bundle = load_artifact(tmp_path / "all" / member.name)
        assert bundle.card == member.taken.card
        assert bundle.card.macs == architecture_cost(bundle.net.architecture).macs == row["macs"]
        assert row["macs"] <= budgets[member.name] == row["limits"]["macs"]
        assert (row["params"], row["epochs"]) == (bundle.card.params, 1)
        assert evaluate_network(bundle.net, bundle.recipe, split="val")["accuracy"] == row["score"]
        whole, cut, after = bundle.scores
        assert (cut.value, after.value) == (row["cut"], row["score"])
        assert (whole.value, whole.image_size) == (found.members[0].taken.score_whole, (32, 32))
        assert bundle.card.provenance.parent == run.net.architecture.hash
        assert [each["score"] for each in row["tried"]] == [each.score for each in member.taken.tried]
        assert all(set(each) == TOLD for each in row["tried"])
        assert bundle.net.spec.image_size == bundle.recipe.grid.image_size == tuple(row["image_size"])
    assert [path.name for path in tmp_path.iterdir()] == ["all"]


def test_a_static_network_that_is_small_enough_is_the_first_and_loses_blocks_afterwards(static, tunings, tmp_path):
    whole = architecture_cost(static.net.architecture).macs
    found = extract_series(static, tmp_path / "all", macs=[whole, 0.8 * whole, 0.6 * whole], tuning=TUNING)
    first, second, third = (member.taken for member in found.members)
    assert within(first.net.state_dict(), static.net.state_dict())
    assert first.net.architecture == static.net.architecture
    assert [row["epochs"] for row in found.rows()] == [0, 1, 1]
    assert found.rows()[0]["score"] == first.score == static.scores[-1].value
    assert len(tunings) == 2
    assert within(tunings[0][0], static.net.state_dict())
    assert within(tunings[1][0], tunings[0][1])
    assert third.card.macs <= second.card.macs <= 0.8 * whole
    assert second.net.spec.image_size == static.net.spec.image_size


def test_without_training_each_is_a_part_of_the_network_itself(run, tmp_path):
    budgets = [0.9 * run.recipe.base_macs(), 0.6 * run.recipe.base_macs()]
    found = extract_series(run, tmp_path / "all", macs=budgets, by="kl", image_size=[32])
    for most, member in zip(budgets, found.members, strict=True):
        assert member.name == f"{most / 1e6:.4g}M"
        alone = extract_bundle(run, tmp_path / member.name, macs=most, by="kl")
        assert member.taken.net.architecture == alone.net.architecture
        assert within(member.taken.net.state_dict(), run.net.state_dict())
        assert member.taken.tuned is None


def test_of_sizes_at_which_all_fits_the_largest_alone_is_tried(run, tmp_path):
    whole = architecture_cost(run.net.architecture.opened(), image_size=24).macs
    found = extract_series(
        run, tmp_path / "all", macs=[whole + 1, whole / 2], by="kl", image_size=[16, 20, 24, 32]
    )
    first = [tried.image_size[0] for tried in found.members[0].taken.tried]
    assert first == [32, 24]


def test_a_part_that_went_a_dear_way_is_left_for_the_one_before(run, monkeypatch, tmp_path):
    tries, real = [], workflow_series.take_as_wished

    def dear(left, *args, **options):
        tries.append(left)
        if len(tries) == 2:
            raise BudgetError("macs: too dear a way")
        return real(left, *args, **options)

    monkeypatch.setattr(workflow_series, "take_as_wished", dear)
    base = run.recipe.base_macs()
    extract_series(run, tmp_path / "all", macs=[0.9 * base, 0.7 * base], by="kl", tuning=TUNING, evaluated=False)
    assert [left is run for left in tries] == [True, False, True]


def test_nothing_is_saved_where_anything_fails(run, monkeypatch, tmp_path):
    base, trained = run.recipe.base_macs(), []

    def stopped(artifact, small, *args, **options):
        trained.append(small)
        if len(trained) == 2:
            raise TrainingStoppedError("a signal came")
        return replace_net(small)

    def replace_net(small):
        return type("Result", (), {"net": small, "metrics": {"metric": "accuracy", "accuracy": 0.5, "images": 4}})

    monkeypatch.setattr(taking, "fine_tune", stopped)
    budgets = {"macs": [0.9 * base, 0.7 * base], "by": "kl", "tuning": TUNING, "evaluated": False}
    with pytest.raises(BudgetError, match=r"macs: .*least possible"):
        extract_series(run, tmp_path / "all", **budgets | {"macs": [0.9 * base, 1000]})
    assert trained == []
    with pytest.raises(TrainingStoppedError):
        extract_series(run, tmp_path / "all", **budgets)
    assert list(tmp_path.iterdir()) == []
    extract_series(run, tmp_path / "all", macs=budgets["macs"], by="kl", evaluated=False)
    before = (tmp_path / "all" / "series.json").read_text()
    with pytest.raises(BundleError, match=r"holds a series already; .*--overwrite"):
        extract_series(run, tmp_path / "all", **budgets)
    trained.clear()
    with pytest.raises(TrainingStoppedError):
        extract_series(run, tmp_path / "all", overwrite=True, **budgets)
    assert (tmp_path / "all" / "series.json").read_text() == before
    extract_series(
        run, tmp_path / "all", overwrite=True, macs={"a": 0.9 * base, "b": base}, by="kl", evaluated=False
    )
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["a", "b", "series.json"]
    with pytest.raises(BundleError, match=r"all: is a series of networks; give one of them, such as .*all/a"):
        load_bundle(tmp_path / "all")
    with pytest.raises(BundleError, match="is a series of networks"):
        load_artifact(tmp_path / "all")
    with pytest.raises(BundleError, match="exists and is no bundle"):
        extract_bundle(run, tmp_path / "all", overwrite=True)
    with pytest.raises(BundleError, match="exists and is no series"):
        extract_series(run, tmp_path / "all" / "a", overwrite=True, **budgets)


def test_budgets_that_make_no_family_are_refused(run, tmp_path):
    for macs, words in (
        ([1e6], "two or more different budgets"),
        ({"a": 1e6, "b": 1e6}, "two or more different budgets"),
        ([1e6, 1e6 + 1], "have the same name"),
        ([1e6, float("nan")], "is not a number"),
        ({"a": 1e6, "../b": 2e6}, "'../b' is no name of a folder"),
        ({"a": 1e6, "series.json": 2e6}, "'series.json' is no name of a folder"),
    ):
        with pytest.raises(SpecError, match=words):
            extract_series(run, tmp_path / "all", macs=macs)
    with pytest.raises(SpecError, match="limits: macs are given for each"):
        extract_series(run, tmp_path / "all", macs=[1e6, 2e6], limits={"macs": 1e6})
    with pytest.raises(SpecError, match=r"limits\.joy: no such resource"):
        extract_series(run, tmp_path / "all", macs=[1e6, 2e6], limits={"joy": 1e6})
    assert list(tmp_path.iterdir()) == []
