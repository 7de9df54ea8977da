"""search/study.py with a trainer that takes no time: what a study does, whatever a training does."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from tiny_grid import TINY_GRID

from routespace.errors import BundleError, RoutespaceError, SpecError
from routespace.search import StudyProgress, load_study, pareto, run_study, trial_folder
from routespace.search.candidate import Candidate
from routespace.train.recipe.recipe import Recipe

SPACE = {"budget.ratio": {"low": 0.5, "high": 1.3, "step": 0.1}, "grid.depths": [1, [1, 2], [2, 1]]}


def recipe(space: dict[str, Any] | None = None, **search: Any) -> Recipe:
    search = {"trials": 4, "space": space or SPACE, **search}
    return Recipe.parse({"name": "tiny", "grid": TINY_GRID, "data": {"digit_px": [8, 24]}, "search": search})


@pytest.fixture(autouse=True)
def fast_storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Do not wait for the disk at each of the many commits, nor for the garbage that no training left."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)

    def relax(connection: Any, _: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", relax)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", relax)


class FakeTrainer:
    """Measures without training; remembers every call."""

    def __init__(self, before: Callable[[Recipe, Path], None] | None = None) -> None:
        self.calls: list[tuple[Recipe, Path, bool]] = []
        self.before = before

    def __call__(
        self, recipe: Recipe, folder: Path, *, objectives: Any, resume: bool, progress: Any
    ) -> dict[str, float]:
        self.calls.append((recipe, folder, resume))
        if self.before:
            self.before(recipe, folder)
        progress("one step")
        macs = recipe.budget_macs()
        assert macs is not None
        return {"accuracy": 1 - 1 / macs, "macs": macs, "params": 12.0}

    @property
    def keys(self) -> list[str]:
        plain = {"search": {"space": SPACE}}
        return [Candidate.of(recipe.override(plain), {}).key for recipe, _, _ in self.calls]


def test_a_study_starts_with_the_recipe_and_tells_its_progress(tmp_path: Path) -> None:
    trainer, news = FakeTrainer(), list[StudyProgress]()
    study = run_study(recipe(overrides={"train.epochs": 2}), tmp_path, trainer=trainer, progress=news.append)
    assert [trial.state for trial in study.trials] == ["finished"] * 4
    assert study.trials[0].changes == {"budget.ratio": 0.5, "grid.depths": 1}
    assert all(call[0].train.epochs == 2 for call in trainer.calls)
    assert [call[1] for call in trainer.calls] == [tmp_path / f"trials/{n:04d}" for n in range(4)]
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


def test_resume_goes_on_to_the_wanted_number(tmp_path: Path) -> None:
    whole, parts = FakeTrainer(), FakeTrainer()
    run_study(recipe(), tmp_path / "whole", trainer=whole, trials=5)
    run_study(recipe(), tmp_path / "parts", trainer=parts, trials=2)
    study = run_study(recipe(), tmp_path / "parts", trainer=parts, trials=5)
    assert parts.keys == whole.keys  # as if it had not stopped
    assert study.count("finished") == 5
    assert run_study(recipe(), tmp_path / "parts", trainer=parts, trials=3) == study
    assert len(parts.calls) == 5


def test_the_front_is_optunas(tmp_path: Path) -> None:
    def metrics(recipe: Recipe, folder: Path, *, resume: bool, **_: Any) -> dict[str, float]:
        number = int(folder.name)
        return {"accuracy": (number * 7 % 5) / 5, "macs": float(10 - number if number % 3 else number)}

    study = run_study(recipe(), tmp_path, trainer=metrics, trials=8)
    theirs = optuna.load_study(study_name="tiny", storage=study.storage).best_trials
    assert sorted(trial.number for trial in study.best) == sorted(trial.number for trial in theirs)
    assert len(study.best) > 1
    accuracies = [trial.values["accuracy"] for trial in study.best if trial.values]
    assert accuracies == sorted(accuracies, reverse=True)


def test_one_objective(tmp_path: Path) -> None:
    study = run_study(recipe(objectives=["accuracy"]), tmp_path, trainer=FakeTrainer(), trials=5)
    assert len(study.best) == 1
    assert study.best[0].values == {"accuracy": max(t.values["accuracy"] for t in study.trials if t.values)}


def test_the_same_recipe_is_trained_once(tmp_path: Path) -> None:
    """Gates of a static net's gates change nothing: 2 x 3 points, of which two are different."""
    space = {"grid.depths": [1, [1, 1], [1, 2]], "gates.rows": ["token", "layer"]}
    trainer = FakeTrainer()

    def static(recipe: Recipe, folder: Path, *, resume: bool, **_: Any) -> dict[str, float]:
        trainer.calls.append((recipe, folder, resume))
        return {"accuracy": 0.5, "macs": 1.0}

    made = recipe(space).override({"routing": "static"})
    study = run_study(made, tmp_path, trainer=static, trials=10)
    assert len(trainer.calls) == 2
    assert study.count("finished") == 2  # and the study ended by itself
    # A duplicate that was asked for by hand has its twin's values.
    theirs = optuna.load_study(study_name="tiny", storage=study.storage)
    theirs.enqueue_trial({"grid.depths": "[1,1]", "gates.rows": "layer"})
    study = run_study(made, tmp_path, trainer=static, trials=3)
    assert len(trainer.calls) == 2
    assert study.trials[2].duplicate_of == 0
    assert study.trials[2].values == study.trials[0].values
    assert trial_folder(study, 2) == trial_folder(study, 0) == tmp_path / "trials/0000"
    assert 2 not in [trial.number for trial in study.best]


