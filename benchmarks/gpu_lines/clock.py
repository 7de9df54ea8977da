"""Timing on a GPU: events around a call, warmed up, all runs in turns, medians. On a CPU: the clock."""

from __future__ import annotations

import gc
import math
import statistics
import time
import traceback
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu_lines.line import Ceilings, Run, Setting

WARM_UP = 3  # calls: the first compiles and chooses kernels
LEAST_MS = 10.0  # a measurement repeats its run until it takes about so long
COPY_BYTES, PRODUCT_SIDE = 4 << 30, 8192
LEAST_ROUNDS = 3
KERNELS = 16  # of a run that are told


@dataclass(frozen=True)
class Timed:
    """A run's median milliseconds, and the most memory that it adds to what stays; or why there are none."""

    ms: float | None = None
    memory_mb: float | None = None
    error: str | None = None


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(run: Run, device: torch.device, repeats: int = 1) -> float:
    """Of one call, over some in a row."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) * 1e3 / repeats
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / repeats


def measure(runs: dict[str, Run], setting: Setting) -> dict[str, Timed]:
    """Each run's time, in turns. A run that fails is told of, and the others go on without it."""
    found: dict[str, Timed] = {}
    memory: dict[str, float | None] = {}
    repeats: dict[str, int] = {}
    for name, run in runs.items():
        try:
            memory[name], repeats[name] = _warmed_up(run, setting)
        except Exception as error:
            if is_fatal(error):
                raise
            traceback.print_exc()
            found[name] = Timed(error=short(error))
            release()
    times: dict[str, list[float]] = {name: [] for name in repeats}
    for _ in range(setting.rounds):
        for name, count in repeats.items():
            times[name].append(milliseconds(runs[name], setting.device, count))
    for name, taken in times.items():
        found[name] = Timed(statistics.median(taken), memory[name])
    if setting.kernels is not None:
        with setting.kernels.open("a") as file:
            for name in repeats:
                file.write(f"{name}\n{kernels(runs[name], setting.device)}\n")
    return {name: found[name] for name in runs}


def _warmed_up(run: Run, setting: Setting) -> tuple[float | None, int]:
    """The most megabytes that a call adds to what stays, and how many calls make a measurement."""
    device, warm = setting.device, 1 if setting.rehearse else WARM_UP
    run()
    synchronize(device)
    stays = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        stays = torch.cuda.memory_allocated(device)
    for _ in range(warm - 1):
        run()
    took = milliseconds(run, device)
    # A graph keeps its memory, and a call of it adds none: that tells nothing.
    added = torch.cuda.max_memory_allocated(device) - stays if device.type == "cuda" else 0
    memory = added / 1e6 if added else None
    return memory, 1 if setting.rehearse else max(1, math.ceil(LEAST_MS / max(took, 1e-3)))


def kernels(run: Run, device: torch.device) -> str:
    """The kernels of a call that take most of its time: share, milliseconds, calls, name."""
    kind = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    activities = [ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        run()
        synchronize(device)
    on_cpu = device.type == "cpu"
    took = [
        (event.self_cpu_time_total if on_cpu else event.self_device_time_total, event.count, event.key)
        for event in profiler.key_averages()
        if event.device_type == kind
    ]
    total = sum(us for us, _, _ in took) or 1.0
    lines = [
        f"  {us / total:6.1%} {us / 1e3:9.3f} ms {count:5d} × {name:.120}"
        for us, count, name in sorted(took)[::-1]
    ]
    return "\n".join([f"  {total / 1e3:.3f} ms in all", *lines[:KERNELS]])


def is_fatal(error: BaseException) -> bool:
    """Whether nothing more can run on the device in this process."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return False
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except Exception:
        return True
    return False


def short(error: BaseException) -> str:
    """An error in a line."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first:.160}"


def release() -> None:
    """Give back what is not in use any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def recorded(run: Run, device: torch.device) -> Run:
    """The call as a CUDA graph, after some that warm up; on a CPU, which has none, the call itself."""
    if device.type != "cuda":
        return run
    run()  # compiles, which is no work for another stream
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def ceilings(setting: Setting) -> Ceilings:
    """The device's own, by random numbers: on zeros a product is quicker."""
    copied, multiplied = _bytes_per_s(setting), _flops_per_s(setting)
    release()
    return Ceilings(copied, multiplied)


def _bytes_per_s(setting: Setting) -> float:
    """Of a copy, read and written."""
    count = (1 << 20 if setting.rehearse else COPY_BYTES) // 2
    source = torch.empty(count, device=setting.device, dtype=torch.bfloat16).uniform_(-1, 1)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median(lambda: target.copy_(source), setting) * 1e3


def _flops_per_s(setting: Setting) -> float:
    """Of a square matrix product."""
    side = 256 if setting.rehearse else PRODUCT_SIDE
    a, b = (torch.randn(side, side, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / _median(lambda: a @ b, setting) * 1e3


def _median(run: Run, setting: Setting) -> float:
    """Milliseconds of a call."""
    for _ in range(WARM_UP):
        run()
    rounds = max(LEAST_ROUNDS, setting.rounds)
    return statistics.median(milliseconds(run, setting.device) for _ in range(rounds))
