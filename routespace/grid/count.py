"""How many paths and architectures a grid holds, and the cheapest and dearest of them, without listing any.

A static architecture is a set of choices that is legal node by node: a node that something enters must be left
again (unless it is an output), a node that nothing enters is left by nothing, and every output is entered. In a
graph without cycles these local rules are the same as "every edge lies on a way from the stem to an output". So
one sweep over the nodes in execution order is enough, and the only memory it needs is which nodes ahead have
been entered: a bitmask with one bit per rate (the row's next node) and one for the patch embedding just taken.
Exact Python integers throughout; time grows with nodes · 2^rates.

An architecture may leave outputs of a pyramid out; unless `every_rate` is False, those that do are not meant here.

`histogram` builds on this sweep: exact cost histograms and uniform samples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from routespace.checked import checked
from routespace.errors import BudgetError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import Node, RoutingGrid
from routespace.grid.prices import cost_table

MEGA = 1e6


class Move(NamedTuple):
    """One way to leave a node: the mask afterwards, and the edges taken, by their place in the grid's order."""

    mask: int
    row: int | None
    column: int | None

    @property
    def edges(self) -> tuple[int, ...]:
        """The edges taken: none, one or two."""
        return tuple(edge for edge in (self.row, self.column) if edge is not None)


class SweepStep(NamedTuple):
    """One node of the sweep and the places of its outgoing edges in the grid's edge order.

    Attributes:
        bit: the mask's bit of this node's rate.
        carry: the mask's bit for "the patch embedding into this node was taken"; the same at every step.
        rows: transformer and identity, or nothing in the last column.
        column: the patch embedding, if there is one.
        is_output: the node need not be left.
        must: it must be entered.
    """

    bit: int
    carry: int
    rows: tuple[int, ...]
    column: int | None
    is_output: bool
    must: bool

    def moves(self, mask: int) -> list[Move]:
        """Every legal way to leave this node when the nodes in `mask` have been entered."""
        entered = mask & (self.bit | self.carry)
        rest = mask & ~(self.bit | self.carry)
        if not entered:
            return [] if self.must else [Move(rest, None, None)]
        ways = [Move(rest | self.bit, row, None) for row in self.rows]
        if self.column is not None:
            ways += [Move(way.mask | self.carry, way.row, self.column) for way in ways]
            ways.append(Move(rest | self.carry, None, self.column))
        return [*ways, Move(rest, None, None)] if self.is_output else ways


GridOrPart = RoutingGrid | Architecture


def grid_in(space: GridOrPart) -> RoutingGrid:
    """The grid of a space: itself, or that of an architecture."""
    return space.grid if isinstance(space, Architecture) else space


def steps(space: GridOrPart, *, every_rate: bool = True) -> list[SweepStep]:
    """The sweep over a grid: its nodes in execution order. It starts with mask 1 (the stem) and ends with 0.

    Of an architecture only its own edges are taken, open or gated; their places are those of its grid's order.
    Unless `every_rate`, some of the space's outputs may be left out; by the local rules one is always entered.
    """
    grid = grid_in(space)
    leaving: dict[Node, dict[str, int]] = {node: {} for node in grid.nodes}
    for place, edge in enumerate(grid.edges.values()):
        if edge.name in space.edges:
            leaving[edge.source][edge.kind] = place
    outputs, carry = set(space.outputs), 1 << len(grid.spec.rates)
    return [
        SweepStep(
            bit=1 << grid.spec.index(node[1]),
            carry=carry,
            rows=tuple(out[kind] for kind in ("transformer", "identity") if kind in out),
            column=out.get("patch_embed"),
            is_output=node in outputs,
            must=every_rate and node in outputs,
        )
        for node, out in leaving.items()
    ]


@checked
def count_static(grid: RoutingGrid, *, every_rate: bool = True) -> int:
    """Number of static architectures: each row absent, transformer or identity; each embedding absent or open."""
    numbers = {1: 1}
    for step in steps(grid, every_rate=every_rate):
        after: dict[int, int] = defaultdict(int)
        for mask, number in numbers.items():
            for move in step.moves(mask):
                after[move.mask] += number
        numbers = after
    return numbers.get(0, 0)


def count_paths(grid: RoutingGrid) -> int:
    """Number of single paths from the stem to any output node."""
    ways: dict[Node, int] = defaultdict(int, {grid.stem: 1})
    for edge in grid.edges.values():
        ways[edge.target] += ways[edge.source]
    return sum(ways[node] for node in grid.outputs)


