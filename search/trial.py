"""One trial: draw a point, refuse what cannot or need not be evaluated, evaluate the rest, keep what was found.

A trial leaves: values (the objectives), constraints (the limits), and user attributes under the names in `Attr`.
Its folder `trials/0007/` is an ordinary run folder.
"""

from __future__ import annotations

import json
import math
import shutil
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from routespace import file_names
from routespace.errors import DataError, RoutespaceError, reason
from routespace.memory import told_shortage
from routespace.search.candidate import Candidate, excess
from routespace.search.evaluator import Workplace
from routespace.search.objectives import with_objectives
from routespace.search.problem import Problem
from routespace.search.pruning import EpochWatch
from routespace.search.storage import Turn, Worker

MESSAGE_CHARS = 500  # of an error kept with its trial; the whole of it lies in the trial's folder
ERROR_FILE = "error.txt"
PLANNED = "planned "  # before a limit's name: its constraint before training; Optuna lets none be changed later

C = TypeVar("C", bound=Candidate)


class Attr:
    """Names of a trial's user attributes; plain strings, as every database driver takes those."""

    WORKER = "worker"  # who runs it
    CHANGES = "changes"  # JSON: dotted field → value, as the recipe took them
    KEY = "key"  # content hash of what is trained
    ARCHITECTURE = "architecture"  # its hash
    PLANNED = "planned"  # {"macs", "params", "latency_ms"}, known before training; the last by a table
    FOLDER = "folder"  # relative to the study's folder
    OUT = "out"  # the study's folder on the machine that ran it
    METRICS = "metrics"  # name → number, after training
    DUPLICATE_OF = "duplicate_of"  # number of the trial that trained the same
    REASON = "reason"  # why it was pruned, given up or failed; None again once it is tried again


def violations(trial: FrozenTrial) -> dict[str, float]:
    """Limit → by which share a trial passes it, as measured or, until then, as planned; only those above 0."""
    found = {
        name.removeprefix(PLANNED): trial.constraints.get(name.removeprefix(PLANNED), share)
        for name, share in trial.constraints.items()
    }
    return {name: share for name, share in found.items() if share > 0}


class TrialRunner(Generic[C]):
    """The function that Optuna calls with each trial.

    Args:
        problem: what is searched.
        out: the study's folder.
        worker: who runs the trials.
        watch: told the trial and how far its evaluation is; None as news means that it begins.

    Attributes:
        current: number of the trial in hand, None between trials.
        turn: held while a trial is chosen, released when its evaluation starts.
        data_error: what was wrong with the data, if a trial failed by that: others would, too.
    """

    def __init__(
        self,
        problem: Problem[C],
        *,
        out: Path,
        worker: Worker,
        watch: Callable[[int, Mapping[str, Any], Any], None],
    ) -> None:
        self.problem = problem
        self.out = out
        self.worker = worker
        self.watch = watch
        self.turn: Turn | None = None
        self.current: int | None = None
        self.data_error: str | None = None

    def __call__(self, trial: Trial) -> tuple[float, ...]:
        """Values in the order of the objectives.

        Raises:
            TrialPruned: an illegal point, one beyond a limit, one that another worker is evaluating, or one that
                the pruner gives up.
            Exception: whatever the evaluation raised; its message is kept with the trial.
        """
        self.current = trial.number
        trial.set_user_attr(Attr.WORKER, self.worker.name)
        changes = self.problem.space.suggest(trial)
        trial.set_user_attr(Attr.CHANGES, json.dumps(changes))
        candidate = self._decode(trial, changes)
        twin = _twin(trial, candidate.key)
        if twin is not None:
            return _reuse(trial, twin)
        if self.turn is not None:
            self.turn.release()
        return self._keep(trial, self._evaluate(trial, candidate, changes))

    def _decode(self, trial: Trial, changes: Mapping[str, Any]) -> C:
        try:
            candidate = self.problem.decode(changes)
        except RoutespaceError as error:
            raise _pruned(trial, str(error)) from error
        trial.set_user_attr(Attr.KEY, candidate.key)
        trial.set_user_attr(Attr.ARCHITECTURE, candidate.architecture.hash)
        trial.set_user_attr(Attr.PLANNED, dict(candidate.planned))
        for name, share in candidate.violations.items():  # a trial without counts as one that keeps the limits
            trial.set_constraint(PLANNED + name, share)
        if not candidate.feasible:
            raise _pruned(trial, _over(candidate, self.problem.limits))
        return candidate

    def _evaluate(self, trial: Trial, candidate: C, changes: Mapping[str, Any]) -> Mapping[str, float]:
        """Evaluate in the trial's folder; one that was queued again goes on there, or starts anew if it failed."""
        name = trial.user_attrs.get(Attr.FOLDER, f"trials/{trial.number:04d}")
        folder = self.out / name
        if trial.user_attrs.get(Attr.REASON) is not None:  # it failed before: from the start, nothing is left
            shutil.rmtree(folder, ignore_errors=True)
        for key, value in ((Attr.OUT, str(self.out)), (Attr.FOLDER, name), (Attr.REASON, None)):
            trial.set_user_attr(key, value)
        resume = folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.watch(trial.number, changes, None)
            place = Workplace(folder, resume, report=self._report(trial, changes))
            return _checked(self.problem.evaluate(candidate, place), self.problem.objectives)
        except optuna.TrialPruned as error:
            shutil.rmtree(folder / file_names.CHECKPOINT, ignore_errors=True)
            raise _pruned(trial, str(error)) from None
        except Exception as error:
            if isinstance(error, DataError):
                self.data_error = str(error)
            trial.set_user_attr(Attr.REASON, _why(error)[:MESSAGE_CHARS])
            _write_traceback(folder)
            raise

    def _report(self, trial: Trial, changes: Mapping[str, Any]) -> Callable[[Any], None]:
        """What an evaluation tells its news: whoever watches, and the pruner."""
        pruning = EpochWatch(trial, self.problem.objectives[0])

        def report(news: Any) -> None:
            self.watch(trial.number, changes, news)
            pruning(news)

        return report

    def _keep(self, trial: Trial, metrics: Mapping[str, float]) -> tuple[float, ...]:
        trial.set_user_attr(Attr.METRICS, dict(metrics))
        for name, limit in self.problem.limits.items():
            reached = metrics.get(name, trial.user_attrs[Attr.PLANNED][name])
            trial.set_constraint(name, excess(reached, limit))
        return tuple(metrics[name] for name in self.problem.objectives)


