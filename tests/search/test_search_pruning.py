"""search/pruning.py: a trial that falls behind is given up after an epoch, by Optuna's pruners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from fake_evaluator import FakeEvaluator, recipe

from routespace.errors import RoutespaceError, SpecError
from routespace.search import load_study, run_study
from routespace.search.candidate import RecipeCandidate
from routespace.search.evaluator import Workplace
from routespace.train.progress import Progress

EPOCHS = 4
SPACE = {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}}


class Learning:
    """Tells an epoch after the other, as a training does: a step late; worse with each trial.

    Attributes:
        told: number of the trial → its epochs.
    """

    def __init__(self) -> None:
        self.told: dict[int, int] = {}

    def __call__(self, candidate: RecipeCandidate, place: Workplace) -> dict[str, float]:
        number = int(place.folder.name)
        (place.folder / "checkpoint").mkdir()
        for epoch in range(1, EPOCHS + 1):
            self.told[number] = epoch
            found = {"epoch": epoch, "accuracy": epoch / 10 - number / 100, "val_loss": number - epoch / 10}
            place.report(Progress("train", epoch=epoch))  # its steps
            place.report(Progress("train" if epoch < EPOCHS else "evaluate", epoch=epoch + 1, metrics=found))
        return {"accuracy": found["accuracy"], "loss": found["val_loss"], "macs": 1.0}


@pytest.mark.parametrize("objective", ["accuracy", "loss"])
def test_the_median_gives_up_what_falls_behind(tmp_path: Path, objective: str) -> None:
    learning = Learning()
    study = run_study(
        recipe(SPACE, objectives=[objective], pruner="median", sampler="random"),
        tmp_path,
        trials=7,
        evaluator=learning,
    )
    assert [trial.state for trial in study.trials] == ["finished"] * 5 + ["pruned"] * 2  # five are Optuna's start
    assert learning.told == {number: EPOCHS if number < 5 else 1 for number in range(7)}
    assert study.trials[5].reason is not None
    assert f"given up: {objective} is" in study.trials[5].reason
    assert not (tmp_path / "trials/0005/checkpoint").exists()
    assert study.best[0].number == 0
    theirs = optuna.load_study(study_name="tiny", storage=study.storage).trials
    assert set(theirs[0].intermediate_values) == {1, 2, 3, 4}
    assert load_study(tmp_path) == study


@pytest.mark.parametrize(
    "sampler", ["tpe", *(pytest.param(name, marks=pytest.mark.slow) for name in ("nsga2", "random"))]
)
def test_hyperband_shows_samplers_a_part_of_the_trials_and_none_is_repeated(tmp_path: Path, sampler: str) -> None:
    learning = Learning()
    space: dict[str, Any] = {"train.lr": [0.1, 0.01, 0.001], "train.batch_size": [8, 16], "seed": [0, 1]}
    made = recipe(space, objectives=["accuracy"], pruner="hyperband", sampler=sampler)
    study = run_study(made, tmp_path, trials=20, evaluator=learning)
    assert len({str(trial.changes) for trial in study.trials}) == len(study.trials) == 12
    assert {trial.state for trial in study.trials} == {"finished", "pruned"}


def test_without_a_pruner_nothing_is_given_up(tmp_path: Path) -> None:
    learning = Learning()
    study = run_study(recipe(SPACE, objectives=["accuracy"]), tmp_path, trials=7, evaluator=learning)
    assert study.count("finished") == 7


@pytest.mark.parametrize("objectives", [None, ["accuracy", "macs"], ["macs"]])
def test_a_pruner_wants_one_number_of_an_epoch(tmp_path: Path, objectives: list[str] | None) -> None:
    with pytest.raises(SpecError, match=r"search.pruner: 'median' compares one number .* give one, as in"):
        run_study(recipe(objectives=objectives, pruner="median"), tmp_path / "s", evaluator=FakeEvaluator())
    assert not (tmp_path / "s").exists()


def test_an_objective_that_epochs_do_not_tell_is_named(tmp_path: Path) -> None:
    with pytest.raises(RoutespaceError, match=r"'minimize joules' is no number that an epoch tells \(accuracy"):
        run_study(recipe(SPACE, objectives=["minimize joules"], pruner="median"), tmp_path, evaluator=Learning())
