"""The line of the latency table: what it predicts for networks that it has not seen, and what these take."""

from __future__ import annotations

import numpy as np
import torch

from gpu_lines.line import Row, Setting
from routespace import Architecture, RoutingGrid, profile
from routespace.deploy.latency.bench import Bench
from routespace.deploy.latency.profiling import median_ms
from routespace.deploy.latency.table import predict
from routespace.grid.sample import sample_static

BATCHES, KNOWN, UNSEEN, ROUNDS = (128, 8), 16, 16, 7
GOAL = 0.05


def table(setting: Setting) -> list[Row]:
    """Median and 95th percentile of the relative errors, in eager half precision."""
    grid = setting.grid("dit_b0")
    return [_errors(grid, batch, setting) for batch in setting.batches(*BATCHES)]


def _errors(grid: RoutingGrid, batch: int, setting: Setting) -> Row:
    known, unseen, rounds = (2, 2, 3) if setting.rehearse else (KNOWN, UNSEEN, ROUNDS)
    place = setting.device
    made = profile(grid, device=str(place), batch=batch, dtype="bfloat16", rounds=rounds, subnets=known)
    seen = {Architecture(made.spec, dict.fromkeys(net.edges, "open")): net.ms for net in made.subnets}
    fresh = [a for a in sample_static(grid, unseen + known, seed=1) if a not in seen][:unseen]
    bench = Bench(grid, device=place, batch=batch, dtype=torch.bfloat16)
    with torch.inference_mode():
        works = [bench.subnet(architecture) for architecture in [*fresh, *seen]]
        took = np.array(median_ms(works, rounds=rounds, clock="wall", device=place))
    drift = float(np.median(took[len(fresh) :] / np.array(list(seen.values()))))  # of the card's clock since
    predicted = drift * np.array([predict(made, architecture) for architecture in fresh])
    errors = np.abs(predicted / took[: len(fresh)] - 1)
    numbers = {
        "median_error": float(np.median(errors)),
        "p95_error": float(np.quantile(errors, 0.95)),
        "drift": drift,
        "networks": len(fresh),
    }
    name = f"latency table, B={batch}"
    return Row(name, float(np.median(took)), batch, goal={"median_error": GOAL}, numbers=numbers)