def _why(error: Exception) -> str:
    """What made a trial fail, as one line; of an error that is none of ours its kind, too."""
    shortage = told_shortage(error)
    if shortage is not None or isinstance(error, RoutespaceError):
        return shortage or reason(error)
    return f"{type(error).__name__}: {reason(error)}"


def _reuse(trial: Trial, twin: FrozenTrial) -> tuple[float, ...]:
    """The outcome of the trial that evaluated the same, or a refusal while it is still at it."""
    trial.set_user_attr(Attr.DUPLICATE_OF, twin.number)
    if twin.state != TrialState.COMPLETE:
        raise _pruned(trial, f"trial {twin.number} is training the same")
    for name in (Attr.METRICS, Attr.FOLDER, Attr.OUT):
        if name in twin.user_attrs:
            trial.set_user_attr(name, twin.user_attrs[name])
    for limit, share in twin.constraints.items():
        if not limit.startswith(PLANNED):  # its own were set when it was decoded
            trial.set_constraint(limit, share)
    return tuple(twin.values)


def _twin(trial: Trial, key: str) -> FrozenTrial | None:
    """Another trial that evaluated the same, or is doing so."""
    states = (TrialState.COMPLETE, TrialState.RUNNING)
    found = [
        other
        for other in trial.study.get_trials(deepcopy=False, states=states)
        if other.number != trial.number
        and other.user_attrs.get(Attr.KEY) == key
        and Attr.DUPLICATE_OF not in other.user_attrs
    ]
    # One that is complete is worth more than one that runs.
    return min(found, key=lambda other: (other.state != TrialState.COMPLETE, other.number), default=None)


def _over(candidate: Candidate, limits: Mapping[str, float]) -> str:
    planned = candidate.planned
    return "; ".join(
        f"{name}: {_digits(planned[name])} is above the limit {_digits(limit)}"
        for name, limit in limits.items()
        if candidate.violations[name] > 0
    )


def _digits(number: float) -> str:
    """Counts whole, milliseconds with six digits."""
    return str(number) if isinstance(number, int) else f"{number:.6g}"


def _pruned(trial: Trial, reason: str) -> optuna.TrialPruned:
    trial.set_user_attr(Attr.REASON, reason[:MESSAGE_CHARS])
    return optuna.TrialPruned(reason)


def _checked(metrics: object, objectives: Sequence[str]) -> dict[str, float]:
    """What an evaluator gave, perhaps a user's own, as numbers; raises RoutespaceError for anything else."""
    wanted = f"return a mapping from each name to its number, such as {{{objectives[0]!r}: 0.5}}"
    if not isinstance(metrics, Mapping):
        raise RoutespaceError(f"evaluator: it returned {metrics!r:.60}, which is no mapping; {wanted}")
    numbers = dict[str, float]()
    for name, value in metrics.items():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:  # the last of a tensor with several elements
            raise RoutespaceError(
                f"evaluator: {name!s:.40} is {value!r:.60}, which is no number; {wanted}"
            ) from error
    found = with_objectives(numbers, objectives)
    for name in objectives:
        if name not in found:
            raise RoutespaceError(
                f"objective {name}: not measured; the evaluator gives {', '.join(found) or 'nothing'}"
            )
        if not math.isfinite(found[name]):
            raise RoutespaceError(f"objective {name}: is {found[name]}; the training went astray, try a lower lr")
    return found


def _write_traceback(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)  # a refused run leaves none
        (folder / ERROR_FILE).write_text(traceback.format_exc())
    except OSError:  # a full disk may be the very error; its message is with the trial
        return
