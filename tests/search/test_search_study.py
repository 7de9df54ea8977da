"""search/study.py with an evaluator that takes no time: what a study does, whatever a training does."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import optuna
import pytest
from fake_evaluator import FakeEvaluator, recipe

from routespace.errors import BundleError, SpecError
from routespace.search import StudyProgress, load_study, pareto, run_study, trial_folder
from routespace.search.candidate import RecipeCandidate
from routespace.search.evaluator import Workplace


def test_a_study_starts_with_the_recipe_and_tells_its_progress(tmp_path: Path) -> None:
    fake, news = FakeEvaluator(), list[StudyProgress]()
    study = run_study(recipe(overrides={"train.epochs": 2}), tmp_path, evaluator=fake, progress=news.append)
    assert [trial.state for trial in study.trials] == ["finished"] * 4
    assert study.trials[0].changes == {"budget.ratio": 0.5, "grid.depths": 1}
    assert all(call[0].train.epochs == 2 for call in fake.calls)
    assert [call[1] for call in fake.calls] == [tmp_path / f"trials/{n:04d}" for n in range(4)]
    assert [(n.number, n.state, n.training) for n in news[:3]] == [
        (0, "running", None),
        (0, "running", "one step"),
        (0, "finished", None),
    ]
    assert [n.ended for n in news if n.trial] == [1, 2, 3, 4]
    assert news[-1].trials == 4
    assert news[-1].best == study.best
    one = study.trials[1]
    assert one.values == {"accuracy": one.metrics["accuracy"], "macs": one.metrics["macs"]}
    assert one.metrics["params"] == 12.0
    assert one.planned["macs"] == one.values["macs"]
    assert one.seconds is not None
    assert load_study(tmp_path) == study
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert not any(handler.filters for handler in logging.getLogger("optuna").handlers)


def test_resume_goes_on_to_the_wanted_number(tmp_path: Path) -> None:
    whole, parts = FakeEvaluator(), FakeEvaluator()
    run_study(recipe(), tmp_path / "whole", evaluator=whole, trials=5)
    run_study(recipe(), tmp_path / "parts", evaluator=parts, trials=2)
    study = run_study(recipe(), tmp_path / "parts", evaluator=parts, trials=5)
    assert parts.keys == whole.keys  # as if it had not stopped
    assert study.count("finished") == 5
    assert run_study(recipe(), tmp_path / "parts", evaluator=parts, trials=3) == study
    assert len(parts.calls) == 5


def test_the_front_is_optunas(tmp_path: Path) -> None:
    def metrics(candidate: RecipeCandidate, place: Workplace) -> dict[str, float]:
        number = int(place.folder.name)
        return {"accuracy": (number * 7 % 5) / 5, "macs": float(10 - number if number % 3 else number)}

    study = run_study(recipe(), tmp_path, evaluator=metrics, trials=8)
    theirs = optuna.load_study(study_name="tiny", storage=study.storage).best_trials
    assert sorted(trial.number for trial in study.best) == sorted(trial.number for trial in theirs)
    assert len(study.best) > 1
    accuracies = [trial.values["accuracy"] for trial in study.best if trial.values]
    assert accuracies == sorted(accuracies, reverse=True)


def test_one_objective(tmp_path: Path) -> None:
    study = run_study(recipe(objectives=["accuracy"]), tmp_path, evaluator=FakeEvaluator(), trials=5)
    assert len(study.best) == 1
    assert study.best[0].values == {"accuracy": max(t.values["accuracy"] for t in study.trials if t.values)}


def test_the_same_recipe_is_trained_once(tmp_path: Path) -> None:
    """One block at each rate can be written in two ways: of three points two are different."""
    space = {"grid.depths": [1, [1, 1], [1, 2]]}
    fake = FakeEvaluator()

    def static(candidate: RecipeCandidate, place: Workplace) -> dict[str, float]:
        fake.calls.append((candidate.recipe, place.folder, place.resume))
        return {"accuracy": 0.5, "macs": 1.0}

    made = recipe(space).override({"routing": "static"})
    study = run_study(made, tmp_path, evaluator=static, trials=10)
    assert len(fake.calls) == 2
    assert study.count("finished") == 2  # and the study ended by itself
    # A duplicate that was asked for by hand has its twin's values.
    theirs = optuna.load_study(study_name="tiny", storage=study.storage)
    theirs.enqueue_trial({"grid.depths": "[1,1]"})
    study = run_study(made, tmp_path, evaluator=static, trials=3)
    assert len(fake.calls) == 2
    assert study.trials[2].duplicate_of == 0
    assert study.trials[2].values == study.trials[0].values
    assert trial_folder(study, 2) == trial_folder(study, 0) == tmp_path / "trials/0000"
    assert 2 not in [trial.number for trial in study.best]


def test_limits_are_checked_before_training(tmp_path: Path) -> None:
    space = {"budget.ratio": [0.5, 1.2], "grid.depths": [1, [2, 2]]}
    free = recipe(space)
    limit = RecipeCandidate.of(free, {"budget.ratio": 0.5, "grid.depths": [2, 2]}).planned["macs"]
    fake = FakeEvaluator()
    study = run_study(recipe(space, limits={"macs": limit}), tmp_path, evaluator=fake, trials=10)
    assert all(call[0].budget_macs() <= limit for call in fake.calls)  # type: ignore[operator]
    assert (study.count("finished"), study.count("pruned")) == (2, 2)
    refused = next(trial for trial in study.trials if trial.state == "pruned")
    assert refused.reason is not None
    assert f"is above the limit {limit}" in refused.reason
    assert refused.violations["macs"] == pytest.approx(refused.planned["macs"] / limit - 1)
    assert refused.folder is None
    assert all(trial.feasible for trial in study.best)
    with pytest.raises(SpecError, match=r"trial: \d is pruned \(macs: .*; finished ones: "):
        trial_folder(study, refused.number)


def test_when_nothing_keeps_the_limits_the_closest_is_shown(tmp_path: Path) -> None:
    fake = FakeEvaluator()
    study = run_study(recipe(limits={"params": 1000}), tmp_path, evaluator=fake, trials=3)
    assert fake.calls == []
    assert study.count("pruned") == 3
    assert pareto(study.trials) == ()
    assert [t.planned["params"] for t in study.best] == [min(t.planned["params"] for t in study.trials)]


def test_what_was_measured_counts_for_the_limits(tmp_path: Path) -> None:
    def greedy(candidate: RecipeCandidate, place: Workplace) -> dict[str, float]:
        return {"accuracy": 0.9, "macs": 2e6}

    study = run_study(recipe(limits={"macs": 1_000_000}), tmp_path, evaluator=greedy, trials=2)
    assert [trial.violations for trial in study.trials] == [{"macs": 1.0}] * 2
    assert pareto(study.trials) == ()
    assert study.best[0].number == 0


def test_illegal_combinations_are_refused_with_their_reason(tmp_path: Path) -> None:
    space = {"grid.layers": [2, 3], "grid.depths": [[1, 2], [2, 1]]}
    fake = FakeEvaluator()
    study = run_study(recipe(space), tmp_path, evaluator=fake, trials=10)
    assert (study.count("finished"), study.count("pruned")) == (2, 2)
    reasons = [trial.reason for trial in study.trials if trial.state == "pruned"]
    assert all(reason is not None and "depths: 2 numbers for 3 layers" in reason for reason in reasons)


def test_a_study_refuses_another_recipe_folder_or_number(tmp_path: Path) -> None:
    run_study(recipe(), tmp_path, evaluator=FakeEvaluator(), trials=1)
    other = recipe().override({"grid.layers": 3, "grid.depths": 1})
    with pytest.raises(SpecError, match=r"'tiny' is of another recipe: grid\.layers was 2, now is 3; choose"):
        run_study(other, tmp_path, evaluator=FakeEvaluator())
    with pytest.raises(SpecError, match="belongs to another study"):
        run_study(recipe(), tmp_path, study_name="other", evaluator=FakeEvaluator())
    with pytest.raises(SpecError, match="trials: 0 is not allowed; give at least 1"):
        run_study(recipe(), tmp_path, trials=0)
    # What does not change the outcome may differ: another machine's paths, more trials, another sampler.
    same = {"data.workers": 1, "search.trials": 2, "search.sampler": "random", "train.device": "cpu", "name": "x"}
    study = run_study(recipe().override(same), tmp_path, study_name="tiny", evaluator=FakeEvaluator())
    assert study.count("finished") == 2
    with pytest.raises(SpecError, match="trial: 2 is not in study 'tiny'; it has 0 to 1"):
        trial_folder(study, 2)


def test_a_folder_can_move(tmp_path: Path) -> None:
    run_study(recipe(), tmp_path / "before", evaluator=FakeEvaluator(), trials=2)
    (tmp_path / "before").rename(tmp_path / "after")
    study = load_study(tmp_path / "after")
    assert trial_folder(study, 1) == tmp_path / "after/trials/0001"
    assert run_study(recipe(), tmp_path / "after", evaluator=FakeEvaluator(), trials=3).count("finished") == 3
    gone = load_study(tmp_path / "after/study.db")  # of a database alone, only the old place is known
    with pytest.raises(BundleError, match="is not on this machine"):
        trial_folder(gone, 1)


def test_two_studies_in_one_database(tmp_path: Path) -> None:
    shared = f"sqlite:///{tmp_path / 'all.db'}"
    for name in ("one", "two"):
        run_study(recipe(), tmp_path / name, storage=shared, study_name=name, evaluator=FakeEvaluator(), trials=1)
    with pytest.raises(SpecError, match="holds one, two; name one of them"):
        load_study(shared)
    with pytest.raises(SpecError, match="has no study 'three'; it holds one, two"):
        load_study(shared, "three")
    with pytest.raises(SpecError, match="study: '' is no name; give one, or leave it out for the recipe's"):
        run_study(recipe(), tmp_path / "three", storage=shared, study_name="", evaluator=FakeEvaluator())
    with pytest.raises(SpecError, match="storage: '' is no place; give sqlite:"):
        run_study(recipe(), tmp_path / "three", storage="", evaluator=FakeEvaluator())
    assert not (tmp_path / "three").exists()
    assert load_study(shared, "two").out == tmp_path / "two"
    assert load_study(tmp_path / "one").name == "one"


def test_a_study_that_is_not_ours(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'theirs.db'}"
    optuna.create_study(study_name="tiny", storage=url).optimize(lambda trial: trial.suggest_float("x", 0, 1), 1)
    with pytest.raises(BundleError, match="was not made by routespace"):
        load_study(url)
    with pytest.raises(SpecError, match="was not made by routespace"):
        run_study(recipe(), tmp_path / "out", storage=url, evaluator=FakeEvaluator())
    run_study(recipe(), tmp_path / "out", storage=url, study_name="mine", evaluator=FakeEvaluator(), trials=1)


def test_records_are_read_without_torch(tmp_path: Path) -> None:
    run_study(recipe(), tmp_path, evaluator=FakeEvaluator(), trials=1)
    code = f"""
    import sys, json
    from routespace.search import load_study
    print(json.dumps([load_study({str(tmp_path)!r}).count("finished"), "torch" in sys.modules]))
    """
    found = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=True)
    assert json.loads(found.stdout) == [1, False]
