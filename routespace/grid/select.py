"""The best static architecture under limits, as a mixed-integer program solved to proven optimality.

One binary variable per candidate edge and one variable per node (is it used?). Maximise the sum of the kept
edges' scores, so that

    a row keeps at most one of its two edges, and an edge is kept only between used nodes,
    a used node is entered (or is the stem) and left (or is an output); stem and outputs are used,
    what the kept edges take of each limited resource stays within its limit.

In a grid without cycles the node rules are the same as "every edge lies on a way from the stem to an output".
Solved by HiGHS through scipy.optimize.milp; on a 24×4 grid in some 50 ms, up to a few seconds
where only transformers score and the limit is tight.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from routespace.checked import checked
from routespace.errors import BudgetError, GridError, RoutespaceError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import Edge, Node, RoutingGrid
from routespace.grid.prices import cost_table
from routespace.grid.resources import RESOURCES, MeasuredPrices, joined_limits

SCORE_SCALE = 100.0  # largest score given to HiGHS, which stops within 1e-6 of the best sum
ROW_SCALE = 1e4  # limits are scaled to this: HiGHS's feasibility tolerance is absolute, 1e-6
MAX_CUTS = 100


@dataclass(frozen=True)
class Limit:
    """One limited resource: what each candidate edge adds, what is paid in any case, and the most allowed."""

    name: str
    prices: np.ndarray  # (candidates,), non-negative
    constant: float
    most: float

    def total(self, kept: np.ndarray) -> float:
        """What the kept candidates and the constant part add up to."""
        return float(self.prices[kept].sum()) + self.constant


@checked
def select(
    space: RoutingGrid | Architecture,
    scores: Mapping[str, float],
    *,
    limits: Mapping[str, float] | None = None,
    macs: float | None = None,
    measured: Mapping[str, MeasuredPrices] | None = None,
    require: Iterable[str] = (),
    every_rate: bool = True,
) -> Architecture:
    """The static architecture with the greatest sum of scores under the limits.

    Args:
        space: a grid, or an architecture of it: only its edges, open or gated, are candidates.
        scores: edge name → worth of keeping it, of either sign; edges not named are worth 0.
        limits: resource (`macs`, `params`, …: the table in `grid/resources.py`) → the most allowed, for the whole
            static network with stem, outputs and head.
        macs: the same as `limits={"macs": …}`.
        measured: resource → its prices, for each limited one that does not follow from the grid: for `latency_ms`
            `table_prices` of a latency table.
        require: names of edges that must be kept.
        every_rate: reach every output of the space; else some of a pyramid's may be left out (what stands on an
            output is counted among the limits all the same).

    Returns:
        A static Architecture; no other has a greater sum (within 1e-8 of the largest score).

    Raises:
        BudgetError: no architecture satisfies the limits; the message names the least possible.
        SpecError: unknown edges or resources, scores or limits that are no numbers, or prices that do not fit.
        GridError: the required edges cannot be kept together.
    """
    grid = space.grid if isinstance(space, Architecture) else space
    names = list(space.edges)
    candidates = [grid.edges[name] for name in names]
    program = _Program(grid, candidates, _required(names, require), outputs=space.outputs, every_rate=every_rate)
    wanted = joined_limits(limits, macs)
    found = [_limit(space, names, name, most=most, measured=measured or {}) for name, most in wanted.items()]
    kept = program.best(_scores(grid, names, scores), found)
    if kept is None:
        raise _explain(program, found)
    return Architecture(grid.spec, {names[place]: "open" for place in np.flatnonzero(kept)})


class _Program:
    """The rules of a legal static architecture over some candidate edges, as a sparse matrix.

    Variables: one per candidate edge (binary), then one per node (continuous in 0…1; binary edges make it so).
    """

    def __init__(
        self,
        grid: RoutingGrid,
        edges: Sequence[Edge],
        required: np.ndarray,
        *,
        outputs: Sequence[Node],
        every_rate: bool,
    ) -> None:
        self.size = len(edges)
        self._node = {node: self.size + i for i, node in enumerate(grid.nodes)}
        self._lower = np.concatenate([required.astype(float), np.zeros(len(self._node))])
        for node in (grid.stem, *(outputs if every_rate else ())):
            self._lower[self._node[node]] = 1
        self._entries: list[tuple[int, int, float]] = []
        self._rows = 0
        self._edge_rules(edges)
        self._node_rules(grid, edges)
        self._cuts(grid, edges, every_rate=every_rate)

    def _rule(self, terms: Iterable[tuple[int, float]]) -> None:
        """Add one row: the terms' sum is at most 0."""
        self._entries += [(self._rows, column, value) for column, value in terms]
        self._rows += 1

    def _edge_rules(self, edges: Sequence[Edge]) -> None:
        places: dict[tuple[Any, ...], list[int]] = {}
        for place, edge in enumerate(edges):
            places.setdefault((edge.source, edge.target), []).append(place)
        for (source, target), parallel in places.items():
            for node in (source, target):  # transformer + identity <= node: the row rule and the node rule at once
                self._rule([*((place, 1.0) for place in parallel), (self._node[node], -1.0)])

    def _node_rules(self, grid: RoutingGrid, edges: Sequence[Edge]) -> None:
        entering: dict[tuple[int, int], list[int]] = {node: [] for node in grid.nodes}
        leaving: dict[tuple[int, int], list[int]] = {node: [] for node in grid.nodes}
        for place, edge in enumerate(edges):
            entering[edge.target].append(place)
            leaving[edge.source].append(place)
        for node, column in self._node.items():
            if node != grid.stem:
                self._rule([(column, 1.0), *((place, -1.0) for place in entering[node])])
            if node not in grid.outputs:
                self._rule([(column, 1.0), *((place, -1.0) for place in leaving[node])])

    def _cuts(self, grid: RoutingGrid, edges: Sequence[Edge], *, every_rate: bool) -> None:
        """Every way to an output crosses each layer, and every one to the coarsest output leaves each rate.

        The other rules imply this for whole edges, but not for the fractions that the solver starts from: saying
        so makes hard cases about three times faster.
        """
        across: dict[tuple[str, int], list[int]] = {}
        for place, edge in enumerate(edges):
            cut = ("rate", edge.rate) if edge.kind == "patch_embed" else ("layer", edge.layer)
            across.setdefault(cut, []).append(place)
        for (what, _), places in across.items():
            if what == "rate" and not every_rate:
                continue  # the coarsest output may be left out
            self._rule([(self._node[grid.stem], 1.0), *((place, -1.0) for place in places)])

    def best(self, worth: np.ndarray, limits: Sequence[Limit]) -> np.ndarray | None:
        """The kept candidates, bool (candidates,), of the greatest worth; None when nothing is legal.

        The solver's tolerance could let a limit be passed by a hair. Then that set of edges is forbidden (all
        prices being non-negative, everything that holds it is too dear as well) and the rest is solved again.
        """
        cuts: list[np.ndarray] = []
        for _ in range(MAX_CUTS):
            kept = self._solve(worth, limits, cuts)
            if kept is None or all(limit.total(kept) <= limit.most for limit in limits):
                return kept
            cuts.append(kept)
        raise BudgetError("limits: they cut too finely for the solver; move one by a millionth and try again")

    def _solve(self, worth: np.ndarray, limits: Sequence[Limit], cuts: Sequence[np.ndarray]) -> np.ndarray | None:
        # Imported late: scipy.optimize takes a third of a second, and most commands select nothing.
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        width = len(self._lower)
        row, column, value = (np.array(part) for part in zip(*self._entries, strict=True))
        rules = csr_array((value, (row, column)), shape=(self._rows, width))
        constraints = [LinearConstraint(rules, ub=0)]
        for limit in limits:
            if limit.total(np.ones(self.size, dtype=np.bool_)) <= limit.most:
                continue  # everything fits
            scale = ROW_SCALE / max(limit.most - limit.constant, limit.prices.max(), 1e-9)
            dense = np.concatenate([limit.prices * scale, np.zeros(width - self.size)])
            constraints.append(LinearConstraint(dense[None], ub=(limit.most - limit.constant) * scale))
        for kept in cuts:
            dense = np.concatenate([kept.astype(float), np.zeros(width - self.size)])
            constraints.append(LinearConstraint(dense[None], ub=kept.sum() - 1))
        top = float(np.abs(worth).max())
        objective = np.concatenate([-worth * (SCORE_SCALE / top if top else 0), np.zeros(width - self.size)])
        result: Any = milp(
            objective,
            integrality=np.concatenate([np.ones(self.size), np.zeros(width - self.size)]),
            bounds=Bounds(self._lower, np.ones(width)),
            constraints=constraints,
            options={"mip_rel_gap": 0},
        )
        if result.status == 2:  # infeasible
            return None
        if result.x is None:
            raise RoutespaceError(f"select: the solver stopped ({result.message}); report the limits and scores")
        chosen: np.ndarray = np.rint(result.x[: self.size]).astype(np.bool_)
        return chosen


