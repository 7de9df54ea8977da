"""search/objectives.py: the table of what a study can ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_evaluator import FakeEvaluator, recipe

from routespace.errors import SpecError
from routespace.grid.resources import RESOURCES
from routespace.search import run_study
from routespace.search.objectives import OBJECTIVES, directions, objective, objectives_of
from routespace.train.tasks.kinds import TASKS


def test_every_resource_and_every_tasks_metric_is_an_objective() -> None:
    assert set(RESOURCES) <= set(OBJECTIVES)
    assert all(objective(name).unit == resource.unit for name, resource in RESOURCES.items())
    for spec in TASKS.values():
        found = objective(spec.metric.name)
        assert found.source == spec.metric.name
        assert found.direction == {"maximise": "maximize", "minimise": "minimize"}[spec.metric.direction]
    assert directions(["accuracy", "latency_ms", "loss"]) == ["maximize", "minimize", "minimize"]


def test_without_objectives_it_is_the_metric_against_the_macs() -> None:
    assert objectives_of(recipe()) == ("accuracy", "macs")
    assert objectives_of(recipe(objectives=["params", "accuracy"])) == ("params", "accuracy")


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        (
            ["watts"],
            r"search\.objectives: 'watts' is not measured for task 'classify'; allowed: accuracy, params, ",
        ),
        (["macs", "macs"], r"search\.objectives: macs, macs: one stands twice"),
        ([], r"search\.objectives"),
    ],
)
def test_what_is_no_objective_is_refused_before_anything_is_written(
    tmp_path: Path, objectives: list[str], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        run_study(recipe(objectives=objectives), tmp_path / "study", evaluator=FakeEvaluator())
    assert not (tmp_path / "study").exists()
    with pytest.raises(SpecError, match="'watts' is not known; allowed: "):
        objective("watts")


def test_a_limit_holds_for_any_resource(tmp_path: Path) -> None:
    fake = FakeEvaluator()
    study = run_study(recipe(limits={"bytes": 1, "macs": "1G"}), tmp_path, evaluator=fake, trials=2)
    assert fake.calls == []
    assert all(trial.violations["bytes"] > 0 and "macs" not in trial.violations for trial in study.trials)
    assert study.trials[0].planned["bytes"] > 0
