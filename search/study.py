"""run_study: train trials until a study has as many as were asked for; start, resume and join are one call.

    study = run_study(recipe, Path("runs/search"), trials=20)
    study.best                                  # the Pareto front

Run it again with the same folder and it goes on; run it in a second shell and both work on one study. A trial
whose worker was stopped or killed is queued again with the same values and goes on in its folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from routespace.errors import RoutespaceError, SpecError
from routespace.search.latency import study_table
from routespace.search.opening import open_study
from routespace.search.records import State, StudyRecord, TrialRecord, close, pareto, records, snapshot
from routespace.search.rescue import queue_again, quiet, recover, sigterm_interrupts, usable
from routespace.search.sampler import Points, make_sampler, retried
from routespace.search.space import Space, require_search
from routespace.search.storage import Turn, Worker, absolute, default_url, make_folder, open_storage
from routespace.search.trainer import Trainer, train_trial
from routespace.search.trial import Objective
from routespace.train.recipe.recipe import Recipe

FAILURES_TO_STOP = 3  # trials that all fail from the first on: the recipe or its data is at fault


@dataclass(frozen=True)
class StudyProgress:
    """News of a study.

    Attributes:
        number: the trial's.
        state: of the trial; `running` at its start and while it trains.
        changes: dotted field → value that it tries.
        trial: its record, when ended.
        ended, trials: how many trials have ended and how many are wanted.
        best: the Pareto front so far.
        training: the trainer's own progress, while it trains.
    """

    number: int
    state: State
    changes: Mapping[str, Any]
    trial: TrialRecord | None
    ended: int
    trials: int
    best: tuple[TrialRecord, ...]
    training: Any = None


Watch = Callable[[StudyProgress], None]


def run_study(
    recipe: Recipe,
    out: str | Path,
    *,
    trials: int | None = None,
    storage: str | None = None,
    study_name: str | None = None,
    seed: int | None = None,
    trainer: Trainer | None = None,
    progress: Watch | None = None,
) -> StudyRecord:
    """Run trials until the study has `trials` that ended, whoever ran them.

    Args:
        recipe: with a `search` section.
        out: the study's folder; workers on one machine share it.
        trials: wanted in all, those of earlier calls included; without it `search.trials`. Finished, pruned and
            failed ones count; interrupted ones do not. A small space may run out earlier.
        storage: `sqlite:///…`, `postgresql://…`, `redis://…` or the path of a journal file; without it
            `study.db` in `out`. SQLite does not work on network file systems.
        study_name: within the storage; without it the recipe's name.
        seed: of the sampler; without it the recipe's.
        trainer: trains one recipe in a folder and returns its metrics; None for `train_trial`.
        progress: told when a trial starts, trains and ends.

    Raises:
        SpecError: the recipe's search or the storage is not usable, or the study is of another recipe.
        BundleError: the folder or the storage cannot be used.
        RoutespaceError: the first trials all failed.
        KeyboardInterrupt: also upon SIGTERM; the trial in hand is queued again.
    """
    search, space = require_search(recipe), Space.of(recipe)
    wanted = search.trials if trials is None else trials
    if wanted < 1:
        raise SpecError(f"trials: {wanted} is not allowed; give at least 1")
    table = study_table(recipe)
    chosen = partial(train_trial, table=table) if trainer is None else trainer
    out = Path(out).resolve()
    url = default_url(out) if storage is None else absolute(storage)
    name = study_name or recipe.name
    make_folder(out)
    with quiet(), usable(url), Worker(out) as worker, sigterm_interrupts():
        with Turn(out):  # two workers that create one SQLite file at a time fail
            opened = open_storage(url)
        try:
            with Turn(out):
                study = open_study(recipe, space, table, out=out, name=name, storage=opened, url=url)
            points = Points(recipe, space, table)
            runner = _Runner(study, points, wanted, recipe.seed if seed is None else seed, progress)
            runner.run(out, worker, chosen)
            return snapshot(study, storage=url, out=out)
        finally:
            close(opened)


class _Runner:
    """The loop of one worker."""

    def __init__(
        self,
        study: optuna.Study,
        points: Points,
        wanted: int,
        seed: int,
        progress: Watch | None,
    ) -> None:
        self.study, self.recipe, self.points = study, points.recipe, points
        self.wanted, self.seed, self.progress = wanted, seed, progress
        self.out = Path()
        self.failures: list[str] | None = []  # None once a trial of this call did not fail
        self.ended = 0
        self.best: tuple[TrialRecord, ...] = ()

    def run(self, out: Path, worker: Worker, trainer: Trainer) -> None:
        self.out = out
        objective = Objective(
            self.recipe,
            self.points.space,
            out=out,
            worker=worker,
            trainer=trainer,
            watch=self._training,
            table=self.points.table,
        )
        while True:
            with Turn(out) as turn:
                recover(self.study, worker)
                if not self._choose_sampler():
                    return
                objective.turn, objective.current = turn, None
                try:
                    self.study.optimize(
                        objective, n_trials=1, catch=(Exception,), callbacks=[self._ended], gc_after_trial=True
                    )
                except KeyboardInterrupt:
                    queue_again(self.study, objective.current)
                    raise

    def _choose_sampler(self) -> bool:
        """Make the sampler of the next trial; False when no trial is to be started."""
        trials = self.study.get_trials(deepcopy=False)
        states = [trial.state for trial in trials]
        taken = len(trials) - states.count(TrialState.WAITING) - len(retried(trials))
        if taken >= self.wanted:  # the last ones may be in other workers' hands
            return False
        if not states.count(TrialState.WAITING) and not self.points.left(trials):
            return False
        search = require_search(self.recipe)
        self.study.sampler = make_sampler(
            search.sampler, self.points, seed=self.seed, number=len(trials), trials=search.trials
        )
        self._look()
        return True

    def _look(self) -> tuple[TrialRecord, ...]:
        """Read the study's trials, and keep what progress tells: a front for each step would be dear."""
        found = records(self.study.get_trials(deepcopy=False), self.recipe, self.out)
        self.ended = sum(trial.state in ("finished", "pruned", "failed") for trial in found)
        self.best = pareto(found)
        return found

    def _training(self, number: int, changes: Mapping[str, Any], step: Any) -> None:
        self._tell(number, "running", changes, step=step)

    def _ended(self, study: optuna.Study, trial: FrozenTrial) -> None:
        record = self._look()[trial.number]
        self._tell(trial.number, record.state, record.changes, record=record)
        if record.state != "failed":
            self.failures = None
        elif self.failures is not None:
            self.failures.append(record.reason or "no message")
            if len(self.failures) >= FAILURES_TO_STOP:
                raise RoutespaceError(
                    f"study: the first {len(self.failures)} trials all failed; the last one: {record.reason}; "
                    f"see {record.folder}"
                )

    def _tell(
        self,
        number: int,
        state: State,
        changes: Mapping[str, Any],
        *,
        record: TrialRecord | None = None,
        step: Any = None,
    ) -> None:
        if self.progress is not None:
            self.progress(
                StudyProgress(number, state, changes, record, self.ended, self.wanted, self.best, training=step)
            )
