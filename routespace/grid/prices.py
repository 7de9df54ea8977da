"""The prices of a grid: what each edge, gate, stem, output and head costs, and many architectures summed at once.

    edge_cost(spec, edge)          one edge, every token computed
    cost_table(grid)               every price of a grid, computed once

Shape legend: n architectures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routespace.errors import GridError, SpecError
from routespace.grid.families.base import FLOAT_BYTES, EdgeCost
from routespace.grid.gate_spec import GateSpec, gate_places
from routespace.grid.graph import Edge, RoutingGrid
from routespace.grid.resources import NO_EDGE, NO_GATE, GateCost, require_analytic
from routespace.grid.skipped import NO_PATH, skipped_cost
from routespace.grid.spec import GridSpec

EXACT_FLOAT = 1 << 53  # float64 adds integers below this exactly, and BLAS adds them much faster than int64
BLOCK_ROWS = 1024  # rows converted to float64 at a time: they stay in the second-level cache


def edge_cost(spec: GridSpec, edge: Edge) -> EdgeCost:
    """The price of one edge: `spec.depth(layer)` blocks, a patch embedding, or nothing for an identity."""
    if edge.kind == "identity":
        return NO_EDGE
    if edge.kind == "patch_embed":
        return spec.family.patch_embed_cost(spec, edge.rate)
    depth = spec.depth(edge.layer)
    return EdgeCost(*(depth * number for number in spec.family.block_cost(spec, edge.rate)))


def head_cost(spec: GridSpec) -> EdgeCost:
    """The linear classifier on the mean of the coarsest map; nothing without classes."""
    width, classes = spec.width(spec.rates[-1]), spec.num_classes
    if not classes:
        return NO_EDGE
    params = width * classes + classes
    return EdgeCost(params, 0, width * classes, FLOAT_BYTES * params, FLOAT_BYTES * (width + classes))


def gate_cost(spec: GridSpec, edge: Edge, gates: GateSpec, *, follows: bool = False) -> GateCost:
    """The price of the gate named by `edge`: a row's (transformer) or a column's (patch_embed).

    A column's `token` gate decides once per coarse token, from the fine map pooled 2×2; its `window` counts
    coarse tokens. A row that `follows` another's margins has no weights and nothing to multiply; with a scout
    the row that leads pays for it, by the squares that it sees. A row's price holds that of its path for skipped
    tokens, too.
    """
    width, column = spec.width(edge.rate), edge.kind == "patch_embed"
    path = NO_PATH if column else skipped_cost(gates, width, math.prod(spec.map_size(edge.rate)))
    if follows:
        return NO_GATE if path is NO_PATH else GateCost(path.params, 0, 0, path.macs, path.bytes)
    granularity = gates.columns if column else gates.read_rows
    size = spec.map_size(2 * edge.rate if column else edge.rate)
    scout = gates.scout_shape(width, rows=not column)
    places = scout.squares(size) if scout else gate_places(granularity, size, gates.window)
    params = gates.gate_params(granularity, width, rows=not column)
    macs = gates.gate_macs(granularity, width, places, rows=not column)
    moved = gates.gate_inputs(width, rows=not column) + gates.logits + (scout.square_numbers if scout else 0)
    moved = FLOAT_BYTES * (params + (places * moved if macs else 0))
    return GateCost(params + path.params, macs, moved, path.macs, path.bytes)


class CostTable:
    """Every price of one grid at one image size, computed once.

    Args:
        grid: the routing grid.
        image_size: height and width in pixels when not the spec's own.

    Attributes:
        spec: the spec at that image size.
        stem, edges, outputs, head: as in ArchitectureCost, for every edge of the grid.

    Raises:
        SpecError: an image size that the grid cannot take.
    """

    def __init__(self, grid: RoutingGrid, image_size: tuple[int, int] | int | None = None) -> None:
        spec = grid.spec
        if image_size is not None:
            spec = spec.at(image_size)
        self.spec = spec
        self.stem = spec.family.stem_cost(spec)
        self.edges = _grid_prices(grid, spec)
        self.outputs = {rate: spec.family.output_cost(spec, rate) for rate in spec.output_rates}
        self.head = head_cost(spec)
        self._entering = {
            rate: [place for place, edge in enumerate(grid.edges.values()) if edge.target == node]
            for node in grid.outputs
            for rate in node[1:]
        }
        self._amounts: dict[str, dict[str, float]] = {}
        self._arrays: dict[str, np.ndarray] = {}

    def constant(self, what: str, rates: Iterable[int] | None = None) -> float:
        """What stem, outputs and head take of a resource together.

        Args:
            what: the resource.
            rates: of the outputs that are reached; None for all.

        Raises:
            SpecError: a resource that does not follow from prices.
        """
        resource = require_analytic(what)
        outputs = (self.outputs[rate] for rate in (self.outputs if rates is None else rates))
        total: float = sum(resource.whole(cost) for cost in (self.stem, *outputs, self.head))
        return total

    def amounts(self, what: str) -> Mapping[str, float]:
        """Edge name → what it takes of a resource with every token computed, without gates.

        Raises:
            SpecError: a resource that does not follow from prices.
        """
        if what not in self._amounts:
            resource = require_analytic(what)
            self._amounts[what] = {name: resource.whole(cost) for name, cost in self.edges.items()}
        return self._amounts[what]

    def prices(self, what: str) -> np.ndarray:
        """The price of every edge, (edges,), in the grid's order: int64, or float64 where they are no integers.

        Raises:
            SpecError: a resource that does not follow from prices.
            GridError: the whole grid costs more than an int64 holds.
        """
        if what not in self._arrays:
            numbers = list(self.amounts(what).values())
            whole = all(isinstance(number, int) for number in numbers)
            if whole and sum(numbers) + self.constant(what) > np.iinfo(np.int64).max:
                raise GridError(f"grid: its {what} pass 2^63; use fewer layers, smaller widths or smaller images")
            self._arrays[what] = np.array(numbers, dtype=np.int64 if whole else np.float64)
        return self._arrays[what]

    def totals(self, bits: np.ndarray, what: str = "macs") -> np.ndarray:
        """Totals of n static architectures, the constant part and the outputs that they reach included.

        Args:
            bits: bool (n, edges); True where an edge is open, in the grid's edge order.
            what: a resource that follows from prices: `params`, `macs`, `bytes`.

        Returns:
            int64 (n,), exact; float64 for a resource whose prices are no integers.

        Raises:
            SpecError: bits of another type or shape, or another resource.
        """
        prices, constant = self.prices(what), self.constant(what)
        bits = np.asarray(bits)
        if bits.dtype != np.bool_ or bits.ndim != 2 or bits.shape[1] != len(prices):
            raise SpecError(
                f"bits: {bits.dtype} of shape {bits.shape}; give booleans of shape (n, {len(prices)}), "
                f"in the order of grid.edges"
            )
        if prices.dtype == np.int64 and int(prices.sum()) >= EXACT_FLOAT:
            exact: NDArray[Any] = bits @ prices + int(constant) - self._left_out(bits, what)
            return exact
        floats, totals = prices.astype(np.float64), np.empty(len(bits), dtype=prices.dtype)
        for start in range(0, len(bits), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            totals[block] = bits[block].astype(np.float64) @ floats
        summed: NDArray[Any] = totals + prices.dtype.type(constant) - self._left_out(bits, what)
        return summed

    def _left_out(self, bits: np.ndarray, what: str) -> Any:
        """What the constant part has too much for n static architectures: outputs that they never reach."""
        resource, total = require_analytic(what), 0
        for rate, places in self._entering.items():
            price = resource.whole(self.outputs[rate])
            total = total + (price * ~bits[:, places].any(1) if price else 0)
        return total


def _grid_prices(grid: RoutingGrid, spec: GridSpec) -> dict[str, EdgeCost]:
    """Edge prices, computed once for equal (kind, rate, depth)."""
    known: dict[tuple[str, int, int], EdgeCost] = {}
    prices = {}
    for name, edge in grid.edges.items():
        key = edge.kind, edge.rate, spec.depth(edge.layer) if edge.kind == "transformer" else 0
        if key not in known:
            known[key] = edge_cost(spec, edge)
        prices[name] = known[key]
    return prices


@lru_cache(maxsize=64)
def cost_table(grid: RoutingGrid, image_size: tuple[int, int] | int | None = None) -> CostTable:
    """The grid's CostTable, kept for the next call: equal grids share one."""
    return CostTable(grid, image_size)