def path_range(grid: RoutingGrid) -> tuple[int, int]:
    """MACs of the cheapest and the dearest single path, with the stem, outputs and head that every path pays."""
    least, most = {grid.stem: 0}, {grid.stem: 0}
    for edge, price in zip(grid.edges.values(), edge_macs(grid), strict=True):
        low, high = least[edge.source] + price, most[edge.source] + price
        least[edge.target] = min(least.get(edge.target, low), low)
        most[edge.target] = max(most.get(edge.target, high), high)
    constant = constant_macs(grid)
    return constant + min(least[n] for n in grid.outputs), constant + max(most[n] for n in grid.outputs)


def edge_macs(grid: RoutingGrid) -> list[int]:
    """MACs of every edge, in the grid's order; raises GridError when their sum passes 2^63."""
    macs: list[int] = cost_table(grid).prices("macs").tolist()
    return macs


def constant_macs(space: GridOrPart) -> int:
    """MACs that every architecture pays: stem, the space's outputs and head."""
    return int(cost_table(grid_in(space)).constant("macs", [rate for _, rate in space.outputs]))


def least_sum(space: GridOrPart, prices: Sequence[float], *, every_rate: bool = True) -> tuple[float, list[int]]:
    """The static architecture with the least sum of edge prices: the sum and its edges' places in the order.

    Args:
        space: a grid, or an architecture of it: only its edges are taken.
        prices: one number per edge of the grid, of either sign.
            Integers stay exact; negate them for the greatest sum.
        every_rate: only architectures that reach every output of the space.
    """
    # mask → (sum, linked list of moves); the first of equals wins, so the result is the same everywhere.
    best: dict[int, tuple[float, tuple[Any, ...]]] = {1: (0, ())}
    for step in steps(space, every_rate=every_rate):
        after: dict[int, tuple[float, tuple[Any, ...]]] = {}
        for mask, (total, taken) in best.items():
            for move in step.moves(mask):
                cost = total + sum(prices[edge] for edge in move.edges)
                if move.mask not in after or cost < after[move.mask][0]:
                    after[move.mask] = cost, (taken, move)
        best = after
    total, taken = best[0]
    return total, sorted(edge for move in _unlink(taken) for edge in move.edges)


def _unlink(taken: tuple[Any, ...]) -> Iterator[Move]:
    while taken:
        taken, move = taken
        yield move


class StaticRange(NamedTuple):
    """The cheapest and the dearest static architecture of a grid, and their MACs."""

    min_macs: int
    max_macs: int
    cheapest: Architecture
    dearest: Architecture


def static_range(grid: RoutingGrid) -> StaticRange:
    """The cheapest and the dearest static architecture, by MACs."""
    prices, constant, names = edge_macs(grid), constant_macs(grid), list(grid.edges)
    least, low = least_sum(grid, prices)
    most, high = least_sum(grid, [-price for price in prices])
    return StaticRange(
        min_macs=constant + int(least),
        max_macs=constant - int(most),
        cheapest=Architecture(grid.spec, {names[place]: "open" for place in low}),
        dearest=Architecture(grid.spec, {names[place]: "open" for place in high}),
    )


def least_macs(space: GridOrPart) -> int:
    """MACs of the cheapest static architecture: the least budget that can be met."""
    grid = grid_in(space)
    return constant_macs(space) + int(least_sum(space, edge_macs(grid))[0])


def most_macs(space: GridOrPart) -> int:
    """MACs of the dearest static architecture: a budget above it limits nothing."""
    grid = grid_in(space)
    return constant_macs(space) - int(least_sum(space, [-price for price in edge_macs(grid)])[0])


def cheapest(space: GridOrPart) -> Architecture:
    """The static architecture of the fewest MACs."""
    grid = grid_in(space)
    names = list(grid.edges)
    return Architecture(grid.spec, {names[i]: "open" for i in least_sum(space, edge_macs(grid))[1]})


def satisfiable(grid: RoutingGrid, macs: float) -> bool:
    """True when a MACs budget allows at least the cheapest static architecture.

    A budget above the dearest one limits nothing, and is satisfiable too; NaN is not.
    """
    return macs >= least_macs(grid)


def require_satisfiable(grid: RoutingGrid, macs: float) -> int:
    """The least MACs possible, when a budget of `macs` is `satisfiable`.

    Raises:
        BudgetError: the budget is below the cheapest architecture; the message names its MACs.
    """
    least = least_macs(grid)
    if not satisfiable(grid, macs):
        raise BudgetError(
            f"macs: a budget of {macs / MEGA:.6g} MMACs is below the grid's cheapest architecture; "
            f"give at least {least / MEGA:.6g} MMACs ({least} MACs), or fewer pixels or narrower widths"
        )
    return least