def test_limits_are_checked_before_training(tmp_path: Path) -> None:
    space = {"budget.ratio": [0.5, 1.2], "grid.depths": [1, [2, 2]]}
    free = recipe(space)
    limit = Candidate.of(free, {"budget.ratio": 0.5, "grid.depths": [2, 2]}).macs
    trainer = FakeTrainer()
    study = run_study(recipe(space, limits={"macs": limit}), tmp_path, trainer=trainer, trials=10)
    assert all(call[0].budget_macs() <= limit for call in trainer.calls)  # type: ignore[operator]
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
    trainer = FakeTrainer()
    study = run_study(recipe(limits={"params": 1000}), tmp_path, trainer=trainer, trials=3)
    assert trainer.calls == []
    assert study.count("pruned") == 3
    assert pareto(study.trials) == ()
    assert [t.planned["params"] for t in study.best] == [min(t.planned["params"] for t in study.trials)]


def test_what_was_measured_counts_for_the_limits(tmp_path: Path) -> None:
    def greedy(recipe: Recipe, folder: Path, *, resume: bool, **_: Any) -> dict[str, float]:
        return {"accuracy": 0.9, "macs": 2e6}

    study = run_study(recipe(limits={"macs": 1_000_000}), tmp_path, trainer=greedy, trials=2)
    assert [trial.violations for trial in study.trials] == [{"macs": 1.0}] * 2
    assert pareto(study.trials) == ()
    assert study.best[0].number == 0


def test_illegal_combinations_are_refused_with_their_reason(tmp_path: Path) -> None:
    space = {"grid.layers": [2, 3], "grid.depths": [[1, 2], [2, 1]]}
    trainer = FakeTrainer()
    study = run_study(recipe(space), tmp_path, trainer=trainer, trials=10)
    assert (study.count("finished"), study.count("pruned")) == (2, 2)
    reasons = [trial.reason for trial in study.trials if trial.state == "pruned"]
    assert all(reason is not None and "depths: 2 numbers for 3 layers" in reason for reason in reasons)


def test_a_failed_training_is_recorded_and_the_study_goes_on(tmp_path: Path) -> None:
    def fail_second(recipe: Recipe, folder: Path) -> None:
        if folder.name == "0001":
            raise RuntimeError("out of memory")

    study = run_study(recipe(), tmp_path, trainer=FakeTrainer(fail_second), trials=4)
    assert [trial.state for trial in study.trials] == ["finished", "failed", "finished", "finished"]
    assert study.trials[1].reason == "RuntimeError: out of memory"
    assert "fail_second" in (tmp_path / "trials/0001/error.txt").read_text()


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"accuracy": float("nan"), "macs": 1.0}, "objective accuracy: is nan"),
        ({"accuracy": 0.5}, "objective macs: not measured; the trainer gives accuracy"),
    ],
)
def test_a_study_whose_first_trials_all_fail_stops(
    tmp_path: Path, metrics: dict[str, float], message: str
) -> None:
    def broken(recipe: Recipe, folder: Path, *, resume: bool, **_: Any) -> dict[str, float]:
        return metrics

    with pytest.raises(RoutespaceError, match=f"the first 3 trials all failed; the last one: {message}"):
        run_study(recipe(), tmp_path, trainer=broken)
    assert load_study(tmp_path).count("failed") == 3


@pytest.mark.parametrize("stop", ["keyboard", "sigterm"])
def test_an_interrupted_trial_is_taken_up_again(tmp_path: Path, stop: str) -> None:
    def interrupt(recipe: Recipe, folder: Path) -> None:
        (folder / "checkpoint").mkdir()
        if folder.name == "0001":
            if stop == "keyboard":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run_study(recipe(), tmp_path, trainer=FakeTrainer(interrupt))
    assert [t.state for t in load_study(tmp_path).trials] == ["finished", "lost", "waiting"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    trainer = FakeTrainer()
    study = run_study(recipe(), tmp_path, trainer=trainer)
    states = [trial.state for trial in study.trials]
    assert states == ["finished", "lost", "finished", "finished", "finished"]
    _, folder, resume = trainer.calls[0]
    assert (folder, resume) == (tmp_path / "trials/0001", True)
    assert study.trials[2].changes == study.trials[1].changes
    assert trial_folder(study, 2) == folder
    assert study.trials[2].reason is None


def kill_second(recipe: Recipe, folder: Path, **_: Any) -> dict[str, float]:
    if folder.name == "0001":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"accuracy": 0.5, "macs": 1.0}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("storage", [None, "journal.log"])
