"""search/runner.py and rescue.py: trials that fail, are interrupted or killed, and workers side by side."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from fake_evaluator import FakeEvaluator, recipe
from optuna.exceptions import ExperimentalWarning

from routespace.errors import DataError, RoutespaceError, SpecError
from routespace.search import load_study, run_study, trial_folder
from routespace.search.candidate import RecipeCandidate
from routespace.search.evaluator import Workplace
from routespace.search.rescue import age_s
from routespace.train.recipe.recipe import Recipe


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("CUDA out of memory.\nTried to allocate 2 GiB", "not enough memory; use a smaller batch"),
        ("a fault\n  in two lines", "RuntimeError: a fault in two lines"),
    ],
)
def test_a_failed_training_is_recorded_in_a_line_and_the_study_goes_on(
    tmp_path: Path, said: str, told: str
) -> None:
    def fail_second(recipe: Recipe, folder: Path) -> None:
        if folder.name == "0001":
            raise RuntimeError(said)

    study = run_study(recipe(), tmp_path, evaluator=FakeEvaluator(fail_second), trials=4)
    assert [trial.state for trial in study.trials] == ["finished", "failed", "finished", "finished"]
    (line,) = str(study.trials[1].reason).splitlines()
    assert line.startswith(told)
    assert "fail_second" in (tmp_path / "trials/0001/error.txt").read_text()


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"accuracy": float("nan"), "macs": 1.0}, "objective accuracy: is nan"),
        ({"accuracy": 0.5}, "objective macs: not measured; the evaluator gives accuracy"),
        pytest.param({}, "objective accuracy: not measured; the evaluator gives nothing", marks=pytest.mark.slow),
        (None, "evaluator: it returned None, which is no mapping; return a mapping from each name to its number"),
        pytest.param(0.5, "evaluator: it returned 0.5, which is no mapping", marks=pytest.mark.slow),
        pytest.param(
            {"accuracy": "high"}, "evaluator: accuracy is 'high', which is no number", marks=pytest.mark.slow
        ),
        ({"accuracy": torch.ones(2)}, "evaluator: accuracy is tensor.*, which is no number"),
    ],
)
def test_a_study_whose_first_trials_all_fail_stops(tmp_path: Path, metrics: Any, message: str) -> None:
    def broken(candidate: RecipeCandidate, place: Workplace) -> Any:
        return metrics

    with pytest.raises(RoutespaceError, match=f"the first 3 trials all failed alike: {message}"):
        run_study(recipe(), tmp_path, evaluator=broken)
    assert load_study(tmp_path).count("failed") == 3


def test_a_device_that_is_not_there_is_told_before_a_study_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError, match=r"train\.device: 'cuda' is not there on this machine"):
        run_study(recipe(overrides={"train.device": "cuda"}), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_study_without_one_finished_trial_fails(tmp_path: Path) -> None:
    """However few were asked for: a front without members would look like an answer."""

    def fail(recipe: Recipe, folder: Path) -> None:
        raise RuntimeError(f"of {folder.name}")

    told = "no trial finished, 2 failed; the last one: RuntimeError: of 0001"
    with pytest.raises(RoutespaceError, match=told):
        run_study(recipe(), tmp_path, evaluator=FakeEvaluator(fail), trials=2)
    with pytest.raises(RoutespaceError, match=told):  # nor is it one when there is nothing left to do
        run_study(recipe(), tmp_path, evaluator=FakeEvaluator(), trials=2, retry_failed=False)


@pytest.mark.parametrize("searched", [False, True])
def test_an_error_of_the_data_stops_a_study_at_once(tmp_path: Path, searched: bool) -> None:
    """Every trial would meet it, unless the data is among what is searched."""
    fake = FakeEvaluator()

    def fail_second(recipe: Recipe, folder: Path) -> None:
        if len(fake.calls) == 2:
            raise DataError("photos/cat.jpg: is no image")

    fake.before = fail_second
    made = recipe({"data.train_size": [20, 30, 40]} if searched else None, trials=3)
    if searched:
        study = run_study(made, tmp_path, evaluator=fake)
        assert study.count("finished") == 2
    else:
        with pytest.raises(DataError, match=r"every trial would meet this: photos/cat\.jpg: is no image"):
            run_study(made, tmp_path, evaluator=fake)
    assert len(fake.calls) == (3 if searched else 2)
    assert load_study(tmp_path).trials[1].reason == "photos/cat.jpg: is no image"


@pytest.mark.parametrize("again", [True, False])
def test_what_failed_is_tried_again_by_the_next_call_from_its_start(tmp_path: Path, again: bool) -> None:
    def break_second(recipe: Recipe, folder: Path) -> None:
        (folder / "half").touch()
        if folder.name == "0001":
            raise RuntimeError("a broken file")

    first = run_study(recipe(), tmp_path, evaluator=FakeEvaluator(break_second), trials=3)
    assert (first.count("finished"), first.count("failed")) == (2, 1)
    fake = FakeEvaluator(lambda recipe, folder: (folder / "half").touch(exist_ok=False))
    study = run_study(recipe(), tmp_path, evaluator=fake, trials=3, retry_failed=again)
    if not again:
        assert (study, fake.calls) == (first, [])
        return
    assert [trial.state for trial in study.trials] == ["finished", "lost", "finished", "finished"]
    assert study.trials[3].changes == first.trials[1].changes
    assert (study.trials[1].reason, study.trials[3].reason) == ("RuntimeError: a broken file", None)
    assert [call[1:] for call in fake.calls] == [(tmp_path / "trials/0001", False)]


def test_what_fails_again_does_not_stop_a_study_that_has_better_trials(tmp_path: Path) -> None:
    def diverge(recipe: Recipe, folder: Path) -> None:
        if folder.name not in ("0000", "0004"):
            raise RuntimeError("the loss became nan")

    study = run_study(recipe(), tmp_path, evaluator=FakeEvaluator(diverge), trials=4)
    assert (study.count("finished"), study.count("failed")) == (1, 3)
    fake = FakeEvaluator(diverge)
    study = run_study(recipe(), tmp_path, evaluator=fake, trials=4)
    assert (study.count("finished"), study.count("failed"), len(fake.calls)) == (1, 3, 3)


def test_a_trial_that_another_worker_took_over_ends_nothing(tmp_path: Path) -> None:
    """A worker that was suspended for minutes is taken for dead; when it wakes up, its trial is another's."""

    def lose_first(recipe: Recipe, folder: Path) -> None:
        if len(fake.calls) == 1:
            study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{tmp_path / 'study.db'}")
            study.tell(0, state=optuna.trial.TrialState.FAIL)
            with pytest.warns(ExperimentalWarning):
                optuna.storages.RetryHeartbeatStaleTrialCallback()(study, study.trials[0])

    fake = FakeEvaluator(lose_first)
    study = run_study(recipe(), tmp_path, evaluator=fake, trials=3)
    assert sorted(trial.state for trial in study.trials) == ["finished"] * 3 + ["lost"]


