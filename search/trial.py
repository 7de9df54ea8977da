"""One trial: draw a point, refuse what cannot or need not be trained, train the rest, keep what was found.

A trial leaves: values (the objectives), constraints (the limits), and user attributes under the names in `Attr`.
Its folder `trials/0007/` is an ordinary run folder.
"""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from routespace.errors import RoutespaceError
from routespace.search.candidate import Candidate, excess
from routespace.search.space import Space, require_search
from routespace.search.storage import Turn, Worker
from routespace.search.trainer import Trainer
from routespace.train.recipe.recipe import Recipe

if TYPE_CHECKING:
    from routespace.deploy.latency.table import LatencyTable

MESSAGE_CHARS = 500  # of an error kept with its trial; the whole of it lies in the trial's folder
ERROR_FILE = "error.txt"


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
    REASON = "reason"  # why it was pruned or failed


class Objective:
    """The function that Optuna calls with each trial.

    Args:
        recipe: the study's recipe.
        space: its space.
        out: the study's folder.
        worker: who runs the trials.
        trainer: trains a recipe in a folder.
        watch: told the trial and the trainer's own progress.
        table: predicts times; None where nothing asks for them, or they are measured.

    Attributes:
        current: number of the trial in hand, None between trials.
        turn: held while a trial is chosen, released when its training starts.
    """

    def __init__(
        self,
        recipe: Recipe,
        space: Space,
        *,
        out: Path,
        worker: Worker,
        trainer: Trainer,
        watch: Callable[[int, Mapping[str, Any], Any], None],
        table: LatencyTable | None = None,
    ) -> None:
        self.recipe = recipe
        self.space = space
        self.search = require_search(recipe)
        self.out = out
        self.worker = worker
        self.trainer = trainer
        self.watch = watch
        self.table = table
        self.turn: Turn | None = None
        self.current: int | None = None

    def __call__(self, trial: Trial) -> tuple[float, ...]:
        """Values in the order of the objectives.

        Raises:
            TrialPruned: an illegal point, one beyond a limit, or one that another worker is training.
            Exception: whatever training raised; its message is kept with the trial.
        """
        self.current = trial.number
        trial.set_user_attr(Attr.WORKER, self.worker.name)
        changes = self.space.suggest(trial)
        trial.set_user_attr(Attr.CHANGES, json.dumps(changes))
        candidate = self._decode(trial, changes)
        twin = _twin(trial, candidate.key)
        if twin is not None:
            return self._reuse(trial, twin)
        if self.turn is not None:
            self.turn.release()
        return self._keep(trial, self._train(trial, candidate, changes))

    def _decode(self, trial: Trial, changes: Mapping[str, Any]) -> Candidate:
        try:
            candidate = Candidate.of(self.recipe, changes, self.table)
        except RoutespaceError as error:
            raise _pruned(trial, str(error)) from error
        trial.set_user_attr(Attr.KEY, candidate.key)
        trial.set_user_attr(Attr.ARCHITECTURE, candidate.architecture.hash)
        trial.set_user_attr(Attr.PLANNED, candidate.planned)
        if not candidate.feasible:
            for name, share in candidate.violations.items():
                trial.set_constraint(name, share)
            raise _pruned(trial, _over(candidate, self.search.limits.given))
        return candidate

    def _reuse(self, trial: Trial, twin: FrozenTrial) -> tuple[float, ...]:
        """The outcome of the trial that trained the same, or a refusal while it is still training."""
        trial.set_user_attr(Attr.DUPLICATE_OF, twin.number)
        if twin.state != TrialState.COMPLETE:
            raise _pruned(trial, f"trial {twin.number} is training the same")
        for name in (Attr.METRICS, Attr.FOLDER, Attr.OUT):
            if name in twin.user_attrs:
                trial.set_user_attr(name, twin.user_attrs[name])
        for limit, share in twin.constraints.items():
            trial.set_constraint(limit, share)
        return tuple(twin.values)

    def _train(self, trial: Trial, candidate: Candidate, changes: Mapping[str, Any]) -> Mapping[str, float]:
        """Train in the trial's folder; a trial that is queued again goes on in the folder it had."""
        name = trial.user_attrs.get(Attr.FOLDER, f"trials/{trial.number:04d}")
        trial.set_user_attr(Attr.OUT, str(self.out))
        trial.set_user_attr(Attr.FOLDER, name)
        folder = self.out / name
        resume = folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.watch(trial.number, changes, None)
            metrics = self.trainer(
                candidate.recipe,
                folder,
                objectives=self.search.objectives,
                resume=resume,
                progress=lambda step: self.watch(trial.number, changes, step),
            )
            return _checked(metrics, self.search.objectives)
        except Exception as error:
            reason = str(error) if isinstance(error, RoutespaceError) else f"{type(error).__name__}: {error}"
            trial.set_user_attr(Attr.REASON, reason[:MESSAGE_CHARS])
            _write_traceback(folder)
            raise

    def _keep(self, trial: Trial, metrics: Mapping[str, float]) -> tuple[float, ...]:
        trial.set_user_attr(Attr.METRICS, dict(metrics))
        for name, limit in self.search.limits.given.items():
            measured = metrics.get(name, trial.user_attrs[Attr.PLANNED][name])
            trial.set_constraint(name, excess(measured, limit))
        return tuple(metrics[name] for name in self.search.objectives)


def _twin(trial: Trial, key: str) -> FrozenTrial | None:
    """Another trial that trained the same, or is training it."""
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


def _checked(metrics: Mapping[str, float], objectives: tuple[str, ...]) -> dict[str, float]:
    found = {name: float(value) for name, value in metrics.items()}
    for name in objectives:
        if name not in found:
            raise RoutespaceError(f"objective {name}: not measured; the trainer gives {', '.join(found)}")
        if not math.isfinite(found[name]):
            raise RoutespaceError(f"objective {name}: is {found[name]}; the training went astray, try a lower lr")
    return found


def _write_traceback(folder: Path) -> None:
    try:
        (folder / ERROR_FILE).write_text(traceback.format_exc())
    except OSError:  # a full disk may be the very error; its message is with the trial
        return