def test_a_killed_workers_trial_is_taken_up_at_once(tmp_path: Path, storage: str | None) -> None:
    kept = str(tmp_path / storage) if storage else None
    child = os.fork()
    if not child:
        run_study(recipe(), tmp_path, storage=kept, trainer=kill_second)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [t.state for t in load_study(tmp_path).trials] == ["finished", "running"]
    trainer = FakeTrainer()
    study = run_study(recipe(), tmp_path, storage=kept, trainer=trainer)
    assert sorted(trial.state for trial in study.trials) == ["finished"] * 4 + ["lost"]
    assert trainer.calls[0][1:] == (tmp_path / "trials/0001", True)


@pytest.mark.parametrize("storage", [None, "journal.log"])
def test_workers_neither_lose_nor_repeat_trials(tmp_path: Path, storage: str | None) -> None:
    kept = str(tmp_path / storage) if storage else None
    trainer = FakeTrainer(lambda recipe, folder: time.sleep(0.02))
    studies, errors = [], []

    def work() -> None:
        try:
            studies.append(run_study(recipe(), tmp_path, trainer=trainer, trials=12, storage=kept))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    study = load_study(tmp_path)
    assert [trial.state for trial in study.trials] == ["finished"] * 12
    assert max(Counter(trainer.keys).values()) == 1
    assert len({folder for _, folder, _ in trainer.calls}) == 12


def test_a_study_refuses_another_recipe_folder_or_number(tmp_path: Path) -> None:
    run_study(recipe(), tmp_path, trainer=FakeTrainer(), trials=1)
    other = recipe().override({"grid.layers": 3, "grid.depths": 1})
    with pytest.raises(SpecError, match=r"'tiny' is of another recipe: grid\.layers was 2, now is 3; choose"):
        run_study(other, tmp_path, trainer=FakeTrainer())
    with pytest.raises(SpecError, match="belongs to another study"):
        run_study(recipe(), tmp_path, study_name="other", trainer=FakeTrainer())
    with pytest.raises(SpecError, match="trials: 0 is not allowed; give at least 1"):
        run_study(recipe(), tmp_path, trials=0)
    # What does not change the outcome may differ: another machine's paths, more trials, another sampler.
    same = {"data.workers": 1, "search.trials": 2, "search.sampler": "random", "train.device": "cpu", "name": "x"}
    study = run_study(recipe().override(same), tmp_path, study_name="tiny", trainer=FakeTrainer())
    assert study.count("finished") == 2
    with pytest.raises(SpecError, match="trial: 2 is not in study 'tiny'; it has 0 to 1"):
        trial_folder(study, 2)


def test_a_folder_can_move(tmp_path: Path) -> None:
    run_study(recipe(), tmp_path / "before", trainer=FakeTrainer(), trials=2)
    (tmp_path / "before").rename(tmp_path / "after")
    study = load_study(tmp_path / "after")
    assert trial_folder(study, 1) == tmp_path / "after/trials/0001"
    assert run_study(recipe(), tmp_path / "after", trainer=FakeTrainer(), trials=3).count("finished") == 3
    gone = load_study(tmp_path / "after/study.db")  # of a database alone, only the old place is known
    with pytest.raises(BundleError, match="is not on this machine"):
        trial_folder(gone, 1)


def test_two_studies_in_one_database(tmp_path: Path) -> None:
    shared = f"sqlite:///{tmp_path / 'all.db'}"
    for name in ("one", "two"):
        run_study(recipe(), tmp_path / name, storage=shared, study_name=name, trainer=FakeTrainer(), trials=1)
    with pytest.raises(SpecError, match="holds one, two; name one of them"):
        load_study(shared)
    with pytest.raises(SpecError, match="has no study 'three'; it holds one, two"):
        load_study(shared, "three")
    assert load_study(shared, "two").out == tmp_path / "two"
    assert load_study(tmp_path / "one").name == "one"


def test_a_study_that_is_not_ours(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'theirs.db'}"
    optuna.create_study(study_name="tiny", storage=url).optimize(lambda trial: trial.suggest_float("x", 0, 1), 1)
    with pytest.raises(BundleError, match="was not made by routespace"):
        load_study(url)
    with pytest.raises(SpecError, match="was not made by routespace"):
        run_study(recipe(), tmp_path / "out", storage=url, trainer=FakeTrainer())
    run_study(recipe(), tmp_path / "out", storage=url, study_name="mine", trainer=FakeTrainer(), trials=1)


def test_records_are_read_without_torch(tmp_path: Path) -> None:
    run_study(recipe(), tmp_path, trainer=FakeTrainer(), trials=1)
    code = f"""
    import sys, json
    from routespace.search import load_study
    print(json.dumps([load_study({str(tmp_path)!r}).count("finished"), "torch" in sys.modules]))
    """
    found = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=True)
    assert json.loads(found.stdout) == [1, False]