def _limit(
    space: RoutingGrid | Architecture,
    names: Sequence[str],
    name: str,
    *,
    most: float,
    measured: Mapping[str, MeasuredPrices],
) -> Limit:
    """The limit on one resource, with the prices of the candidates `names`."""
    grid = space.grid if isinstance(space, Architecture) else space
    if name in measured:
        return Limit(
            name, _measured(grid, names, measured[name].edges, what=name), _constant(name, measured), most
        )
    if RESOURCES[name].terms is None:
        raise SpecError(
            f"limits.{name}: it is measured, not counted; give its prices per edge in measured[{name!r}]"
        )
    table = cost_table(grid)
    amounts = table.amounts(name)
    constant = table.constant(name, [rate for _, rate in space.outputs])
    return Limit(name, np.array([amounts[edge] for edge in names], dtype=float), constant, most)


def _constant(name: str, measured: Mapping[str, MeasuredPrices]) -> float:
    constant = measured[name].constant
    if not 0 <= constant < math.inf:
        raise SpecError(f"measured.{name}.constant: {constant!r} is not allowed; give a finite number, 0 or more")
    return constant


def _measured(grid: RoutingGrid, names: Sequence[str], edges: Mapping[str, float], *, what: str) -> np.ndarray:
    """(candidates,) prices of a measured resource, checked."""
    unknown = [name for name in edges if name not in grid.edges]
    if unknown:
        raise SpecError(f"measured.{what}: {unknown[0]!r:.60} is not an edge of this grid; measure this grid")
    prices = []
    for name in names:
        price = edges.get(name, 0.0 if grid.edges[name].kind == "identity" else math.nan)
        if not 0 <= price < math.inf:
            given = "missing" if name not in edges else f"{price!r}"
            raise SpecError(
                f"measured.{what}.{name}: {given}; give {RESOURCES[what].unit}, 0 or more, for every edge"
            )
        prices.append(price)
    return np.array(prices)


