"""Counting, histograms, sampling and selection against brute force on small grids."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import scipy.optimize
from grid_strategies import every, grids, paths
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from thinning import thinned

from routespace.errors import BudgetError, GridError, RoutespaceError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost, batch_cost, bits_of
from routespace.grid.count import (
    constant_macs,
    count_paths,
    count_static,
    edge_macs,
    least_macs,
    most_macs,
    path_range,
    require_satisfiable,
    satisfiable,
    static_range,
)
from routespace.grid.graph import RoutingGrid
from routespace.grid.histogram import path_histogram, sample_paths
from routespace.grid.resources import MeasuredPrices
from routespace.grid.sample import (
    StaticTables,
    median_macs,
    sample_static,
    sample_static_bits,
    static_distribution,
)
from routespace.grid.select import select
from routespace.grid.spec import GridSpec

LARGE = RoutingGrid(GridSpec(layers=24))
SMALL = [
    {"layers": 2, "max_down": 8},
    {"layers": 2, "max_down": 16, "embed_layers": (0, 1)},
    {"layers": 2, "max_down": 8, "outputs": "pyramid", "depths": (1, 3)},
    {"layers": 1, "max_down": 4},
    {"layers": 1, "max_down": 16, "outputs": "pyramid"},
    {"layers": 3, "max_down": 8, "embed_layers": (1,)},
]


def small(fields: dict) -> RoutingGrid:
    return RoutingGrid(GridSpec.parse({"size": "b0", "num_classes": 10, **fields}))


def choices(grid: RoutingGrid) -> int:
    """Number of assignments that `every` would try."""
    kinds = Counter(edge.kind for edge in grid.edges.values())
    return 3 ** kinds["transformer"] * 2 ** kinds["patch_embed"]


@pytest.mark.parametrize("fields", SMALL)
def test_counts_by_brute_force(fields: dict) -> None:
    grid = small(fields)
    static = list(every(grid))
    assert count_static(grid) == len(static) == len(set(static))
    assert count_static(grid, every_rate=False) == len(list(every(grid, every_rate=False)))
    macs = [architecture_cost(architecture).macs for architecture in static]
    found = static_range(grid)
    assert (found.min_macs, found.max_macs) == (min(macs), max(macs)) == (least_macs(grid), most_macs(grid))
    assert architecture_cost(found.cheapest).macs == min(macs)
    assert architecture_cost(found.dearest).macs == max(macs)


@given(grids(max_layers=4, max_rates=3))
def test_paths_by_brute_force(grid: RoutingGrid) -> None:
    price = dict(zip(grid.edges, edge_macs(grid), strict=True))
    macs = [constant_macs(grid) + sum(price[name] for name in path) for path in paths(grid)]
    assert count_paths(grid) == len(macs)
    assert path_range(grid) == (min(macs), max(macs))
    histogram = path_histogram(grid)
    assert histogram == Counter(macs)
    assert list(histogram) == sorted(histogram)


@given(grids(max_layers=3, max_rates=2))
def test_static_distribution_by_brute_force(grid: RoutingGrid) -> None:
    assume(choices(grid) <= 3000)
    macs = sorted(architecture_cost(architecture).macs for architecture in every(grid))
    tables = StaticTables(grid)
    assert tables.counts.sum() == pytest.approx(len(macs), rel=1e-9)
    middle, tolerance = median_macs(grid), max(-tables.slack[0], tables.slack[1])
    assert macs[(len(macs) - 1) // 2] - tolerance <= middle <= macs[len(macs) // 2] + tolerance
    values, shares = static_distribution(grid)
    assert shares.sum() == pytest.approx(1)
    assert values.min() - tolerance <= macs[0] <= values.min() + tolerance


def test_large_grid_counts() -> None:
    assert count_paths(LARGE) == sum(path_histogram(LARGE).values()) == 2**24 * 2925  # 2 kinds a layer · C(27, 3)
    assert count_static(LARGE) > 2**24
    assert satisfiable(LARGE, 4e9)
    assert not satisfiable(LARGE, 1e6)
    low, high = least_macs(LARGE), most_macs(LARGE)
    assert satisfiable(LARGE, low)
    assert not satisfiable(LARGE, low - 1)
    assert satisfiable(LARGE, 10 * high)  # it limits nothing, but it can be met
    assert not satisfiable(LARGE, float("nan"))
    assert require_satisfiable(LARGE, low) == require_satisfiable(LARGE, 10 * high) == low
    with pytest.raises(BudgetError, match=str(low)):
        require_satisfiable(LARGE, low - 1)
    with pytest.raises(BudgetError, match=str(low)):
        require_satisfiable(LARGE, float("nan"))
    assert low < median_macs(LARGE) < high


def test_counts_beyond_int64_stay_exact() -> None:
    grid = small({"layers": 80, "max_down": 8, "image_size": 32})
    assert count_paths(grid) == sum(path_histogram(grid).values()) == 2**80 * 81
    assert len(sample_paths(grid, 3)) == 3


P_REJECT = 1e-4  # a fixed seed, so this either always passes or never


@pytest.mark.parametrize(
    *thinned(fields=SMALL[:3], window=[(0, 1), (0.3, 0.7), (0.6, 0.61)], every_rate=[True, False])
)
def test_samples_are_uniform_inside_the_window(
    fields: dict, window: tuple[float, float], every_rate: bool
) -> None:
    grid = small(fields)
    every_macs = {a.hash: architecture_cost(a).macs for a in every(grid, every_rate=every_rate)}
    ordered = sorted(every_macs.values())
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in window)
    inside = {name for name, macs in every_macs.items() if low <= macs <= high}
    asked = {"low_macs": low, "high_macs": high, "every_rate": every_rate}
    drawn = Counter(a.hash for a in sample_static(grid, 4000, seed=3, **asked))
    assert set(drawn) <= inside
    if len(inside) > 1:
        assert chisquare([drawn[name] for name in inside]).pvalue > P_REJECT


def test_path_samples_are_uniform_inside_the_window() -> None:
    grid = small({"layers": 3, "max_down": 16, "outputs": "pyramid"})
    price = dict(zip(grid.edges, edge_macs(grid), strict=True))
    macs = {path: constant_macs(grid) + sum(price[name] for name in path) for path in paths(grid)}
    ordered = sorted(macs.values())
    low, high = ordered[len(ordered) // 3], ordered[-len(ordered) // 3]
    inside = [path for path, cost in macs.items() if low <= cost <= high]
    drawn = Counter(sample_paths(grid, 20 * len(inside), low_macs=low, high_macs=high, seed=1))
    assert set(drawn) <= set(inside)
    assert chisquare([drawn[path] for path in inside]).pvalue > P_REJECT


def test_large_grid_samples_hit_narrow_windows_and_follow_the_seed() -> None:
    window = {"low_macs": 4e9, "high_macs": 4.02e9}
    bits = sample_static_bits(LARGE, 50, seed=7, **window)
    assert ((batch_cost(LARGE, bits) >= 4e9) & (batch_cost(LARGE, bits) <= 4.02e9)).all()
    assert (bits == sample_static_bits(LARGE, 50, seed=7, **window)).all()
    assert (bits != sample_static_bits(LARGE, 50, seed=8, **window)).any()
    for row in bits[:5]:
        names = [name for name, kept in zip(LARGE.edges, row, strict=True) if kept]
        assert (bits_of(Architecture(LARGE.spec, dict.fromkeys(names, "open"))) == row).all()


@pytest.mark.parametrize("sample", [sample_static, sample_paths])
def test_bad_sampling_requests(sample: object) -> None:
    grid = small(SMALL[0])
    assert sample(grid, 0) == []
    with pytest.raises(BudgetError, match="MMACs"):
        sample(grid, 1, high_macs=1)
    with pytest.raises(BudgetError, match="MMACs"):
        sample(grid, 1, low_macs=1e15)
    with pytest.raises(SpecError, match="window"):
        sample(grid, 1, low_macs=2, high_macs=1)
    with pytest.raises(SpecError, match="n:"):
        sample(grid, -1)


def test_prices_of_outputs_are_those_that_are_reached() -> None:
    grid = small({"layers": 1, "max_down": 16, "outputs": "pyramid"})
    legal = list(every(grid, every_rate=False))
    assert {a.output_rates for a in legal} > {(4,), (8, 16), (4, 16), (4, 8, 16)}
    for what in ("params", "macs", "bytes"):
        totals = batch_cost(grid, np.stack([bits_of(a) for a in legal]), what=what)
        assert totals.tolist() == [architecture_cost(a).totals[what] for a in legal]


def test_a_part_of_some_outputs_is_a_space_of_its_own() -> None:
    grid = small({"layers": 2, "max_down": 16, "outputs": "pyramid"})
    part = Architecture.cleaned(
        grid.spec, {name: "gated" for name, edge in grid.edges.items() if edge.target[1] < 16}
    )
    assert part.missing_rates == (16,)
    drawn = sample_static(part, 50)
    assert {a.output_rates for a in drawn} == {(4, 8)}
    assert {a.output_rates for a in sample_static(part, 50, every_rate=False)} == {(4,), (8,), (4, 8)}
    assert select(part, dict.fromkeys(part.edges, 1.0)).output_rates == (4, 8)
    assert select(part, dict.fromkeys(part.edges, -1.0), every_rate=False).output_rates in {(4,), (8,)}
    assert min(architecture_cost(a).macs for a in drawn) >= least_macs(part)


# ---- select ----------------------------------------------------------------------------------------------


def worth(architecture: Architecture, scores: dict[str, float]) -> float:
    return sum(scores.get(name, 0) for name in architecture.edges)


@settings(max_examples=40)
@given(grids(max_layers=3, max_rates=3), st.data())
def test_select_is_optimal_by_brute_force(grid: RoutingGrid, data: st.DataObject) -> None:
    assume(choices(grid) <= 6000)
    names = list(grid.edges)
    numbers = st.integers(-3, 9)
    scores = dict(zip(names, data.draw(st.lists(numbers, min_size=len(names), max_size=len(names))), strict=True))
    latency = dict(
        zip(names, data.draw(st.lists(st.integers(0, 9), min_size=len(names), max_size=len(names))), strict=True)
    )
    every_rate = data.draw(st.booleans())
    legal = list(every(grid, every_rate=every_rate))
    costs = [architecture_cost(a) for a in legal]
    some = data.draw(st.sampled_from(range(len(legal))))
    limits: dict = {}
    if data.draw(st.booleans()):
        limits["macs"] = costs[some].macs
    if every_rate and data.draw(st.booleans()):  # else what stands on an output is counted in any case
        limits["params"] = costs[some].params + data.draw(st.sampled_from([-1, 0]))
    if data.draw(st.booleans()):
        limits["latency_ms"] = sum(latency[name] for name in legal[some].edges) + 1.5
    fits = [
        worth(a, scores)
        for a, cost in zip(legal, costs, strict=True)
        if cost.macs <= limits.get("macs", cost.macs)
        and cost.params <= limits.get("params", cost.params)
        and sum(latency[n] for n in a.edges) + 1.5 <= limits.get("latency_ms", 1e9)
    ]
    try:
        prices = {"latency_ms": MeasuredPrices(latency, 1.5)}
        found = select(grid, scores, limits=limits, measured=prices, every_rate=every_rate)
    except BudgetError:
        assert not fits
        return
    cost = architecture_cost(found)
    assert found.is_static
    assert cost.macs <= limits.get("macs", cost.macs)
    assert cost.params <= limits.get("params", cost.params)
    assert worth(found, scores) == max(fits)


def test_select_keeps_to_the_candidates() -> None:
    grid = small({"layers": 3, "max_down": 16})
    stairs = Architecture.staircase(grid)
    assert select(stairs, {}) == stairs
    full = select(grid, dict.fromkeys(grid.edges, 1.0))
    assert select(full, dict.fromkeys(grid.edges, 1.0), macs=architecture_cost(stairs).macs + 1).is_static
    wanted = "l01_r08_identity"
    assert wanted in select(grid, dict.fromkeys(grid.edges, -1.0), require=[wanted]).edges
    with pytest.raises(GridError, match="require"):
        select(grid, {}, require=["l01_r08_identity", "l01_r08_transformer"])
    with pytest.raises(SpecError, match="require"):
        select(stairs, {}, require=["l02_r04_transformer"])


def test_impossible_limits_name_the_least() -> None:
    grid = small({"layers": 3, "max_down": 16})
    with pytest.raises(
        BudgetError, match=rf"macs: 1000 MACs is not enough; the least possible here is {least_macs(grid)} "
    ):
        select(grid, {}, macs=1000)
    least = min(architecture_cost(a).params for a in sample_static(grid, 2000))
    with pytest.raises(BudgetError, match=f"params: .*{least}"):
        select(grid, {}, limits={"params": least - 1})
    assert architecture_cost(select(grid, {}, limits={"params": least})).params == least
    transformers = [name for name in grid.edges if name.endswith("transformer")]
    latency = {name: 0.0 if name in transformers else 5.0 for name in grid.edges}
    cheap = least_macs(grid)
    with pytest.raises(BudgetError, match=r"latency_ms: .* under the limit on macs is 25 ms"):
        select(
            grid, {}, limits={"macs": cheap, "latency_ms": 13}, measured={"latency_ms": MeasuredPrices(latency)}
        )


def timed(latency: dict, constant: float = 0.0) -> dict:
    """A limit of one millisecond by measured prices."""
    return {"limits": {"latency_ms": 1.0}, "measured": {"latency_ms": MeasuredPrices(latency, constant)}}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"scores": {"x": 1.0}}, "scores: 'x'"),
        ({"scores": {"l00_r04_transformer": float("nan")}}, "scores.l00_r04_transformer"),
        ({"limits": {"latency_ms": 1.0}}, "limits.latency_ms: it is measured"),
        (timed({}), r"measured\.latency_ms\.l00_r04_transformer: missing"),
        (timed({"x": 1.0}), r"measured\.latency_ms: 'x'"),
        (timed(dict.fromkeys(small(SMALL[0]).edges, -1.0)), r"latency_ms\.l00_r04_transformer: -1"),
        (timed({}, math.nan) | {"scores": {}}, r"measured\.latency_ms"),
        ({"macs": float("nan")}, "macs: nan is not a number"),
        ({"limits": {"macs": True}}, "macs: True is not a number"),
        ({"limits": {"macs": "12M"}}, "macs: '12M' is not a number"),
        ({"limits": {"joy": 1}}, r"limits\.joy: no such resource; allowed: params, macs"),
        ({"limits": {"macs": 1}, "macs": 1}, "limited twice"),
    ],
)
def test_bad_select_requests(arguments: dict, match: str) -> None:
    with pytest.raises(SpecError, match=match):
        select(small(SMALL[0]), arguments.pop("scores", {}), **arguments)


def test_limits_hold_exactly_on_a_large_grid() -> None:
    rng = np.random.default_rng(0)
    scores = dict(zip(LARGE.edges, rng.random(len(LARGE.edges)).tolist(), strict=True))
    for limit in (1_000_000_001, 4_026_734_592):
        found = select(LARGE, scores, macs=limit, limits={"params": 60_000_000})
        assert architecture_cost(found).macs <= limit
        assert architecture_cost(found).params <= 60_000_000
        rivals = sample_static(LARGE, 50, high_macs=limit, low_macs=limit * 0.95)
        rivals = [a for a in rivals if architecture_cost(a).params <= 60_000_000]
        assert all(worth(a, scores) <= worth(found, scores) + 1e-6 for a in rivals)


def test_a_solution_past_a_limit_is_forbidden_and_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = small({"layers": 2, "max_down": 8})
    scores, solve = dict.fromkeys(grid.edges, 1.0), scipy.optimize.milp
    best = select(grid, scores, macs=least_macs(grid))

    def careless(objective: np.ndarray, *, constraints: list, **others: object) -> object:
        rules, limit, *cuts = constraints
        return solve(objective, constraints=[rules, *([limit] if len(cuts) > 2 else []), *cuts], **others)

    monkeypatch.setattr(scipy.optimize, "milp", careless)
    assert worth(select(grid, scores, macs=least_macs(grid)), scores) == worth(best, scores)


def test_every_error_is_ours() -> None:
    for limit in (-1.0, 0.0, float("-inf")):
        with pytest.raises(RoutespaceError):
            select(LARGE, {}, macs=limit)
    assert select(small(SMALL[0]), {}, macs=float("inf")).is_static
