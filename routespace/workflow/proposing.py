"""What a choice starts from: static parts of a network within limits, each with how it was found.

They are what usage derives, what the scores of single edges derive, plain staircases of several splits, and parts
drawn uniformly just below the limit.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Literal

from routespace.deploy.derive import derive
from routespace.deploy.latency.table import LatencyTable, predict
from routespace.errors import BudgetError, GridError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.sample import sample_static
from routespace.train.macs import budgeted_head
from routespace.workflow.artifacts import Artifact

Origin = Literal["usage", "kl", "staircase", "sample", "search"]
LOW_FRAC = 0.8  # of the limit on MACs: smaller parts are rarely the best
SPLITS_TRIED = 4000  # priced, of the many that a deep grid has


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

    Args:
        artifact: a run or bundle.
        limits: resource → the most allowed.
        table: predicts milliseconds, for a limit on `latency_ms`.
        count: the most staircases, and the most drawn parts.
        seed: of the draws.
        scores: edge name → what is lost without it; with them also what they derive.
        least_macs: that a candidate has.
        every_rate: reach every output that the network reaches; else rates of a pyramid may be dropped.

    Raises:
        BudgetError: nothing fits; the message names the least possible.
    """
    whole = artifact.net.architecture
    fits = fitting(artifact, limits, table, least_macs, every_rate=every_rate)
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


def fitting(
    artifact: Artifact,
    limits: Mapping[str, float],
    table: LatencyTable | None,
    least_macs: float,
    *,
    every_rate: bool,
) -> Callable[[Architecture], bool]:
    """Whether a part keeps within the limits, above the least, and has the maps that it shall have.

    Arguments are those of `candidates_within`.
    """
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
