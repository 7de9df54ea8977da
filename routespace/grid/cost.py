"""What a grid, an architecture or a million of them cost: parameters, MACs, bytes and the like, analytically.

    architecture_cost(architecture, …)     one architecture, its parts listed apart; with gates, measured usage
                                           or another image size when given
    measured_cost(architecture, parts, …)  the same from usage measured on images of several sizes
    batch_cost(grid, bits)                 many static architectures at once, exact integers

One multiply-add is one MAC, for one image; bytes count 4 per number. What is counted is told by the table in
`resources`, what one edge costs in `prices`; measured usage has its own file, `usage`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from routespace.checked import checked
from routespace.grid.architecture import Architecture
from routespace.grid.families.base import EdgeCost
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import Edge, RoutingGrid
from routespace.grid.leading import leading_row
from routespace.grid.prices import CostTable, cost_table, gate_cost
from routespace.grid.resources import NO_GATE, RESOURCES, GateCost, analytic
from routespace.grid.usage import ALL_USED, SizedUsage, Usage, check_usage

By = Literal["edge", "layer", "rate", "kind"]
Amounts = Mapping[str, float]  # resource → amount for one image; integers, unless measured usage made them floats


@dataclass(frozen=True, kw_only=True)
class ArchitectureCost:
    """The cost of one architecture for one image, and its parts.

    Attributes:
        totals: resource → amount, gates included when they were given: integers with everything computed; floats,
            the measured average, when usage was given.
        stem, head: image → finest map; coarsest map → classes (zero without classes).
        edges: edge name → its price with every token computed, in the grid's order.
        gates: gate name → price with every decision evaluated; empty unless gates were given. A row's gate is
            named by its transformer edge, a column's by its patch embedding.
        outputs: rate → the norm of that output.
        used: edge name → amounts of the edge and its gate, with usage applied. Summed with stem, outputs and
            head they are the totals.
    """

    totals: Amounts
    stem: EdgeCost
    edges: Mapping[str, EdgeCost]
    gates: Mapping[str, GateCost]
    outputs: Mapping[int, EdgeCost]
    head: EdgeCost
    used: Mapping[str, Amounts] = field(repr=False)

    @property
    def params(self) -> int:
        """Learned numbers."""
        return int(self.totals["params"])

    @property
    def macs(self) -> float:
        """Multiply-adds."""
        return self.totals["macs"]

    @property
    def bytes(self) -> float:
        """Bytes moved."""
        return self.totals["bytes"]

    def with_head(self, head: EdgeCost) -> ArchitectureCost:
        """The same network with another head."""
        swapped = {
            what: amount - RESOURCES[what].whole(self.head) + RESOURCES[what].whole(head)
            for what, amount in self.totals.items()
        }
        return replace(self, totals=swapped, head=head)

    def grouped(self, by: By) -> dict[str | int, dict[str, float]]:
        """Totals of the edges (gates included, usage applied) per edge name, layer, rate or kind."""
        groups: dict[str | int, dict[str, float]] = {}
        for name, amounts in self.used.items():
            edge = Edge.parse(name)
            keys: dict[By, str | int] = {"edge": name, "layer": edge.layer, "rate": edge.rate, "kind": edge.kind}
            group = groups.setdefault(keys[by], dict.fromkeys(amounts, 0))
            for what, amount in amounts.items():
                group[what] += amount
        return groups


@checked
def batch_cost(grid: RoutingGrid, bits: np.ndarray, *, what: str = "macs") -> np.ndarray:
    """Cost of many static architectures of a grid at once; see `CostTable.totals` for shapes and errors."""
    return cost_table(grid).totals(bits, what)


@checked
def architecture_cost(
    architecture: Architecture,
    *,
    gates: GateSpec | None = None,
    usage: Usage | None = None,
    image_size: tuple[int, int] | int | None = None,
) -> ArchitectureCost:
    """The cost of one architecture for one image.

    Args:
        architecture: its open and gated edges are priced alike; usage tells how much of each is computed.
        gates: price the gates of gated edges too; without it an architecture is priced as if static.
        usage: edge name → measured shares; edges not in it count as wholly used.
        image_size: height and width in pixels, or one number, when not the spec's own.

    Raises:
        SpecError: an image size that the grid cannot take, or usage of an edge that the grid lacks, or no shares.
    """
    table = cost_table(architecture.grid, image_size)
    check_usage(usage or {}, architecture.grid.edges)
    edges = {name: table.edges[name] for name in architecture.edges}
    prices: dict[str, GateCost] = {}
    leader = leading_row(architecture) if gates is not None and gates.source == "map" else None
    for name in architecture.gated_edges if gates is not None else ():
        edge = architecture.grid.edges[name]
        if gates is not None and edge.kind != "identity":
            follows = gates.source == "map" and edge.kind == "transformer" and name != leader
            prices[name] = gate_cost(table.spec, edge, gates, follows=follows)
    used = _used(table, edges, prices, usage)
    return ArchitectureCost(
        totals={
            what: table.constant(what, architecture.output_rates) + sum(amounts[what] for amounts in used.values())
            for what in analytic()
        },
        stem=table.stem,
        edges=edges,
        gates=prices,
        outputs={rate: table.outputs[rate] for rate in architecture.output_rates},
        head=table.head,
        used=used,
    )


HeadAt = Callable[[tuple[int, int] | None], EdgeCost]  # (H, W), or None for the grid's own → price of a head


def measured_cost(
    architecture: Architecture,
    parts: Sequence[SizedUsage],
    *,
    gates: GateSpec | None = None,
    head_at: HeadAt | None = None,
    as_fed: bool = False,
) -> ArchitectureCost:
    """The cost of one image, averaged over images whose usage was measured by their sizes.

    It is that of an image of the grid's size: what an image of another size takes is a share of what the whole
    architecture takes at that size, and the share counts, so that a small photograph saves nothing. This is how
    budgets count.

    Args:
        architecture, gates: as for `architecture_cost`.
        parts: what the images of each size used; at least one.
        head_at: the price of a head in place of the grid's own.
        as_fed: what images really took in their own sizes instead.

    Raises:
        SpecError: a size that the grid cannot take, or usage of an edge that the grid lacks.
    """

    def at(size: tuple[int, int] | None, usage: Usage | None) -> ArchitectureCost:
        cost = architecture_cost(architecture, gates=gates, usage=usage, image_size=size)
        return cost if head_at is None else cost.with_head(head_at(size))

    whole, rows = at(None, None), list[tuple[ArchitectureCost, dict[str, float]]]()
    for part in parts:
        factors = dict.fromkeys(whole.totals, float(part.images))
        if part.size is not None and not as_fed:
            there = at(part.size, None).totals
            factors = {what: part.images * whole.totals[what] / there[what] for what in there}
        rows.append((at(part.size, part.usage), factors))
    images = sum(part.images for part in parts)

    def mean(amounts: Callable[[ArchitectureCost], Amounts]) -> Amounts:
        each = [(amounts(cost), factors) for cost, factors in rows]
        return {what: sum(some[what] * factors[what] for some, factors in each) / images for what in whole.totals}

    used = {name: mean(lambda cost, name=name: cost.used[name]) for name in whole.used}  # type: ignore[misc]
    return replace(whole, totals=mean(lambda cost: cost.totals), used=used)


def _used(
    table: CostTable, edges: Mapping[str, EdgeCost], gates: Mapping[str, GateCost], usage: Usage | None
) -> dict[str, Amounts]:
    """Amounts of each edge with its gate; integers stay integers where nothing was measured."""
    names = analytic()
    columns = [table.amounts(what) for what in names]
    used: dict[str, Amounts] = {}
    for name, cost in edges.items():
        gate, shares = gates.get(name, NO_GATE), ALL_USED if usage is None else usage.get(name, ALL_USED)
        if gate is NO_GATE and shares is ALL_USED:
            used[name] = {what: column[name] for what, column in zip(names, columns, strict=True)}
        else:
            used[name] = {what: RESOURCES[what].used(shares, cost, gate) for what in names}
    return used


def bits_of(architecture: Architecture) -> np.ndarray:
    """Which edges an architecture keeps: bool (edges,), in the grid's edge order."""
    return np.fromiter((name in architecture.edges for name in architecture.grid.edges), dtype=np.bool_)
