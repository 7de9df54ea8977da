"""Choosing a part by what it can do: candidates inside the limits, evaluated with the weights as they are.

    choice = choose_best(artifact, {"macs": 12_000_000})
    choice.architecture, choice.origin, choice.score

It starts from what usage derives, what the scores of single edges derive (`removal_scores`), plain staircases of
several splits, and parts drawn uniformly just below the limit. From the best of these it goes on to their
neighbours, round by round. So on validation the choice is never worse than what it started from.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

from routespace.deploy.derive import derive
from routespace.deploy.latency.table import LatencyTable, predict
from routespace.deploy.removal import removal_scores
from routespace.errors import BudgetError, BundleError, GridError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.sample import sample_static
from routespace.train.candidates import evaluate_candidates
from routespace.train.data.loaders import make_loaders
from routespace.train.data.skipping import Batches
from routespace.train.macs import budgeted_head
from routespace.train.tasks.base import Metric
from routespace.train.tasks.kinds import task_of_head
from routespace.workflow.artifacts import Artifact
from routespace.workflow.neighbours import Neighbours

Origin = Literal["usage", "kl", "staircase", "sample", "search"]
LOW_FRAC = 0.8  # of the limit on MACs: smaller parts are rarely the best
WAYS = ("usage", "kl", "candidates")  # to choose a part
SCORED_IMAGES = 256  # that single edges are scored on
PARENTS = 4  # of each round's neighbours
DROP_ERRORS = 4.0  # standard errors behind the best, after which a drawn part is measured no further
SPLITS_TRIED = 4000  # priced, of the many that a deep grid has


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
    images = make_loaders(artifact.require_recipe()).val
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
    near = Neighbours(artifact.net.architecture, seed)
    fits = _fitting(artifact, limits, table, least_macs, every_rate=every_rate)
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
    scores = edge_scores(artifact, make_loaders(artifact.require_recipe()).val)
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


def candidates_within(
    artifact: Artifact,
    limits: Mapping[str, float],
    *,
    table: LatencyTable | None = None,
    count: int = 24,
    seed: int = 0,
    scores: Mapping[str, float] | None = None,
    least_macs: float = 0,
    every_rate: bool = True,
) -> dict[Architecture, Origin]:
    """Static parts of a network within limits, each with how it was found, to start from.

    Arguments as in `choose_best`; with `scores` of edges also what they derive.
    """
    whole = artifact.net.architecture
    fits = _fitting(artifact, limits, table, least_macs, every_rate=every_rate)
    found: dict[Architecture, Origin] = {}
    derived_by = partial(derive, whole, artifact.usage or {}, limits=limits, table=table, every_rate=every_rate)
    derived = derived_by()  # it tells when nothing fits
    if artifact.usage is not None or whole.is_static:
        found[derived] = "usage"
    if scores is not None:
        found.setdefault(derived_by(scores=scores), "kl")
    found = {part: origin for part, origin in found.items() if fits(part)}
    most = limits.get("macs", math.inf)
    kinds: tuple[tuple[Origin, Iterator[Architecture]], ...] = (
        ("staircase", _staircases(whole, most, seed)),
        ("sample", _drawn(whole, most, count, seed, every_rate=every_rate)),
    )
    for origin, parts in kinds:
        new = (part for part in parts if part not in found and fits(part))
        found |= dict.fromkeys(itertools.islice(new, count), origin)
    return found or {derived: "sample"}


def _fitting(
    artifact: Artifact,
    limits: Mapping[str, float],
    table: LatencyTable | None,
    least_macs: float,
    *,
    every_rate: bool,
) -> Callable[[Architecture], bool]:
    """Whether a part keeps within the limits, above the least, and has the maps that it shall have."""
    net, needed = artifact.net, set(artifact.net.head.reads(artifact.net.spec))
    head = budgeted_head(net)  # as `derive` counts: heads of dense tasks stand beside a limit

    def fits(part: Architecture) -> bool:
        spent: dict[str, float] = dict(architecture_cost(part).with_head(head).totals)
        if table is not None:
            spent["latency_ms"] = predict(table, part)
        within = all(spent[name] <= most for name, most in limits.items())
        whole = part.outputs == net.architecture.outputs
        readable = whole or (not every_rate and needed.intersection(part.output_rates))
        return within and spent["macs"] >= least_macs and bool(readable)

    return fits


def _staircases(whole: Architecture, most_macs: float, seed: int) -> Iterator[Architecture]:
    """Plain staircases inside a network: those near the limit first, in a random order, then smaller ones."""
    near, far = list[Architecture](), list[tuple[float, int, Architecture]]()
    for number, split in enumerate(_splits(whole.spec.layers, len(whole.spec.rates), random.Random(seed))):
        try:
            part = Architecture.staircase(whole.grid, split)
        except GridError:  # it needs a patch embedding that the grid lacks
            continue
        if not whole.contains(part):
            continue
        macs = architecture_cost(part).macs
        if LOW_FRAC * most_macs <= macs <= most_macs:
            near.append(part)
        elif macs <= most_macs:
            far.append((-macs, number, part))
    yield from near
    yield from (part for _, _, part in sorted(far))


def _splits(layers: int, rates: int, draw: random.Random) -> list[tuple[int, ...]]:
    """Transformer layers of each rate, with a sum of at most `layers`, in a random order; some of very many.

    Where `rates` of `layers + rates` places are bars, the places between two bars are a rate's layers.
    """
    places = range(layers + rates)
    if math.comb(len(places), rates) <= SPLITS_TRIED:
        bars = list(itertools.combinations(places, rates))
        draw.shuffle(bars)
    else:
        bars = [tuple(sorted(draw.sample(places, rates))) for _ in range(SPLITS_TRIED)]
    return [tuple(b - a - 1 for a, b in itertools.pairwise((-1, *chosen))) for chosen in bars]


def _drawn(
    whole: Architecture, most_macs: float, count: int, seed: int, *, every_rate: bool
) -> Iterator[Architecture]:
    """Parts drawn uniformly: just below the limit, and from all that fit where there are none."""
    for low in (LOW_FRAC * most_macs if math.isfinite(most_macs) else 0.0, 0.0):
        try:
            yield from sample_static(
                whole, 4 * count, low_macs=low, high_macs=most_macs, seed=seed, every_rate=every_rate
            )
        except BudgetError:
            continue
        return
