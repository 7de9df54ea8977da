"""The loop of one worker: take a trial, evaluate it, tell of it; until the study has as many as were asked for.

When does a study of failures stop? At once where the data is at fault and no field of the data is searched: every
trial would meet the same. After three trials of a call that all failed, or at the end when none finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from routespace.errors import DataError, RoutespaceError
from routespace.search.problem import Problem
from routespace.search.records import TrialRecord, TrialStatus, pareto, records
from routespace.search.rescue import queue_again, recover, retry_failed
from routespace.search.sampler import Points, make_sampler, retried
from routespace.search.storage import Turn, Worker
from routespace.search.trial import TrialRunner
from routespace.train.recipe.searching import Sampler

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
        training: the evaluator's own progress, while it trains; None at the start.
    """

    number: int
    state: TrialStatus
    changes: Mapping[str, Any]
    trial: TrialRecord | None
    ended: int
    trials: int
    best: tuple[TrialRecord, ...]
    training: Any = None


Watch = Callable[[StudyProgress], None]


@dataclass(frozen=True)
class StudyCall:
    """What a call asks of a study.

    Attributes:
        trials: how many, those of earlier calls included.
        sampler: Optuna's.
        planned: how many the study itself plans, which NSGA-II divides into generations.
        seed: of the sampler.
        retry_failed: take up again what failed in earlier calls.
        progress: told when a trial starts, trains and ends.
    """

    trials: int
    sampler: Sampler
    planned: int
    seed: int
    retry_failed: bool
    progress: Watch | None


class Loop:
    """The loop of one worker.

    Args:
        study: Optuna's.
        problem: what is searched.
        wanted: how much of it.
        out: the study's folder.
    """

    def __init__(self, study: optuna.Study, problem: Problem[Any], *, wanted: StudyCall, out: Path) -> None:
        self.study, self.problem, self.wanted, self.out = study, problem, wanted, out
        self.points = Points(problem)
        self.failed: list[TrialRecord] = []  # in this call
        self.any_finished = False  # in this call
        self.ended = 0
        self.best: tuple[TrialRecord, ...] = ()

    def run(self, worker: Worker) -> None:
        """Run trials until there are enough, or no point is left.

        Raises:
            DataError: the data is at fault.
            RoutespaceError: no trial finishes.
            KeyboardInterrupt: the trial in hand is queued again.
        """
        runner = TrialRunner(self.problem, out=self.out, worker=worker, watch=self._training)
        first = True
        while True:
            with Turn(self.out) as turn:
                recover(self.study, worker)
                if first and self.wanted.retry_failed:
                    retry_failed(self.study)
                first = False
                if not self._choose_sampler():
                    break
                runner.turn, runner.current = turn, None
                self._run_trial(runner)
            if runner.data_error is not None and not self._data_is_searched():
                raise DataError(f"study: stopped, as every trial would meet this: {runner.data_error}")
            self._check_failures()
        self._check_end()

    def _run_trial(self, runner: TrialRunner[Any]) -> None:
        try:
            self.study.optimize(
                runner, n_trials=1, catch=(Exception,), callbacks=[self._ended], gc_after_trial=True
            )
        except KeyboardInterrupt:
            queue_again(self.study, runner.current)
            raise
        except (ValueError, UpdateFinishedTrialError):  # told of a trial that has ended
            if not self._taken_over(runner.current):
                raise

    def _taken_over(self, number: int | None) -> bool:
        """Whether another worker took this one for dead, as its signs of life came late, and has its trial."""
        trials = self.study.get_trials(deepcopy=False)
        return number is not None and number in retried(trials)

    def _choose_sampler(self) -> bool:
        """Make the sampler of the next trial; False when no trial is to be started."""
        trials = self.study.get_trials(deepcopy=False)
        states = [trial.state for trial in trials]
        taken = len(trials) - states.count(TrialState.WAITING) - len(retried(trials))
        if taken >= self.wanted.trials:  # the last ones may be in other workers' hands
            return False
        if not states.count(TrialState.WAITING) and not self.points.left(trials):
            return False
        wanted = self.wanted
        self.study.sampler = make_sampler(
            wanted.sampler, self.points, trials, seed=wanted.seed, number=len(trials), trials=wanted.planned
        )
        self._look()
        return True

    def _look(self) -> tuple[TrialRecord, ...]:
        """Read the study's trials, and keep what progress tells: a front for each step would be dear."""
        found = records(self.study.get_trials(deepcopy=False), self.problem.objectives, self.out)
        self.ended = sum(trial.state in ("finished", "pruned", "failed") for trial in found)
        self.best = pareto(found)
        return found

    def _training(self, number: int, changes: Mapping[str, Any], step: Any) -> None:
        self._tell(number, "running", changes, step=step)

    def _ended(self, study: optuna.Study, trial: FrozenTrial) -> None:
        found = self._look()
        record = found[trial.number]
        self._tell(trial.number, record.state, record.changes, record=record)
        if record.state == "finished":
            self.any_finished = True
        elif record.state == "failed" and not _known_failure(trial, found):
            self.failed.append(record)

    def _data_is_searched(self) -> bool:
        return any(field.split(".")[0] == "data" for field in self.problem.space.distributions)

    def _check_failures(self) -> None:
        """Stop when all that this call evaluated has failed, three times."""
        if self.any_finished or len(self.failed) < FAILURES_TO_STOP:
            return
        raise RoutespaceError(f"study: the first {len(self.failed)} trials all failed{_cause(self.failed)}")

    def _check_end(self) -> None:
        """A study that ends without one finished trial, and not for its limits, has failed."""
        found = self._look()
        failed = [trial for trial in found if trial.state == "failed"]  # in whichever call
        if failed and not any(trial.state in ("finished", "running") for trial in found):
            raise RoutespaceError(f"study: no trial finished, {len(failed)} failed{_cause(failed)}")

    def _tell(
        self,
        number: int,
        state: TrialStatus,
        changes: Mapping[str, Any],
        *,
        record: TrialRecord | None = None,
        step: Any = None,
    ) -> None:
        if self.wanted.progress is not None:
            news = StudyProgress(number, state, changes, record, self.ended, self.wanted.trials, self.best, step)
            self.wanted.progress(news)


def _known_failure(trial: FrozenTrial, found: Sequence[TrialRecord]) -> bool:
    """Whether a trial that was taken up again failed as before, in a study that has better ones."""
    history = trial.system_attrs.get("retry_history", ())
    reason = found[trial.number].reason
    return any(found[number].reason == reason for number in history) and any(t.state == "finished" for t in found)


def _cause(failed: Sequence[TrialRecord]) -> str:
    """What to say of failed trials: their one cause, or the last one's."""
    last = failed[-1]
    same = {trial.reason for trial in failed} == {last.reason} and len(failed) > 1
    return f"{' alike' if same else '; the last one'}: {last.reason}; see {last.folder}"