def _required(names: Sequence[str], require: Iterable[str]) -> np.ndarray:
    wanted = set(require)
    for name in wanted - set(names):
        raise SpecError(f"require: {name!r:.60} is no candidate; there are {len(names)}, such as {names[0]}")
    return np.array([name in wanted for name in names])


def _scores(grid: RoutingGrid, names: Sequence[str], scores: Mapping[str, float]) -> np.ndarray:
    for name, score in scores.items():
        if name not in grid.edges:
            raise SpecError(f"scores: {name!r:.60} is not an edge of the grid, such as {names[0]}")
        if not isinstance(score, Real) or not abs(score) <= sys.float_info.max:
            raise SpecError(f"scores.{name}: {score!r} is not allowed; give a finite number")
    return np.array([float(scores.get(name, 0.0)) for name in names])


def _explain(program: _Program, limits: Sequence[Limit]) -> RoutespaceError:
    """Why nothing is legal: a limit below the least possible alone, limits at odds, or the required edges."""
    for i, limit in enumerate(limits):
        alone = program.best(-limit.prices, [])
        if alone is None:
            return GridError("require: these edges cannot be kept together; a row takes one of its two edges")
        if limit.total(alone) > limit.most:
            return BudgetError(_least(limit, limit.total(alone), "possible here"))
        together = program.best(-limit.prices, limits[:i])
        assert together is not None  # the earlier limits were found to hold together
        if limit.total(together) > limit.most:
            others = " and ".join(other.name for other in limits[:i])
            return BudgetError(_least(limit, limit.total(together), f"possible under the limit on {others}"))
    return GridError("require: these edges cannot be kept together; a row takes one of its two edges")


def _least(limit: Limit, least: float, where: str) -> str:
    unit = RESOURCES[limit.name].unit
    whole = all(float(price).is_integer() for price in limit.prices)
    given, needed = (f"{number:.0f}" if whole else f"{number:.6g}" for number in (limit.most, least))
    return f"{limit.name}: {given} {unit} is not enough; the least {where} is {needed} {unit}"
