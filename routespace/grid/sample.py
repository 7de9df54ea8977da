"""How MACs are spread over a grid's static architectures, and uniform samples inside a MACs window.

    static_distribution, median_macs        by MACs rounded to a few thousand bins
    sample_static, sample_static_bits       uniform inside the exact window

The sweep of `count` runs backwards once: each of its states holds how many completions there are, per rounded
remaining cost. A sample walks forwards and chooses each move in proportion to what it leaves open.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from routespace.checked import checked, require_seed
from routespace.errors import BudgetError
from routespace.grid.architecture import Architecture
from routespace.grid.count import (
    GridOrPart,
    Move,
    constant_macs,
    edge_macs,
    grid_in,
    least_macs,
    least_sum,
    most_macs,
    steps,
)
from routespace.grid.graph import RoutingGrid
from routespace.grid.histogram import check_request, nothing_inside
from routespace.grid.prices import cost_table

MAX_BINS = 2048  # bins of the distribution …
MIN_BINS = 64
MAX_ENTRIES = 1 << 23  # … fewer where all tables together would pass this many numbers (64 MB)
UNITS_TRIED = 50_000
OVERFLOW = 1e250  # tables are scaled down before they reach this; only ratios within a table matter
MAX_TRIES = 1000  # draws per wanted sample before a window counts as too narrow
MIN_TRIES = 100_000
MIN_BATCH, MAX_BATCH = 64, 20_000


class StaticTables:
    """How many static architectures complete each state of the sweep, per rounded remaining cost.

    Every edge's MACs are rounded to whole units, equal edges so that their errors cancel. Counts are float64:
    shares are exact to about 1e-12. Where counts pass 1e300 (hundreds of layers) the rarest costs underflow to
    zero.

    Args:
        space: a grid, or an architecture of it: only its edges are taken.
        every_rate: only architectures that reach every output of the space.

    Attributes:
        unit: MACs of one bin; it divides all costs where they are few.
        slack: least and greatest of (exact MACs - units) over all static architectures.
        spare: MACs of outputs that an architecture may do without.
        counts: per unit total, the number of static architectures, up to one common factor.
    """

    def __init__(self, space: GridOrPart, *, every_rate: bool = True) -> None:
        grid = grid_in(space)
        prices = edge_macs(grid)
        self.grid, self.constant, self.sweep = grid, constant_macs(space), steps(space, every_rate=every_rate)
        self.spare = 0 if every_rate else self.constant - int(cost_table(grid).constant("macs", ()))
        self._moves: list[dict[int, list[Move]]] = []
        masks = {1}
        for step in self.sweep:
            self._moves.append({mask: step.moves(mask) for mask in sorted(masks)})
            masks = {move.mask for moves in self._moves[-1].values() for move in moves}
        bins = max(MIN_BINS, min(MAX_BINS, MAX_ENTRIES // sum(map(len, self._moves))))
        self.unit = _best_unit(prices, bins)
        self._quanta = _spread_rounding(prices, self.unit)
        residual = [price - self.unit * q for price, q in zip(prices, self._quanta, strict=True)]
        least, most, size = (
            int(least_sum(space, sums, every_rate=every_rate)[0])
            for sums in (residual, [-r for r in residual], [-q for q in self._quanta])
        )
        self.slack = least, -most
        self._tables = self._complete(1 - size)
        self.counts = self._tables[0][1]

    def _quantum(self, move: Move) -> int:
        return sum(self._quanta[edge] for edge in move.edges)

    def _complete(self, size: int) -> list[dict[int, np.ndarray]]:
        """Backwards over the sweep: step → mask → number of completions per remaining cost."""
        end = np.zeros(size)
        end[0] = 1
        tables = [{0: end}]
        for moves_of in reversed(self._moves):
            here = {}
            for mask, moves in moves_of.items():
                here[mask] = np.zeros(size)
                for move in moves:
                    q = self._quantum(move)
                    here[mask][q:] += tables[-1][move.mask][: size - q]
            peak = max(float(table.max()) for table in here.values())
            if peak > OVERFLOW:
                here = {mask: table / peak for mask, table in here.items()}
            tables.append(here)
        return tables[::-1]

    def window(self, low_macs: float, high_macs: float) -> tuple[int, int]:
        """The unit totals, from and up to but without, that hold every architecture of the MACs window."""
        first = math.ceil((max(low_macs, 0) - self.constant - self.slack[1]) / self.unit)
        top = (len(self.counts) - 1) * self.unit
        high = high_macs + self.spare - self.constant - self.slack[0]
        last = math.floor(min(high, top) / self.unit)
        return max(first, 0), max(last + 1, 0)

    def draw(self, n: int, units: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """n independent uniform samples among the architectures of these unit totals: bool (n, edges)."""
        share = self.counts[slice(*units)] / self.counts[slice(*units)].sum()
        rest = units[0] + rng.choice(len(share), size=n, p=share)
        masks, bits = np.ones(n, dtype=np.int64), np.zeros((n, len(self._quanta)), dtype=np.bool_)
        for moves_of, after in zip(self._moves, self._tables[1:], strict=True):
            coin, before = rng.random(n), masks.copy()
            for mask in np.unique(before).tolist():
                rows = np.flatnonzero(before == mask)
                moves = moves_of[mask]
                choice = self._choose(moves, after, rest[rows], coin[rows])
                for i, move in enumerate(moves):
                    chosen = rows[choice == i]
                    bits[np.ix_(chosen, move.edges)] = True
                    masks[chosen] = move.mask
                    rest[chosen] -= self._quantum(move)
        return bits

    def _choose(
        self, moves: list[Move], after: dict[int, np.ndarray], rest: np.ndarray, coin: np.ndarray
    ) -> np.ndarray:
        """Index of the move taken by each sample, in proportion to the completions that it leaves."""
        upto = np.zeros((len(moves), len(rest)))
        for i, move in enumerate(moves):
            left = rest - self._quantum(move)
            upto[i] = np.where(left >= 0, after[move.mask][np.maximum(left, 0)], 0)
        upto = upto.cumsum(axis=0)
        point = np.minimum(coin * upto[-1], np.nextafter(upto[-1], 0))  # never on the upper end itself
        chosen: np.ndarray = (point >= upto).sum(axis=0)
        return chosen


def _best_unit(prices: Sequence[int], bins: int) -> int:
    """MACs of one bin: the greatest common divisor when that needs at most `bins`, else one that nearly is.

    Among units up to twice the smallest that fits, the one whose multiples come closest to all prices; that
    narrows the slack about tenfold against any round number, and with it the share of rejected samples.
    """
    divisor, numbers = math.gcd(*prices) or 1, Counter(prices)
    most = sum(prices)
    if most // divisor <= bins:
        return divisor
    smallest = -(-most // bins)
    units = np.unique(np.linspace(smallest, 2 * smallest, UNITS_TRIED).astype(np.int64))
    errors = np.zeros(len(units))
    for price, number in numbers.items():
        steps_of = price / units
        errors += number * np.abs(steps_of - np.rint(steps_of))
    return int(units[errors.argmin()])


def _spread_rounding(prices: Sequence[int], unit: int) -> list[int]:
    """Whole units per edge; of k edges with one price it is the sum that is rounded, so errors do not add up."""
    seen: Counter[int] = Counter()
    quanta = []
    for price in prices:
        before, after = seen[price] * price, (seen[price] + 1) * price
        quanta.append((2 * after + unit) // (2 * unit) - (2 * before + unit) // (2 * unit))
        seen[price] += 1
    return quanta


@lru_cache(maxsize=2)  # up to 64 MB each
def _tables(space: GridOrPart, *, every_rate: bool = True) -> StaticTables:
    return StaticTables(space, every_rate=every_rate)


def static_distribution(grid: RoutingGrid) -> tuple[np.ndarray, np.ndarray]:
    """MACs and shares of all static architectures: int64 (bins,) and float64 (bins,) with sum 1, zeros left out.

    MACs are rounded as `StaticTables` says: to about a thousandth of the range on a 24×4 grid.
    """
    tables = _tables(grid)
    some = np.flatnonzero(tables.counts)
    return tables.constant + some * tables.unit, tables.counts[some] / tables.counts.sum()


def median_macs(grid: RoutingGrid) -> int:
    """MACs of the median static architecture, as exact as `static_distribution` is."""
    macs, shares = static_distribution(grid)
    return int(macs[np.searchsorted(shares.cumsum(), 0.5)])


def sample_static_bits(
    space: GridOrPart,
    n: int,
    *,
    low_macs: float = 0,
    high_macs: float = math.inf,
    seed: int = 0,
    every_rate: bool = True,
) -> np.ndarray:
    """Draw n static architectures, uniform (with repetition) among those whose exact MACs lie in the window.

    Candidates are drawn uniformly from a window widened by the rounding's slack, and kept when their exact MACs
    lie in the asked one; so what is kept is uniform too.

    Args:
        space: a grid, or an architecture of it: only its edges are taken.
        n: how many.
        low_macs, high_macs: the window, both ends included.
        seed: equal seeds give equal samples.
        every_rate: only architectures that reach every output of the space; else some of a pyramid's may be
            missing.

    Returns:
        bool (n, edges) in the grid's edge order, as `batch_cost` takes it.

    Raises:
        BudgetError: nothing lies in the window, or so little that `MAX_TRIES` draws a sample did not find it.
        SpecError: n is negative, the window is empty, or a seed that not every generator takes.
    """
    check_request(n, low_macs, high_macs)
    require_seed(seed)
    grid = grid_in(space)
    tables, rng, table = _tables(space, every_rate=every_rate), np.random.default_rng(seed), cost_table(grid)
    units = tables.window(low_macs, high_macs)
    if not tables.counts[slice(*units)].any():
        span = least_macs(space), most_macs(space)
        raise BudgetError(nothing_inside("static architecture", low_macs, high_macs, span))
    kept: list[np.ndarray] = []
    found = tried = 0
    while found < n:
        if tried >= max(MIN_TRIES, MAX_TRIES * n):
            span = least_macs(space), most_macs(space)
            message = nothing_inside("static architecture", low_macs, high_macs, span)
            raise BudgetError(f"{message} ({found} found in {tried} draws)")
        wanted = 1.2 * (n - found) * (tried / max(found, 1) if tried else 2)  # at the rate of what was kept so far
        batch = int(min(max(wanted, MIN_BATCH), MAX_BATCH))
        bits = tables.draw(batch, units, rng)
        macs = table.totals(bits)
        kept.append(bits[(macs >= low_macs) & (macs <= high_macs)])
        found, tried = found + len(kept[-1]), tried + batch
    return np.concatenate(kept)[:n] if kept else np.zeros((0, len(grid.edges)), dtype=np.bool_)


@checked
def sample_static(
    space: GridOrPart,
    n: int,
    *,
    low_macs: float = 0,
    high_macs: float = math.inf,
    seed: int = 0,
    every_rate: bool = True,
) -> list[Architecture]:
    """Draw n static architectures, uniform (with repetition) among those whose exact MACs lie in the window.

    Arguments and errors are those of `sample_static_bits`, which gives them as rows of an array.
    """
    bits = sample_static_bits(space, n, low_macs=low_macs, high_macs=high_macs, seed=seed, every_rate=every_rate)
    return architectures_of(grid_in(space), bits)


def architectures_of(grid: RoutingGrid, bits: np.ndarray) -> list[Architecture]:
    """Static architectures from bool (n, edges) in the grid's edge order."""
    names = np.array(list(grid.edges))
    return [Architecture(grid.spec, dict.fromkeys(names[row].tolist(), "open")) for row in bits]
