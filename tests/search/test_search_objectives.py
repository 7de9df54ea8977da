"""search/objectives.py: the table of what a study can ask for."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import optuna
import pytest
from fake_evaluator import FakeEvaluator, recipe

from routespace.cli.study_view import study_csv
from routespace.errors import RoutespaceError, SpecError
from routespace.grid.resources import RESOURCES
from routespace.search import RecipeCandidate, Workplace, load_study, run_study
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
        (["accuracy", "minimize macs"], "'minimize macs': its direction is known; give macs"),
        (["accuracy", "lessen watts"], r"'lessen watts' is not measured .*as in 'minimize NAME'"),
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


def test_any_number_is_an_objective_with_its_direction(tmp_path: Path) -> None:
    fake, wanted = FakeEvaluator(), recipe(objectives=["accuracy", "minimise energy_mj"])

    def measured(candidate: RecipeCandidate, place: Workplace) -> dict[str, float]:
        found = fake(candidate, place)
        return found | {"energy_mj": 1e6 / found["macs"]}

    study = run_study(wanted, tmp_path, evaluator=measured, trials=4)
    assert load_study(tmp_path) == study
    least = min(study.trials, key=lambda trial: trial.metrics["energy_mj"])
    assert [trial.number for trial in study.best] == [least.number], "the dearest is the best in both"
    assert least.values == {
        "accuracy": least.metrics["accuracy"],
        "minimise energy_mj": least.metrics["energy_mj"],
    }
    theirs = optuna.load_study(study_name="tiny", storage=study.storage)
    assert [direction.name for direction in theirs.directions] == ["MAXIMIZE", "MINIMIZE"]
    with pytest.raises(RoutespaceError, match="minimise energy_mj: not measured; the evaluator gives accuracy"):
        run_study(wanted, tmp_path / "other", evaluator=fake, trials=1)


def test_the_rows_of_a_study_are_a_table(tmp_path: Path) -> None:
    space = {"budget.ratio": [0.5, 1.2], "grid.depths": [1, [2, 2]]}
    limit = RecipeCandidate.of(recipe(space), {"budget.ratio": 0.5, "grid.depths": [2, 2]}).planned["macs"]
    study = run_study(recipe(space, limits={"macs": limit}), tmp_path, evaluator=FakeEvaluator(), trials=10)
    rows = study.rows()
    assert len(rows) == len(study.trials) == 4
    assert len({tuple(row) for row in rows}) == 1, "all have the same names"
    for row, trial in zip(rows, study.trials, strict=True):
        assert (row["number"], row["state"]) == (trial.number, trial.state)
        assert row["budget.ratio"] == trial.changes["budget.ratio"]
        assert row["accuracy"] == (trial.values or {}).get("accuracy")
        assert row["planned macs"] == trial.planned["macs"]
        assert (row["over macs"] is None) == trial.feasible
    table = list(csv.DictReader(study_csv(study).splitlines()))
    assert [row["grid.depths"] for row in table] == [json.dumps(row["grid.depths"]) for row in rows]
    assert [row["params"] for row in table] == ["12.0" if row["params"] else "" for row in rows]
