"""Phases of a training: plain recipes of their own stretch, one clock, weights that go on, a run that resumes."""

import gc
import os
import signal
import weakref

import pytest
import torch
from lasting import lasting
from train_tiny import tiny

from routespace.errors import SpecError
from routespace.recipes import load_recipe
from routespace.train import optim
from routespace.train.checkpoint import load_checkpoint
from routespace.train.plain import plain_recipe
from routespace.train.recipe.phases import PhaseClock
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import train_recipe
from routespace.train.run_folder import RunFolder
from routespace.train.stopping import TrainingStoppedError

MAP = {
    "routing": "depth",
    "gates": {"source": "map", "opening": "share", "teach": "dense", "noise": 0.0},
    "budget": {"ratio": 0.6, "open_frac": 0.5, "settle_frac": 0.5},
    "grid.image_size": 48,
    "train.execution": "packed",
}
SMALL = {"epochs": 2, "image_size": 32, "data": {"digit_px": [20, 32], "train_size": 48}, "execution": "dense"}


def phased(*phases, **changes):
    fields = (
        MAP | {"train.phases": list(phases or (SMALL,))} | {k.replace("__", "."): v for k, v in changes.items()}
    )
    return tiny().override(fields)


def test_a_phase_is_a_plain_recipe_with_what_it_overrides():
    recipe = phased({**SMALL, "lr_factor": 0.5, "min_lr": 1e-4, "warmup_epochs": 0.25})
    first, own = recipe.phase(0), recipe.phase(1)
    assert first.train.phases == own.train.phases == ()
    assert first.grid.image_size == (32, 32)
    assert (first.data.digit_px, first.data.train_size, first.data.val_size) == ((20, 32), 48, 32)
    assert (first.train.epochs, first.train.execution, first.train.lr) == (2, "dense", recipe.train.lr / 2)
    assert (first.train.gate_lr, first.train.min_lr, first.train.warmup_epochs) == (5e-3, 1e-4, 0.25)
    assert not first.budget.wanted
    assert own == recipe.override({"train.phases": []})
    assert tiny().phase(0) == tiny()
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert recipe.hash != own.hash
    assert recipe.base_macs() == own.base_macs() > first.base_macs()


def test_the_clock_of_gates_starts_when_they_are_no_longer_held():
    phases = [{"epochs": 3}, {"epochs": 1, "gates": "taught"}, {"epochs": 2, "gates": "free", "image_size": 32}]
    recipe = phased(*phases, train__epochs=1, budget__open_frac=0.0, budget__macs=40_000)
    clocks = [PhaseClock.of(recipe.train, number) for number in range(4)]
    assert [clock.held for clock in clocks] == [True, False, False, False]
    assert [clock.progress(5, 10) for clock in clocks] == [0.0, 5 / 40, 15 / 40, 35 / 40]
    assert {recipe.phase(number).budget.open_frac for number in range(4)} == {1 / 4}
    assert clocks[1].progress(9, 10) < 1 / 4 == clocks[2].progress(0, 7)
    third = recipe.phase(2)  # a budget in MACs is the same share of smaller images
    assert third.budget_macs() / third.base_macs() == pytest.approx(40_000 / recipe.base_macs(), rel=1e-3)


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ([{"epochs": 1, "gates": "free"}, {"epochs": 1}], "number 2 has gates 'held' after 'free'"),
        ([{"epochs": 0}], r"train\.phases\.0\.epochs: 0 is not allowed; give at least 1"),
        ([{**SMALL, "image_size": 24}], r"number 1: data\.digit_px: \[20, 32\] does not fit"),
        ([{"epochs": 1, "data": {"kind": "folder"}}], r"has data\.kind; all phases have the same pictures"),
        ([{"epochs": 1, "data": {"root": "x"}}], r"has data\.root; all phases have the same pictures"),
        ([{"epochs": 1, "data": {"digits": 1}}], r"number 1: data\.digits: unknown field; perhaps digit_px; "),
        ([{"epochs": 1, "warmup_epochs": 2}], r"number 1: train\.warmup_epochs: 2 is more than the 1 epochs"),
        ([{"epochs": 1, "lr": 2}], r"train\.phases\.0\.lr: unknown field; allowed: epochs, seconds"),
    ],
)
def test_phases_that_cannot_be_are_refused_in_one_line(phases, said):
    with pytest.raises(SpecError, match=said) as error:
        phased(*phases)
    assert "\n" not in str(error.value)


def test_gates_that_nothing_teaches_are_not_taught_in_a_phase():
    with pytest.raises(SpecError, match=r"has gates 'taught', but gates\.teach is 'none'"):
        tiny().override({"train.phases": [{"epochs": 1, "gates": "taught"}]})


def same(a, b):
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


FREE = {"epochs": 1, "gates": "free", "image_size": 32, "data": {"digit_px": [16, 30]}}


