"""Measuring a latency table: `profile(grid, device="cpu", batch=1)`.

Every distinct part, at each share of kept tokens, is measured as it stands in a network (`Bench`).
Parts and a few whole subnets are measured in turn, ROUNDS times, so that a slow minute of the machine touches all
alike; each part's time is the median of its share of a round. Then a factor per group of parts is fitted to the
whole subnets.

On a CPU, glibc gives large buffers back to the system at every free, which can double the time of a fine map and
makes it depend on what ran before: call `routespace.memory.keep_freed_memory` first, as the command line does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime

import numpy as np
import torch

from routespace.checked import checked, require_seed
from routespace.deploy.latency.bench import Bench, Work
from routespace.deploy.latency.device import check_threads, this_device, using_threads
from routespace.deploy.latency.fit import fit_factors
from routespace.deploy.latency.parts import PartTime
from routespace.deploy.latency.table import Clock, DType, LatencyTable
from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.sample import sample_static
from routespace.nn.running import now, pick_device

ROUNDS = 9
ROUTED_KEEPS = (0.1, 0.25, 0.5, 0.75, 1.0)  # packed, the time is no straight line in the share of tokens
LEAST_MS = 2.0  # a measurement repeats its work until it takes about this long
SUBNETS = 24


@checked
def profile(
    space: RoutingGrid | Architecture,
    *,
    device: str | torch.device = "cpu",
    batch: int = 1,
    dtype: DType = "float32",
    compiled: bool = False,
    gates: GateSpec | None = None,
    keeps: Sequence[float] | None = None,
    rounds: int = ROUNDS,
    subnets: int = SUBNETS,
    threads: int = 1,
    clock: Clock = "wall",
    seed: int = 0,
) -> LatencyTable:
    """Measure every part of a grid on this machine.

    Args:
        space: the grid, or an architecture of it.
        device: `cpu`, `cuda` or a numbered one such as `cuda:1`; `auto` is a GPU where there is one.
        batch: images of a forward pass.
        dtype: of weights and images.
        compiled: with compiled blocks, as `RouteNet.compile_blocks` compiles them.
        gates: how edges are gated, to measure the gates too; None to measure none.
        keeps: shares of tokens at which transformer edges are measured, computed packed; 1 is always measured.
            None for ROUTED_KEEPS where `gates` choose among an image's tokens, else for 1 alone.
        rounds: measurements behind each median, at least 3.
        subnets: random static subnets that are measured whole to fit the factors; 0 for none.
        threads: torch's on a CPU; the number is restored afterwards.
        clock: `wall`; or `cpu`, the thread's processor time, which a busy machine does not stretch (one thread).
        seed: of the subnets and of which tokens are kept.

    Raises:
        SpecError: an argument that is not allowed, or no such device.
    """
    keeps = default_keeps(gates) if keeps is None else keeps
    require_seed(seed)
    place = pick_device(device)
    _check(place, batch=batch, keeps=keeps, rounds=rounds, threads=threads, clock=clock)
    grid = space.grid if isinstance(space, Architecture) else space
    bench = Bench(grid, device=place, batch=batch, dtype=getattr(torch, dtype), compiled=compiled, gates=gates)
    with using_threads(threads) if place.type == "cpu" else nullcontext(), torch.inference_mode():
        chosen = sample_static(grid, subnets, seed=seed) if subnets else []
        parts = bench.parts(keeps, seed)
        whole = [bench.subnet(architecture) for architecture in chosen]
        times = median_ms([*parts.values(), *whole], rounds=rounds, clock=clock, device=place)
    table = LatencyTable(
        grid=grid.hash,
        spec=grid.spec,
        device=this_device(place, threads),
        batch=batch,
        dtype=dtype,
        compiled=compiled,
        clock=clock,
        rounds=rounds,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        gates=gates,
        parts=tuple(
            PartTime(**key._asdict(), keep=keep, ms=ms / bench.copies(key))
            for (key, keep), ms in zip(parts, times, strict=False)  # the whole subnets come after
        ),
    )
    return fit_factors(table, dict(zip(chosen, times[len(parts) :], strict=True)))


def default_keeps(gates: GateSpec | None) -> tuple[float, ...]:
    """Shares of tokens at which transformer edges are measured, when nothing else is asked for.

    An edge that is computed for whole images or none takes its whole time or none, so 1 says it all.
    """
    return ROUTED_KEEPS if gates is not None and gates.rows in ("token", "window") else (1.0,)


def median_ms(works: Sequence[Work], *, rounds: int, clock: Clock, device: torch.device) -> list[float]:
    """Median milliseconds of each piece of work, measured in turn.

    A round runs every piece until it has taken about LEAST_MS. Rounds are brought to one speed by the geometric
    mean of all pieces before the medians are taken.

    Args:
        works: what to run.
        rounds: how many.
        clock: `wall` or `cpu`.
        device: where it runs; a GPU is waited for before and after.
    """

    def read() -> float:
        return time.thread_time() if clock == "cpu" else now(device)

    repeats = []
    for work in works:
        work()  # the first call allocates, chooses kernels and compiles
        repeats.append(max(1, round(LEAST_MS / max(1e-3, _time(work, 1, read)))))
    table = np.array(
        [[_time(work, count, read) for work, count in zip(works, repeats, strict=True)] for _ in range(rounds)]
    )
    speed = np.exp(np.log(np.maximum(table, 1e-9)).mean(axis=1, keepdims=True))
    medians = np.median(table / speed * np.median(speed), axis=0)
    return [float(ms) for ms in medians]


def _time(work: Work, repeats: int, read: Callable[[], float]) -> float:
    """Milliseconds of one call, over `repeats` calls after one that is not counted."""
    work()
    start = read()
    for _ in range(repeats):
        work()
    return (read() - start) * 1e3 / repeats


def _check(
    device: torch.device, *, batch: int, keeps: Sequence[float], rounds: int, threads: int, clock: str
) -> None:
    on_cpu = device.type == "cpu"
    if batch < 1 or threads < 1 or rounds < 3:
        raise SpecError(f"batch {batch}, threads {threads}, rounds {rounds}: give at least 1, 1 and 3")
    if on_cpu:
        check_threads(threads)
    if not all(0 < keep <= 1 for keep in keeps):
        raise SpecError(f"keeps: {list(keeps)} is not allowed; give shares above 0, at most 1")
    if clock not in ("wall", "cpu") or (clock == "cpu" and (not on_cpu or threads > 1)):
        raise SpecError(f"clock: {clock!r:.60} is not allowed here; use wall (cpu is for one thread on the CPU)")
