"""The sampler: Optuna's, asked again when it draws what cannot be trained or has been trained.

Of 100 trials over 243 points TPE leaves 38 to 52 different ones; a training is worth far more than a draw.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from routespace.errors import RoutespaceError
from routespace.search.problem import Problem
from routespace.search.space import rounded
from routespace.train.recipe.searching import Sampler

DRAWS = 32  # of Optuna's sampler for one trial; each takes a few milliseconds for each field
LISTED = 512  # points of a space that is small enough to be searched through for what is left …
FEW_DRAWS = 8  # … after so many draws


class Rank(IntEnum):
    """How much a point is worth trying."""

    GOOD = 0  # can be trained and never was
    ILLEGAL = 1  # not tried, but its values do not fit together or pass a limit
    KNOWN = 2  # tried before, or trains what another point trains


class Points:
    """The points of a space as the study sees them; each is decoded once.

    Args:
        problem: what is searched.
    """

    def __init__(self, problem: Problem[Any]) -> None:
        self.space = problem.space
        self._decode = problem.decode
        self._keys: dict[str, str | None] = {}

    def key(self, params: Mapping[str, Any]) -> str | None:
        """The content key of a point; None when it is illegal."""
        text = _text(params)
        if text not in self._keys:
            try:
                candidate = self._decode(self.space.decode(params))
                self._keys[text] = candidate.key if candidate.feasible else None
            except RoutespaceError:
                self._keys[text] = None
        return self._keys[text]

    def ranking(self, trials: Sequence[FrozenTrial]) -> Callable[[Mapping[str, Any]], Rank]:
        """The rank of any point, given the study's trials."""
        lost = retried(trials)
        tried = [t for t in trials if t.state != TrialState.WAITING and t.number not in lost]
        known = {_text(t.params) for t in tried}
        keys = {t.user_attrs["key"] for t in tried if "key" in t.user_attrs}

        def rank(params: Mapping[str, Any]) -> Rank:
            if _text(params) in known:
                return Rank.KNOWN
            key = self.key(params)
            return Rank.ILLEGAL if key is None else Rank.KNOWN if key in keys else Rank.GOOD

        return rank

    def left(self, trials: Sequence[FrozenTrial]) -> bool:
        """False when every point of a small space has been tried."""
        if self.space.size > LISTED:
            return True
        rank = self.ranking(trials)
        return any(rank(point) != Rank.KNOWN for point in self.space.points())


class DistinctSampler(BaseSampler):
    """Draws with another sampler until a point is worth trying; in a small space it finds the last one.

    Args:
        inner: Optuna's sampler.
        points: tells what a point is worth.
        known: the study's trials: a pruner may show its sampler some of them only.
        seed: of the choice among what is left.
    """

    def __init__(self, inner: BaseSampler, points: Points, known: Sequence[FrozenTrial], seed: int) -> None:
        self._inner = inner
        self._points = points
        self._known = known
        self._random = random.Random(seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space: all fields are drawn together, so that the point can be judged."""
        return dict(self._points.space.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The first GOOD point, or the best of those drawn."""
        rank = self._points.ranking([t for t in self._known if t.number != trial.number])
        best: tuple[Rank, dict[str, Any]] | None = None
        listed = self._points.space.size <= LISTED
        for _ in range(FEW_DRAWS if listed else DRAWS):
            point = self._draw(study, trial, search_space)
            if best is None or rank(point) < best[0]:
                best = rank(point), point
            if best[0] == Rank.GOOD:
                return best[1]
        assert best is not None
        if listed:
            rest = list(self._points.space.points())
            self._random.shuffle(rest)
            best = min((best, *((rank(point), point) for point in rest)), key=lambda ranked: ranked[0])
        return best[1]

    def _draw(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        inner = self._inner
        drawn = inner.sample_relative(study, trial, inner.infer_relative_search_space(study, trial))
        return {
            name: drawn[name] if name in drawn else inner.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
        }

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """For parameters that were not drawn together; there are none in a routespace study."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Optuna's hook."""
        self._inner.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Optuna's hook."""
        self._inner.after_trial(study, trial, state, values)


def make_sampler(
    kind: Sampler, points: Points, known: Sequence[FrozenTrial], *, seed: int, number: int, trials: int
) -> DistinctSampler:
    """The sampler of one trial.

    Args:
        kind: Optuna's sampler.
        points: the space and what was tried in it.
        known: the study's trials so far.
        seed: of the study.
        number: of the trial: a study that is resumed goes on as if it had not stopped, and two workers differ.
        trials: how many the study wants; NSGA-II's generations are a quarter of that (its own 50 would make
            short studies random).
    """
    own = int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")
    if kind == "nsga2":
        inner: BaseSampler = NSGAIISampler(population_size=min(50, max(4, trials // 4)), seed=own)
    else:
        inner = TPESampler(seed=own) if kind == "tpe" else RandomSampler(seed=own)
    return DistinctSampler(inner, points, known, own)


def retried(trials: Sequence[FrozenTrial]) -> set[int]:
    """Numbers of the trials that were lost (killed, interrupted) and queued again under another number."""
    return {number for trial in trials for number in trial.system_attrs.get("retry_history", ())}


def _text(params: Mapping[str, Any]) -> str:
    """One text for one point: a float that was reached by steps may differ in its last digit."""
    return json.dumps({name: rounded(value) for name, value in params.items()}, sort_keys=True)
