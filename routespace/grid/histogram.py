"""How MACs are spread over a grid's single paths, exactly, and uniform samples of paths inside a MACs window.

Works backwards: each node holds how many ways there are from it to an output, per remaining cost, so a sample is
drawn by walking forwards and choosing each edge in proportion to what it leaves open. `sample` does the same for
whole static architectures.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from routespace.errors import BudgetError, GridError, SpecError
from routespace.grid.count import MEGA, constant_macs, count_paths, edge_macs, path_range
from routespace.grid.graph import Edge, Node, RoutingGrid

Spread = tuple[np.ndarray, np.ndarray]  # costs, ascending and distinct · how many ways there are to each
MAX_COSTS = 5_000_000  # distinct path costs kept, about 80 MB; layers that all differ in depth can pass it


def path_histogram(grid: RoutingGrid) -> dict[int, int]:
    """MACs → number of single paths of exactly that cost (stem, outputs and head included), ascending.

    Raises:
        GridError: more than `MAX_COSTS` distinct costs.
    """
    costs, numbers = _path_spreads(grid)[grid.stem]
    constant = constant_macs(grid)
    return {constant + cost: number for cost, number in zip(costs.tolist(), numbers.tolist(), strict=True)}


def _path_spreads(grid: RoutingGrid) -> dict[Node, Spread]:
    """Node → spread of the costs from there to any output."""
    kind = np.int64 if count_paths(grid) < np.iinfo(np.int64).max else object  # Python's integers never overflow
    parts: dict[Node, list[Spread]] = {node: [] for node in grid.nodes}
    for node in grid.outputs:
        parts[node].append((np.zeros(1, dtype=np.int64), np.ones(1, dtype=kind)))
    leaving: dict[Node, list[tuple[Node, int]]] = {node: [] for node in grid.nodes}
    for edge, price in zip(grid.edges.values(), edge_macs(grid), strict=True):
        leaving[edge.source].append((edge.target, price))
    spreads: dict[Node, Spread] = {}
    for node in reversed(grid.nodes):
        ahead = [(spreads[target][0] + price, spreads[target][1]) for target, price in leaving[node]]
        spreads[node] = _merge(parts[node] + ahead)
        if sum(len(costs) for costs, _ in spreads.values()) > MAX_COSTS:
            raise GridError(
                f"layers: the paths have more than {MAX_COSTS} distinct costs; "
                f"use fewer layers, or depths that repeat"
            )
    return spreads


def _merge(parts: Sequence[Spread]) -> Spread:
    costs, numbers = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    order = np.argsort(costs, kind="stable")  # merges sorted runs quickly
    costs, numbers = costs[order], numbers[order]
    first = np.flatnonzero(np.concatenate(([True], costs[1:] != costs[:-1])))
    return costs[first], np.add.reduceat(numbers, first)


def sample_paths(
    grid: RoutingGrid, n: int, *, low_macs: float = 0, high_macs: float = math.inf, seed: int = 0
) -> list[tuple[str, ...]]:
    """Draw n single paths, exactly uniform (with repetition) among those whose MACs lie in the window.

    Returns:
        n tuples of edge names in order. With `coarsest` outputs each is a static architecture.

    Raises:
        BudgetError: no path lies in the window; the message names the least and the greatest MACs.
        SpecError: n is negative or the window is empty.
        GridError: see `path_histogram`.
    """
    check_request(n, low_macs, high_macs)
    spreads, constant = _path_spreads(grid), constant_macs(grid)
    costs, numbers = spreads[grid.stem]
    inside = (costs + constant >= low_macs) & (costs + constant <= high_macs)
    if not inside.any():
        raise BudgetError(nothing_inside("path", low_macs, high_macs, path_range(grid)))
    totals, upto = costs[inside].tolist(), list(accumulate(numbers[inside].tolist()))
    leaving: dict[Node, list[tuple[Edge, int]]] = {node: [] for node in grid.nodes}
    for edge, price in zip(grid.edges.values(), edge_macs(grid), strict=True):
        leaving[edge.source].append((edge, price))
    draw = random.Random(seed)
    return [
        _walk(grid, spreads, leaving, totals[bisect_right(upto, draw.randrange(upto[-1]))], draw) for _ in range(n)
    ]


def _walk(
    grid: RoutingGrid,
    spreads: dict[Node, Spread],
    leaving: dict[Node, list[tuple[Edge, int]]],
    rest: int,
    draw: random.Random,
) -> tuple[str, ...]:
    """One path from the stem that costs exactly `rest`."""
    node, outputs = grid.stem, set(grid.outputs)
    path: list[str] = []
    while True:
        ahead = [_ways(spreads[edge.target], rest - price) for edge, price in leaving[node]]
        upto = list(accumulate(ahead, initial=int(node in outputs and rest == 0)))
        choice = bisect_right(upto, draw.randrange(upto[-1]))
        if choice == 0:
            return tuple(path)
        edge, price = leaving[node][choice - 1]
        path.append(edge.name)
        node, rest = edge.target, rest - price


def _ways(spread: Spread, cost: int) -> int:
    place = int(np.searchsorted(spread[0], cost))
    return int(spread[1][place]) if place < len(spread[0]) and spread[0][place] == cost else 0


def check_request(n: int, low_macs: float, high_macs: float) -> None:
    """Raise SpecError for a negative number of samples or an empty window."""
    if n < 0:
        raise SpecError(f"n: {n} samples cannot be drawn; give 0 or more")
    if not low_macs <= high_macs or low_macs == math.inf:
        raise SpecError(f"low_macs: the window {low_macs:.6g} to {high_macs:.6g} is empty; give low <= high")


def nothing_inside(what: str, low_macs: float, high_macs: float, span: tuple[int, int]) -> str:
    """The message for a window in which no `what` was found; `span` is the least and greatest MACs there are."""
    return (
        f"macs: no {what} found between {low_macs / MEGA:.6g} and {high_macs / MEGA:.6g} MMACs; the grid's lie "
        f"between {span[0] / MEGA:.6g} and {span[1] / MEGA:.6g} MMACs; give a window that holds more of them"
    )
