"""Choosing a part by what it can do: candidates inside the limits, evaluated with the weights as they are.

    choice = choose_best(artifact, {"macs": 12_000_000})
    choice.architecture, choice.origin, choice.score

It starts from what `proposing.py` finds, the scores of single edges (`removal_scores`) among it. From the best of
these it goes on to their neighbours, round by round. So on validation the choice is never worse than where it
started from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from routespace.deploy.derive import derive
from routespace.deploy.latency.table import LatencyTable
from routespace.deploy.removal import removal_scores
from routespace.errors import BundleError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.train.candidates import evaluate_candidates
from routespace.train.data.skipping import Batches
from routespace.train.tasks.base import Metric
from routespace.train.tasks.kinds import task_of_head
from routespace.workflow.artifacts import Artifact
from routespace.workflow.neighbours import Neighbours
from routespace.workflow.proposing import Origin, candidates_within, fitting

WAYS = ("usage", "kl", "candidates")  # to choose a part
SCORED_IMAGES = 256  # that single edges are scored on
PARENTS = 4  # of each round's neighbours
DROP_ERRORS = 4.0  # standard errors behind the best, after which a drawn part is measured no further


@dataclass(frozen=True)
class Choice:
    """The best of some candidates.

    Attributes:
        architecture: a static part within the limits.
        origin: how it became a candidate: `usage`, `kl`, `staircase`, `sample`, or `search`, by the neighbours of
            others.
        score: the task's metric on validation.
        candidates: how many were evaluated.
        scores: the best score of each origin.
    """

    architecture: Architecture
    origin: Origin
    score: float
    candidates: int
    scores: Mapping[Origin, float]


def choose_best(
    artifact: Artifact,
    limits: Mapping[str, float],
    *,
    table: LatencyTable | None = None,
    count: int = 24,
    rounds: int = 2,
    seed: int = 0,
    least_macs: float = 0,
    every_rate: bool = True,
) -> Choice:
    """The candidate with the best metric on validation; of equals the one with the fewest MACs.

    Args:
        artifact: a run or bundle, with the recipe of its data.
        limits: resource → the most allowed; at least one.
        table: predicts milliseconds, for a limit on `latency_ms`.
        count: the most staircases, drawn parts, and neighbours of a round that are evaluated.
        rounds: of neighbours, at most; one that finds nothing better is the last.
        seed: of the draws.
        least_macs: that a candidate has, where more is to be cut off it.
        every_rate: reach every output that the network reaches; else rates of a pyramid may be dropped.

    Raises:
        BudgetError: nothing fits; the message names the least possible.
        BundleError: no recipe.
        SpecError: no limit.
    """
    if not limits:
        raise SpecError("limits: there is none to choose under; give one, such as macs")
    images = artifact.held_out().val
    whole, usage = artifact.net.architecture, artifact.usage or {}
    # It tells what cannot fit before the work.
    derive(whole, usage, limits=limits, table=table, every_rate=every_rate)
    found = candidates_within(
        artifact,
        limits,
        table=table,
        count=count,
        seed=seed,
        scores=edge_scores(artifact, images),
        least_macs=least_macs,
        every_rate=every_rate,
    )
    task = task_of_head(artifact.net.head, artifact.net.spec)
    race = _Race(artifact, images, task.metric)
    race.run([part for part, origin in found.items() if origin != "sample"])
    race.run([part for part, origin in found.items() if origin == "sample"], drop_errors=DROP_ERRORS)
    near = Neighbours(whole, seed)
    fits = fitting(artifact, limits, table, least_macs, every_rate=every_rate)
    for _ in range(rounds):
        best = race.best
        new = near.of(race.ranked[:PARENTS], count, fits, known=found)
        found |= dict.fromkeys(new, "search")
        race.run(new, drop_errors=DROP_ERRORS)
        if race.best == best:
            break
    of_origin: dict[Origin, float] = {}
    for part in race.ranked:
        of_origin.setdefault(found[part], race.scores[part])
    return Choice(race.best, found[race.best], race.scores[race.best], len(found), of_origin)


def choose_part(
    artifact: Artifact,
    limits: Mapping[str, float],
    way: str,
    *,
    table: LatencyTable | None = None,
    method: str = "milp",
    least_macs: float = 0,
    every_rate: bool = True,
) -> Architecture:
    """A part by one of the `WAYS`; the whole one without any limit. Arguments, errors: as in `extract_bundle`."""
    if not limits or way == "usage":
        return choose(artifact, limits, table=table, method=method, every_rate=every_rate)
    if way == "candidates":
        best = choose_best(artifact, limits, table=table, least_macs=least_macs, every_rate=every_rate)
        return best.architecture
    scores = edge_scores(artifact, artifact.held_out().val)
    whole, usage = artifact.net.architecture, artifact.usage or {}
    return derive(whole, usage, limits=limits, table=table, scores=scores, every_rate=every_rate)


def choose(
    artifact: Artifact,
    limits: Mapping[str, float],
    *,
    table: LatencyTable | None = None,
    method: str = "milp",
    every_rate: bool = True,
) -> Architecture:
    """The static architecture that keeps what the run used most; the whole one without any limit.

    Args:
        artifact: a run or bundle.
        limits: resource → the most allowed.
        table: predicts milliseconds, for a limit on `latency_ms`.
        method: `milp` (proven best) or `threshold`.
        every_rate: as in `choose_best`.

    Raises:
        BudgetError: a limit is below the least possible, which the message names.
        BundleError: a gated network whose usage was not measured.
    """
    architecture = artifact.net.architecture
    if not limits:
        return architecture
    usage = artifact.usage
    if usage is None and not architecture.is_static:
        raise BundleError(f"{artifact.folder}: has no usage.json; train the run to its end, or run it again")
    way = cast(Any, method)
    return derive(architecture, usage or {}, limits=limits, table=table, method=way, every_rate=every_rate)


class _Race:
    """Candidates that have been measured to the end.

    Attributes:
        scores: part → the task's metric on validation.
    """

    def __init__(self, artifact: Artifact, images: Batches, metric: Metric) -> None:
        self._net, self._images, self._metric = artifact.net, images, metric
        self.scores: dict[Architecture, float] = {}

    def run(self, parts: list[Architecture], *, drop_errors: float | None = None) -> None:
        """Measure more; with `drop_errors` next to the best so far, which the hopeless do not reach."""
        if not parts:
            return
        parts = [*parts, *([self.best] if drop_errors is not None and self.scores else [])]
        measured = evaluate_candidates(self._net, parts, self._images, drop_errors=drop_errors)
        for part, numbers in zip(parts, measured, strict=True):
            if not numbers["dropped"]:
                self.scores[part] = numbers[self._metric.name]

    @property
    def ranked(self) -> list[Architecture]:
        """The best first; of equals the one with the fewest MACs."""
        sign = -1 if self._metric.direction == "maximise" else 1
        return sorted(self.scores, key=lambda part: (sign * self.scores[part], architecture_cost(part).macs))

    @property
    def best(self) -> Architecture:
        """The first of them."""
        return self.ranked[0]


def edge_scores(artifact: Artifact, images: Iterable[Any]) -> dict[str, float]:
    """`removal_scores` on the first images of a loader; where nobody taught the gates, of everything computed."""
    some, count = [], 0
    for batch in images:
        if count >= SCORED_IMAGES:
            break
        some.append(batch[0])
        count += len(batch[0])
    recipe = artifact.recipe
    untaught = artifact.usage == {} or (recipe is not None and recipe.train.mode == "sandwich")
    return removal_scores(artifact.net, some, base=artifact.net.architecture.opened() if untaught else None)
