"""Trainings that stop by the clock: schedules follow the time, and a resumed run has what is left of it.

The clock is one that a test drives, so that everything is exact.
"""

import math
import os
import signal

import pytest
import torch
from lasting import lasting
from train_tiny import tiny

from routespace.errors import SpecError
from routespace.recipes import load_recipe
from routespace.train import course
from routespace.train.plain import plain_recipe
from routespace.train.recipe.parts import PhaseSpec, TrainSpec
from routespace.train.recipe.phases import PhaseClock
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import train_recipe
from routespace.train.run_folder import RunFolder
from routespace.train.stopping import TrainingStoppedError

SMALL = {"seconds": 4, "image_size": 32, "data": {"digit_px": [20, 32], "train_size": 48}, "gates": "held"}


class Ticking:
    """A clock that goes on by a second whenever it is read: each step then takes one."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture(autouse=True)
def ticking(monkeypatch):
    clock = Ticking()
    monkeypatch.setitem(course.CLOCKS, "wall", clock)
    return clock


def lines_of(result):
    return RunFolder(result.folder).read_metrics()


def test_the_time_ends_in_mid_epoch_with_the_rates_run_down(tmp_path):
    recipe = tiny(train__seconds=7, train__warmup_epochs=0)  # of 4 steps an epoch
    news = []
    result = train_recipe(recipe, tmp_path / "run", progress=news.append)
    told = result.metrics
    assert (told["steps"], told["epochs"], told["step_seconds"], told["clock"]) == (7, 1.75, 7.0, "wall")
    (phase,) = told["phases"]
    assert (phase["steps"], phase["epochs"], phase["seconds"]) == (7, 1.75, 7.0)
    first, last = lines_of(result)
    span = recipe.train.lr - recipe.train.min_lr
    for line, share in ((first, 3 / 7), (last, 6 / 7)):  # of the time, before the epoch's last step
        assert line["lr"] == pytest.approx(
            recipe.train.min_lr + span * (1 + math.cos(math.pi * share)) / 2, rel=1e-4
        )
    steps = [each for each in news if each.stage == "train"]
    assert [each.eta_s for each in steps] == [6, 5, 4, 3, 2, 1, 0]
    assert {each.epochs for each in news} == {None}


@pytest.mark.parametrize(("seconds", "steps"), [(4, 4), (0.01, 1)])
def test_the_step_in_which_the_time_ends_is_the_last_and_no_empty_epoch_follows(seconds, steps, tmp_path):
    result = train_recipe(tiny(train__seconds=seconds), tmp_path / "run")
    assert result.metrics["steps"] == steps
    assert len(lines_of(result)) == -(-steps // 4)


def test_warmup_budget_and_temperature_follow_the_share_of_the_time(tmp_path):
    """A recipe of 8 epochs, squeezed into a time: what was an eighth of them is an eighth of it."""
    budget = {"ratio": 0.5, "schedule": "linear", "open_frac": 0.25, "warmup_frac": 0.25, "settle_frac": 0.75}
    recipe = tiny(
        budget=budget,
        gates={"temperature": 4.0, "final_temperature": 1.0},
        train__epochs=8,
        train__seconds=8,
        train__warmup_epochs=4,
    )
    news = []
    result = train_recipe(recipe, tmp_path / "run", progress=news.append)
    lines = lines_of(result)
    low, high = recipe.train.min_lr, recipe.train.lr
    assert lines[0]["lr"] == pytest.approx(low + (high - low) * 3 / 4, rel=1e-4)
    squeezed = train_recipe(recipe.override({"train.epochs": 2, "train.warmup_epochs": 1}), tmp_path / "epochs")
    told = lines_of(squeezed)  # two epochs of four steps, as many as there is time for
    assert len(lines) == len(told) == 2
    for name in ("target_ratio", "temperature"):
        assert [line[name] for line in lines] == pytest.approx([line[name] for line in told])
    assert [line["target_ratio"] for line in lines][-1] == pytest.approx(0.5, rel=1e-3)
    assert result.metrics["steps"] == squeezed.metrics["steps"] == 8


def test_what_is_no_step_does_not_count(tmp_path, monkeypatch):
    now = [0.0]

    def watch(news):
        now[0] += 1000.0 if news.stage == "validate" else 0.0

    class Steps:
        """A second for each read while training, and whatever validation takes between them."""

        def __call__(self):
            now[0] += 1
            return now[0]

    monkeypatch.setitem(course.CLOCKS, "wall", Steps())
    result = train_recipe(tiny(train__seconds=10), tmp_path / "run", progress=watch)
    assert (result.metrics["steps"], result.metrics["step_seconds"]) == (10, 10.0)


def stopped_at(step, recipe, folder):
    """Train, or train on, until so many steps were done in all phases, and be told to stop there."""
    steps = [3, 1, 4, 2]  # of each epoch

    def stop(news):
        done = sum(steps[: news.epoch - 1]) + news.step
        if news.stage == "train" and done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingStoppedError) as stopped:
        train_recipe(recipe, folder, progress=stop, resume=folder.exists())
    return str(stopped.value)


def test_a_run_that_goes_on_has_the_time_that_is_left_and_gives_the_same(tmp_path):
    recipe = tiny(
        routing="depth",
        gates={"source": "map", "opening": "share", "teach": "dense", "noise": 0.0},
        budget={"ratio": 0.6, "open_frac": 0.5, "settle_frac": 0.5},
        grid__image_size=48,
        train__execution="packed",
        train__ema_decay=0.9,
        train__seconds=6,
        train__phases=[SMALL],
    )
    whole = train_recipe(recipe, tmp_path / "whole")
    told = whole.metrics["phases"]
    assert [(phase["steps"], phase["seconds"]) for phase in told] == [(4, 4.0), (6, 6.0)]
    assert [line["phase"] for line in lines_of(whole)] == [1, 1, 2, 2]  # of 3 steps an epoch, then of 4
    assert [line["epoch"] for line in lines_of(whole)] == [1, 2, 3, 4]
    # Within the first phase, at its end, and within the second.
    for at, where in ((2, "epoch 1 after 2.0 of 4 s"), (4, "after 4.0 of 4 s"), (9, "epoch 4 after 5.0 of 6 s")):
        assert where in stopped_at(at, recipe, tmp_path / "part")
    again = train_recipe(recipe, tmp_path / "part", resume=True)
    ours, theirs = again.net.state_dict(), whole.net.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert lasting(lines_of(again)) == lasting(lines_of(whole))
    assert again.metrics["phases"] == told


def test_a_held_phase_may_go_by_epochs_and_the_rest_by_the_clock(tmp_path):
    recipe = tiny(grid__image_size=48, train__seconds=3, train__phases=[{**SMALL, "seconds": None, "epochs": 1}])
    result = train_recipe(recipe, tmp_path / "run")
    assert [phase["steps"] for phase in result.metrics["phases"]] == [3, 3]
    assert [phase["epochs"] for phase in result.metrics["phases"]] == [1, 0.75]


def test_phases_by_the_clock_count_by_their_seconds():
    phases = [SMALL, {"seconds": 10, "gates": "taught"}, {"seconds": 20, "gates": "free"}]
    gates = {"source": "map", "opening": "share", "teach": "dense", "noise": 0.0}
    recipe = tiny(routing="depth", gates=gates, grid__image_size=48, train__seconds=50, train__phases=phases)
    clocks = [PhaseClock.of(recipe.train, number) for number in range(4)]
    assert [clock.progress(5) for clock in clocks] == [0.0, 5 / 80, 15 / 80, 35 / 80]
    assert {recipe.phase(number).budget.open_frac for number in range(4)} == {10 / 80}
    assert [recipe.phase(number).train.seconds for number in range(4)] == [4, 10, 20, 50]
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.seconds": 0}, r"train\.seconds: 0 is not allowed; give a number greater than 0"),
        (
            {"train.epochs": 0, "train.seconds": 5, "train.warmup_epochs": 0},
            r"5 were given, and epochs 0",
        ),
        ({"train.phases": [{"image_size": 32}]}, r"epochs: a phase needs a length; give epochs, or seconds"),
        (
            {"train.phases": [{"epochs": 1, "gates": "free"}], "train.seconds": 5},
            r"train\.phases: number 1 goes by epochs and the training by seconds; .*give both the same",
        ),
        (
            {"train.phases": [{"seconds": 1, "gates": "free"}]},
            r"train\.phases: number 1 goes by seconds and the training by epochs",
        ),
        ({"train.clock": "processor", "data.workers": 2}, r"train\.clock: 'processor' does not see what 2 loader"),
        ({"train.clock": "processor", "train.device": "cuda"}, r"clock: 'processor' does not see what an accel"),
        ({"train.clock": "sun"}, r"train\.clock: 'sun' is not allowed"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(changes, said):
    with pytest.raises(SpecError, match=said) as error:
        tiny().override(changes)
    assert "\n" not in str(error.value)


def test_epochs_that_are_set_later_take_the_seconds_away():
    timed = tiny(train__seconds=60)
    assert timed.override({"train.epochs": 3}).train.seconds is None
    assert timed.override({"train.lr": 1e-4}).train.seconds == 60
    both = timed.override({"train.epochs": 3, "train.seconds": 30}).train
    assert (both.epochs, both.seconds) == (3, 30)
    assert plain_recipe(timed, 100_000).train.seconds == 60


def test_recipes_without_it_keep_their_hashes():
    assert load_recipe("digits_map").hash == "41b0e5f2732b"  # of before there was a clock
    assert tiny(train__seconds=None, train__clock="wall").hash == tiny().hash
    assert len({tiny(train__seconds=each).hash for each in (None, 5, 6)}) == 3
    assert tiny(train__seconds=5).hash != tiny(train__seconds=5, train__clock="processor").hash


def test_lengths_are_told_in_their_own_unit():
    assert (TrainSpec().length, TrainSpec(seconds=90).length) == (20.0, 90.0)
    assert (PhaseSpec(epochs=8).length, PhaseSpec(epochs=8, seconds=2.5).length) == (8.0, 2.5)


def test_the_processors_clock_measures_this_process(tmp_path):
    result = train_recipe(tiny(train__seconds=0.01, train__clock="processor"), tmp_path / "run")
    assert result.metrics["clock"] == "processor"
    assert result.metrics["steps"] >= 1