def test_the_age_of_a_trial_knows_summer_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna's times are local ones without a zone: 01:59:50 and 03:00:05 may be 15 seconds apart."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        start, now = datetime(2026, 3, 29, 1, 59, 50), datetime(2026, 3, 29, 1, 0, 5, tzinfo=UTC)
        assert age_s(start, now) == 15
        assert age_s(start.astimezone(UTC), now) == 15
        assert age_s(None) == 0
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("stop", ["keyboard", "sigterm"])
def test_an_interrupted_trial_is_taken_up_again(tmp_path: Path, stop: str) -> None:
    def interrupt(recipe: Recipe, folder: Path) -> None:
        (folder / "checkpoint").mkdir()
        if folder.name == "0001":
            if stop == "keyboard":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run_study(recipe(), tmp_path, evaluator=FakeEvaluator(interrupt))
    assert [t.state for t in load_study(tmp_path).trials] == ["finished", "lost", "waiting"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    fake = FakeEvaluator()
    study = run_study(recipe(), tmp_path, evaluator=fake)
    states = [trial.state for trial in study.trials]
    assert states == ["finished", "lost", "finished", "finished", "finished"]
    _, folder, resume = fake.calls[0]
    assert (folder, resume) == (tmp_path / "trials/0001", True)
    assert study.trials[2].changes == study.trials[1].changes
    assert trial_folder(study, 2) == folder
    assert study.trials[2].reason is None


def kill_second(candidate: RecipeCandidate, place: Workplace) -> dict[str, float]:
    if place.folder.name == "0001":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"accuracy": 0.5, "macs": 1.0}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("storage", [None, "journal.log"])
def test_a_killed_workers_trial_is_taken_up_at_once(tmp_path: Path, storage: str | None) -> None:
    kept = str(tmp_path / storage) if storage else None
    child = os.fork()
    if not child:
        run_study(recipe(), tmp_path, storage=kept, evaluator=kill_second)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [t.state for t in load_study(tmp_path).trials] == ["finished", "running"]
    fake = FakeEvaluator()
    study = run_study(recipe(), tmp_path, storage=kept, evaluator=fake)
    assert sorted(trial.state for trial in study.trials) == ["finished"] * 4 + ["lost"]
    assert fake.calls[0][1:] == (tmp_path / "trials/0001", True)


@pytest.mark.parametrize("storage", [None, "journal.log"])
def test_workers_neither_lose_nor_repeat_trials(tmp_path: Path, storage: str | None) -> None:
    kept = str(tmp_path / storage) if storage else None
    fake = FakeEvaluator(lambda recipe, folder: time.sleep(0.02))
    studies, errors = [], []

    def work() -> None:
        try:
            studies.append(run_study(recipe(), tmp_path, evaluator=fake, trials=8, storage=kept))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    study = load_study(tmp_path)
    assert [trial.state for trial in study.trials] == ["finished"] * 8
    assert max(Counter(fake.keys).values()) == 1
    assert len({folder for _, folder, _ in fake.calls}) == 8
