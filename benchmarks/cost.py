"""How fast the cost model, counting and selection are: medians of one run, one thread.

    python benchmarks/cost.py

The grid is 24 layers × 4 rates in b2 widths (267 edges). fvcore counts timm's pvt_v2_b2, once per architecture as
it must; the ratio compares that with one architecture of a batch.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy starts its threads

import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np

from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost, batch_cost, bits_of
from routespace.grid.count import count_paths, count_static, edge_macs, path_range, static_range
from routespace.grid.graph import RoutingGrid
from routespace.grid.histogram import path_histogram, sample_paths
from routespace.grid.sample import StaticTables, sample_static_bits
from routespace.grid.select import select
from routespace.grid.spec import GridSpec

BATCH = 1 << 18
ROUNDS = 9
WINDOW_MACS = (4.0e9, 4.1e9)
LIMIT_MACS = 4_026_734_592  # b2's own


def median_s(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median wall time of `run` in seconds, after one run to warm up."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def fvcore_s() -> float:
    """Seconds that fvcore takes to count one pvt_v2_b2 at 224²."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit's deprecation
        import timm
        import torch
        from fvcore.nn import FlopCountAnalysis

        torch.set_num_threads(1)
        net, image = timm.create_model("pvt_v2_b2").eval(), torch.zeros(1, 3, 224, 224)

        def count() -> int:
            analysis = FlopCountAnalysis(net, image)
            return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()

        return median_s(count, rounds=3)


def select_s(grid: RoutingGrid, transformers_only: bool) -> tuple[float, float]:
    """Median and greatest seconds of `select` over random scores."""
    times = []
    for seed in range(ROUNDS):
        draw = np.random.default_rng(seed).random(len(grid.edges))
        scores = {
            name: float(score) if edge.kind == "transformer" or not transformers_only else 0.0
            for (name, edge), score in zip(grid.edges.items(), draw, strict=True)
        }
        start = time.perf_counter()
        select(grid, scores, macs=LIMIT_MACS)
        times.append(time.perf_counter() - start)
    return statistics.median(times), max(times)


def main() -> None:
    """Measure everything and print one table."""
    grid = RoutingGrid(GridSpec(layers=24, max_down=32, size="b2"))
    bits = np.random.default_rng(0).random((BATCH, len(grid.edges))) < 0.5
    one = Architecture.staircase(grid)
    row = bits_of(one)[None]
    edge_macs(grid)  # the prices are computed once per grid
    low, high = WINDOW_MACS
    batch = median_s(lambda: batch_cost(grid, bits))
    fvcore = fvcore_s()
    common, common_max = select_s(grid, transformers_only=False)
    hard, hard_max = select_s(grid, transformers_only=True)
    lines = [
        ("batch_cost, million architectures/s", BATCH / batch / 1e6, ">= 3"),
        ("batch_cost of one, ms", 1e3 * median_s(lambda: batch_cost(grid, row)), "<= .3"),
        ("architecture_cost of one, ms", 1e3 * median_s(lambda: architecture_cost(one)), "<= .3"),
        ("fvcore, pvt_v2_b2, ms", 1e3 * fvcore, ""),
        ("fvcore / batch_cost, per architecture", fvcore / (batch / BATCH), ">= 1e6"),
        ("path DP: count, ms", 1e3 * median_s(lambda: count_paths(grid)), "<= 1"),
        ("path DP: cheapest and dearest, ms", 1e3 * median_s(lambda: path_range(grid)), "<= 1"),
        ("exact path histogram, ms", 1e3 * median_s(lambda: path_histogram(grid)), "<= 100"),
        ("count_static, ms", 1e3 * median_s(lambda: count_static(grid)), ""),
        ("static_range, ms", 1e3 * median_s(lambda: static_range(grid)), ""),
        ("static distribution, ms", 1e3 * median_s(lambda: StaticTables(grid)), ""),
        ("1000 static samples in 4.0-4.1 GMACs, ms", 1e3 * _sampled_s(grid, low, high), ""),
        ("1000 path samples in 4.0-4.1 GMACs, ms", 1e3 * _paths_s(grid, low, high), ""),
        ("select, all edges scored, median ms", 1e3 * common, ""),
        ("select, all edges scored, slowest ms", 1e3 * common_max, ""),
        ("select, transformers scored, median ms", 1e3 * hard, ""),
        ("select, transformers scored, slowest ms", 1e3 * hard_max, ""),
    ]
    print(
        f"{len(grid.edges)} edges, {count_paths(grid)} paths, {float(count_static(grid)):.2g} static architectures"
    )
    for what, number, goal in lines:
        print(f"{what:<44}{number:>14.4g}   {goal}")


def _sampled_s(grid: RoutingGrid, low: float, high: float) -> float:
    return median_s(lambda: sample_static_bits(grid, 1000, low_macs=low, high_macs=high), rounds=3)


def _paths_s(grid: RoutingGrid, low: float, high: float) -> float:
    return median_s(lambda: sample_paths(grid, 1000, low_macs=low, high_macs=high), rounds=3)


if __name__ == "__main__":
    main()
