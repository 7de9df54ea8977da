"""Giving up trials that fall behind: Optuna's pruners, on what validation tells after each epoch.

make_pruner      the pruner of a study
EpochWatch       hands each epoch of a training to its trial, and ends a trial that the pruner gives up
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.trial import Trial

from routespace.errors import RoutespaceError, SpecError
from routespace.grid.resources import RESOURCES
from routespace.search.objectives import objective
from routespace.train.progress import Progress
from routespace.train.recipe.searching import Pruner

_PRUNERS: Mapping[Pruner, Callable[[], BasePruner]] = {
    "none": NopPruner,
    "median": MedianPruner,
    "hyperband": HyperbandPruner,
}
_OF_AN_EPOCH = {"loss": "val_loss"}  # an objective's key in result.json → in a line of metrics.jsonl


def make_pruner(kind: Pruner, objectives: Sequence[str]) -> BasePruner:
    """The pruner of a study.

    Args:
        kind: Optuna's, with its own settings.
        objectives: names of what the study wants.

    Raises:
        SpecError: a pruner for several objectives, which Optuna has none for, or for a resource, which says
            nothing of a trial that is worth giving up.
    """
    if kind != "none" and (len(objectives) > 1 or objectives[0] in RESOURCES):
        raise SpecError(
            f"search.pruner: {kind!r} compares one number that validation tells after each epoch, not "
            f"{', '.join(objectives)}; give one, as in search.objectives=[accuracy], and bound resources by "
            f"search.limits"
        )
    return _PRUNERS[kind]()


class EpochWatch:
    """Hears the news of one trial's training; only `Progress` of `routespace.train` tells epochs.

    Args:
        trial: Optuna's.
        name: of the objective.
    """

    def __init__(self, trial: Trial, name: str) -> None:
        self._trial, self._name = trial, name
        self._off = isinstance(trial.study.pruner, NopPruner)
        self._epoch = 0  # the last one that was handed on

    def __call__(self, news: Any) -> None:
        """Hand on an epoch that has ended.

        Raises:
            TrialPruned: the trial falls behind, and has epochs left.
            RoutespaceError: validation does not tell the objective.
        """
        if self._off or not isinstance(news, Progress) or not news.metrics:
            return
        epoch = int(news.metrics["epoch"])
        if epoch == self._epoch:
            return
        self._epoch = epoch
        value = self._read(news.metrics)
        self._trial.report(value, epoch)
        if news.stage == "train" and self._trial.should_prune():  # after the last one nothing is left to save
            raise optuna.TrialPruned(
                f"given up: {self._name} is {value:.4g} after epoch {epoch}, and others were better by then"
            )

    def _read(self, line: Mapping[str, Any]) -> float:
        source = objective(self._name).source
        value = line.get(_OF_AN_EPOCH.get(source, source)) if isinstance(source, str) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            told = ", ".join(name for name, each in line.items() if isinstance(each, float))
            raise RoutespaceError(
                f"search.pruner: objective {self._name!r} is no number that an epoch tells ({told}); give one of "
                f"them, or search.pruner=none"
            )
        return float(value)