@pytest.mark.parametrize(
    ("phases", "changes"),
    [
        pytest.param((SMALL,), {}, marks=pytest.mark.slow),
        ((SMALL, {"epochs": 1, "gates": "taught", "image_size": 32}), {"train.ema_decay": 0.9}),
        pytest.param(
            ({**SMALL, "epochs": 1}, FREE),
            {"gates": {"noise": 0.3}, "budget.control": 0.5},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["map", "taught", "loss"],
)
def test_a_run_stopped_within_each_phase_and_between_two_gives_the_same(phases, changes, tmp_path):
    recipe, folder = phased(*phases).override(changes), tmp_path / "stopped"
    whole = train_recipe(recipe, tmp_path / "whole")
    lines = RunFolder(tmp_path / "whole").read_metrics()
    epochs = [phase["epochs"] for phase in phases] + [2]
    assert [line["phase"] for line in lines] == [n for n, many in enumerate(epochs, 1) for _ in range(many)]
    assert [line["epoch"] for line in lines] == list(range(1, sum(epochs) + 1))
    steps = [3, 3, *[4] * 10]  # of an epoch; two epochs of 48 images in batches of 16, then of 64
    for number, stop_at in enumerate((4, 6, 9)):

        def stop(news, at=stop_at):
            done = sum(steps[: news.epoch - 1]) + news.step
            if news.stage == "train" and done == at:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(TrainingStoppedError):
            train_recipe(recipe, folder, progress=stop, resume=number > 0)
    again = train_recipe(recipe, folder, resume=True)
    assert same(again.net, whole.net)
    assert lasting(RunFolder(folder).read_metrics()) == lasting(lines)
    assert again.net.deciding == whole.net.deciding


def test_a_held_phase_is_validated_as_a_plain_network_and_what_is_told_is_of_the_last_size(tmp_path):
    recipe = phased({**SMALL, "data": {**SMALL["data"], "val_size": 16}})
    seen = []
    result = train_recipe(recipe, tmp_path / "run", progress=seen.append)
    first, *_, last = RunFolder(tmp_path / "run").read_metrics()
    assert first["counted_ratio"] == first["expected_ratio"] == 1.0
    assert first["target_ratio"] is None
    assert last["target_ratio"] == pytest.approx(0.6, rel=1e-4)
    assert last["counted_ratio"] < 0.7
    told = result.metrics
    assert told["base_macs"] == recipe.base_macs()
    assert told["counted_macs"] < 0.7 * recipe.base_macs()
    assert [phase["image_size"] for phase in told["phases"]] == [[32, 32], [48, 48]]
    assert [phase["gates"] for phase in told["phases"]] == ["held", "free"]
    assert (told["epochs"], told["images"]) == (4, 32)
    assert result.net.spec.image_size == (48, 48)
    assert {(news.phase, news.phases) for news in seen} == {(1, 2), (2, 2)}
    assert max(news.epoch for news in seen) == seen[0].epochs == 4
    state = load_checkpoint(RunFolder(tmp_path / "run").checkpoint_path)
    assert (state["phase"], state["epoch"]) == (1, 2)


def test_held_phases_leave_gates_as_they_were(tmp_path):
    recipe = phased({**SMALL, "epochs": 1}, train__epochs=0, budget__ratio=None)
    trained = train_recipe(recipe, tmp_path / "run").net.state_dict()
    fresh = train_recipe(recipe.override({"train.phases": []}), tmp_path / "fresh").net.state_dict()
    moved = {name for name in fresh if not torch.equal(fresh[name], trained[name])}
    assert moved
    assert not any(".gates." in name for name in moved)


def test_a_network_that_is_given_needs_no_first_phases(tmp_path):
    recipe = phased(train__epochs=1)
    net = train_recipe(recipe, tmp_path / "first").net
    more = train_recipe(recipe, tmp_path / "more", init=net)
    assert [line["phase"] for line in RunFolder(more.folder).read_metrics()] == [1]
    asked = train_recipe(recipe, tmp_path / "asked", init=net, asked=["train.phases"])
    assert [line["phase"] for line in RunFolder(asked.folder).read_metrics()] == [1, 1, 2]


def test_plain_networks_have_the_same_phases(tmp_path):
    plain = plain_recipe(phased({**SMALL, "epochs": 1, "gates": "taught"}, train__epochs=1), 200_000)
    assert plain.train.phases
    said = []
    train_recipe(plain, tmp_path / "run", tell=said.append)
    assert "phase 1 of 2: 1 epoch at 32x32 px" in said
    assert [line["phase"] for line in RunFolder(tmp_path / "run").read_metrics()] == [1, 2]


def test_the_recipe_of_the_taught_map_has_its_start_in_itself():
    recipe = load_recipe("digits_map")
    (first,) = recipe.train.phases
    assert first.gates == "held"
    assert recipe.phase(0).grid.image_size == (64, 64)
    assert recipe.grid.image_size == (96, 96)


def test_a_phase_leaves_no_optimiser_and_its_moments_behind(tmp_path, monkeypatch):
    made, alive, make = [], [], optim.make_optimizer

    def watched(net, spec):
        optimizer = make(net, spec)
        made.append(weakref.ref(optimizer))
        return optimizer

    def count(news):
        if news.stage == "validate":
            gc.collect()
            alive.append((news.phase, sum(each() is not None for each in made)))

    monkeypatch.setattr(optim, "make_optimizer", watched)
    train_recipe(tiny(train__epochs=1, train__phases=[{"epochs": 1}]), tmp_path / "run", progress=count)
    assert alive == [(1, 1), (2, 1)]
