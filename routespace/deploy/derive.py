"""From measured usage and a limit to a static architecture.

    derive(architecture, usage, macs=12_000_000)     the proven best under the limit (MILP)
    derive(…, limits={"latency_ms": 4.0, "params": 5e6}, table=table)
                                                     under limits on any resources (grid/resources.py)
    derive(…, method="threshold")                    keep what is used at least t, with the lowest t that fits

A static network computes an edge for every token or for none, the supernet for a share of its tokens. Dropping a
transformer edge changes the tokens that used it, so its score is its usage times its blocks. Keeping a patch
embedding changes those that did not take it: a foreign map is added to theirs. So it gains its usage and pays
the rest, and a rarely used one stays out even where the limit has room for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, get_args

from routespace.checked import checked
from routespace.deploy.latency.table import LatencyTable, table_prices
from routespace.errors import BudgetError, GridError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.graph import Edge
from routespace.grid.resources import joined_limits
from routespace.grid.select import select
from routespace.grid.usage import ALL_USED, Usage, check_usage

Method = Literal["milp", "threshold"]
# An identity is chosen over nothing only to break ties: far below one block's usage, far above the solver's
# tolerance of 1e-10.
IDENTITY_WORTH = 1e-4


@checked
def derive(
    architecture: Architecture,
    usage: Usage,
    *,
    limits: Mapping[str, float] | None = None,
    macs: float | None = None,
    table: LatencyTable | None = None,
    scores: Mapping[str, float] | None = None,
    method: Method = "milp",
    every_rate: bool = True,
) -> Architecture:
    """A static architecture inside `architecture` that keeps what is used most, within the limits.

    Args:
        architecture: the supernet's; only its edges are candidates.
        usage: edge name → measured shares; an edge that is not named counts as wholly used.
        limits: resource (`macs`, `params`, `bytes`, `latency_ms`, …: the table in `grid/resources.py`) → the most
            allowed for one image of the spec's size, with stem, outputs and head; `latency_ms` for one forward
            pass of the table's batch. There each patch embedding is charged with adding its map to a row, so the
            prediction is at most the limit, and an architecture a hair below it may be passed over.
        macs: the same as `limits={"macs": …}`.
        table: measured by `profile` for this grid; for a limit on `latency_ms`.
        scores: edge name → worth of keeping it, instead of `usage_scores` (milp only).
        every_rate: reach every output that `architecture` reaches; else rates of a pyramid may be dropped.
        method: `milp`, the greatest sum of scores, proven; or `threshold`, one t for all edges, for a limit on
            MACs alone.

    Returns:
        A static architecture that takes at most what the limits allow, by analytic cost and predicted time.

    Raises:
        BudgetError: nothing fits; the message names the least possible.
        SpecError: usage or scores of edges that the grid lacks, an unknown method or resource, or no limit.
        GridError: the table is of another grid.
    """
    check_usage(usage, architecture.grid.edges)
    if method not in get_args(Method):
        raise SpecError(f"method: {method!r:.60} is not known; allowed: {', '.join(get_args(Method))}")
    wanted = joined_limits(limits, macs)
    if not wanted:
        raise SpecError("limits: there is none; give macs=12_000_000, or limits by the name of a resource")
    if ("latency_ms" in wanted) != (table is not None):
        raise SpecError("latency_ms: a limit and a table go together; give both, or neither")
    if method == "threshold":
        if scores is not None or set(wanted) != {"macs"}:
            raise SpecError("method: 'threshold' goes by usage under macs; give macs alone, or use 'milp'")
        return _by_threshold(architecture, usage, wanted["macs"], every_rate=every_rate)
    return select(
        architecture,
        usage_scores(architecture, usage) if scores is None else scores,
        limits=wanted,
        measured={} if table is None else {"latency_ms": table_prices(table, architecture.grid)},
        every_rate=every_rate,
    )


def usage_scores(architecture: Architecture, usage: Usage) -> dict[str, float]:
    """What keeping each edge is worth, from usage; the reasons are at the top of the file.

    transformer: blocks · u, with u the share of tokens · patch_embed: 2u − 1 · identity: almost nothing.
    """
    scores = {}
    for name in architecture.edges:
        edge = architecture.grid.edges[name]
        if edge.kind == "identity":
            row = usage.get(str(edge.partner), ALL_USED)
            scores[name] = IDENTITY_WORTH * (row.asked - row.tokens)
        else:
            share = float(usage.get(name, ALL_USED).tokens)
            depth = architecture.spec.depth(edge.layer) if edge.kind == "transformer" else 1
            scores[name] = depth * share if edge.kind == "transformer" else 2 * share - 1
    return scores


def _by_threshold(architecture: Architecture, usage: Usage, macs: float, *, every_rate: bool) -> Architecture:
    """The lowest threshold that fits; where no output would be left, that of the patch embeddings stops rising."""
    levels = [*sorted({_share(edge, usage) for edge in _deciding(architecture)}), float("inf")]

    def fits(found: Architecture | None) -> bool:
        return found is None or architecture_cost(found).macs <= macs

    above = partial(_above, architecture, usage, every_rate=every_rate)
    # Fewer edges are kept as the threshold rises, so MACs fall and a lost output stays lost: bisection is exact.
    low = _first(levels, lambda t: fits(above(rows=t, columns=t)))
    found = above(rows=low, columns=low)
    if found is None:
        lost = _first(levels, lambda t: above(rows=t, columns=t) is None)
        columns = levels[levels.index(lost) - 1]
        low = _first(levels, lambda t: fits(above(rows=t, columns=columns)))
        found = above(rows=low, columns=columns)
        assert found is not None  # the rows' threshold never cuts a path: identities take over
    least = architecture_cost(found).macs
    if least > macs:
        # It raises when nothing fits, and names the least possible.
        select(architecture, {}, macs=macs, every_rate=every_rate)
        raise BudgetError(
            f"macs: {macs:.0f} MACs is not enough for the threshold method, which ends at {least} MACs here; "
            f"use method 'milp', or a higher limit"
        )
    return found


def _first(levels: list[float], true_from: Callable[[float], bool]) -> float:
    """The first level for which a predicate holds that, once true, stays true; the last when it never does."""
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        if true_from(levels[middle]):
            high = middle
        else:
            low = middle + 1
    return levels[low]


def _deciding(architecture: Architecture) -> list[Edge]:
    edges = (architecture.grid.edges[name] for name in architecture.edges)
    return [edge for edge in edges if edge.kind != "identity"]


def _share(edge: Edge, usage: Usage) -> float:
    """What is compared with the threshold: tokens of a transformer edge, images of a patch embedding."""
    shares = usage.get(edge.name, ALL_USED)
    return float(shares.images if edge.kind == "patch_embed" else shares.tokens)


def _above(
    architecture: Architecture, usage: Usage, *, rows: float, columns: float, every_rate: bool
) -> Architecture | None:
    """The static architecture of the edges used at least so much; None when an output is missing."""
    names = []
    for edge in _deciding(architecture):
        if edge.kind == "patch_embed":
            names += [edge.name] if _share(edge, usage) >= columns else []
        else:
            gated = edge.partner in architecture.edges
            names.append(edge.name if not gated or _share(edge, usage) >= rows else str(edge.partner))
    alone = [name for name in architecture.open_edges if architecture.grid.edges[name].kind == "identity"]
    try:
        found = Architecture.static(architecture.spec, names + alone)
    except GridError:
        return None
    return found if not every_rate or found.outputs == architecture.outputs else None
