"""Choosing a part by what it can do: candidates inside the limits, evaluated with the weights as they are.

    choice = choose_best(artifact, {"macs": 12_000_000})
    choice.architecture, choice.origin, choice.score

Among the candidates are what usage derives, plain staircases of several splits, and parts drawn uniformly just
below the limit. So on validation the choice is never worse than any of these.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from routespace.deploy.derive import derive
from routespace.deploy.latency.table import LatencyTable, predict
from routespace.errors import BudgetError, GridError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.sample import sample_static
from routespace.nn.task_net import head_cost_of
from routespace.train.candidates import evaluate_candidates
from routespace.train.data.loaders import make_loaders
from routespace.train.tasks.kinds import task_of_head
from routespace.workflow.artifacts import Artifact

Origin = Literal["usage", "staircase", "sample"]
LOW_FRAC = 0.8  # of the limit on MACs: smaller parts are rarely the best
SPLITS_TRIED = 4000  # priced, of the many that a deep grid has


@dataclass(frozen=True)
class Choice:
    """The best of some candidates.

    Attributes:
        architecture: a static part within the limits.
        origin: how it became a candidate: `usage`, `staircase` or `sample`.
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
    seed: int = 0,
) -> Choice:
    """The candidate with the best metric on validation; of equals the one with the fewest MACs.

    Args:
        artifact: a run or bundle, with the recipe of its data.
        limits: resource → the most allowed; at least one.
        table: predicts milliseconds, for a limit on `latency_ms`.
        count: the most staircases, and the most drawn parts, that are evaluated.
        seed: of the draws.

    Raises:
        BudgetError: nothing fits; the message names the least possible.
        BundleError: no recipe.
        SpecError: no limit.
    """
    if not limits:
        raise SpecError("limits: there is none to choose under; give one, such as macs")
    found = candidates_within(artifact, limits, table=table, count=count, seed=seed)
    task = task_of_head(artifact.net.head, artifact.net.spec)
    name, sign = task.metric.name, 1 if task.metric.direction == "maximise" else -1
    parts = list(found)
    images = make_loaders(artifact.require_recipe()).val
    scores = [part[name] for part in evaluate_candidates(artifact.net, parts, images)]
    ranked = sorted(range(len(parts)), key=lambda i: (-sign * scores[i], architecture_cost(parts[i]).macs))
    of_origin: dict[Origin, float] = {}
    for place in ranked:
        of_origin.setdefault(found[parts[place]], scores[place])
    best = parts[ranked[0]]
    return Choice(best, found[best], scores[ranked[0]], len(parts), of_origin)


def candidates_within(
    artifact: Artifact,
    limits: Mapping[str, float],
    *,
    table: LatencyTable | None = None,
    count: int = 24,
    seed: int = 0,
) -> dict[Architecture, Origin]:
    """Static parts of a network within limits, each with how it was found; arguments as in `choose_best`."""
    whole, head = artifact.net.architecture, head_cost_of(artifact.net)

    def fits(part: Architecture) -> bool:
        spent: dict[str, float] = dict(architecture_cost(part).with_head(head).totals)
        if table is not None:
            spent["latency_ms"] = predict(table, part)
        return all(spent[name] <= most for name, most in limits.items())

    found: dict[Architecture, Origin] = {}
    derived = derive(whole, artifact.usage or {}, limits=limits, table=table)  # it tells when nothing fits
    if artifact.usage is not None or whole.is_static:
        found[derived] = "usage"
    most = limits.get("macs", math.inf)
    kinds: tuple[tuple[Origin, Iterator[Architecture]], ...] = (
        ("staircase", _staircases(whole, most, seed)),
        ("sample", _drawn(whole, most, count, seed)),
    )
    for origin, parts in kinds:
        new = (part for part in parts if part not in found and fits(part))
        found |= dict.fromkeys(itertools.islice(new, count), origin)
    return found or {derived: "sample"}


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


def _drawn(whole: Architecture, most_macs: float, count: int, seed: int) -> Iterator[Architecture]:
    """Parts drawn uniformly: just below the limit, and from all that fit where there are none."""
    for low in (LOW_FRAC * most_macs if math.isfinite(most_macs) else 0.0, 0.0):
        try:
            yield from sample_static(whole, 4 * count, low_macs=low, high_macs=most_macs, seed=seed)
        except BudgetError:
            continue
        return
