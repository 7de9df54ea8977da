"""Measuring a latency table: `profile(grid, device="cpu", batch=1)`.

Every distinct part (kind, rate, depth, share of kept tokens) is measured as it stands in a network: a chain of
CHAIN copies with weights of their own, each reading what the one before has just written. Parts and a few whole
subnets are measured in turn, ROUNDS times, so that a slow minute of the machine touches all alike; each part's
time is the median of its share of a round. Then a factor per group of parts is fitted to the whole subnets.

On a CPU, glibc gives large buffers back to the system at every free, which can double the time of a fine map and
makes it depend on what ran before: call `routespace.memory.keep_freed_memory` first, as the command line does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from routespace.deploy.calibration import calibrate
from routespace.deploy.device import this_device
from routespace.deploy.latency import Key, LatencyTable, PartTime, part_keys
from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import RoutingGrid
from routespace.grid.sample import sample_static
from routespace.nn.compute import EdgeWork, Packed
from routespace.nn.place import Place
from routespace.nn.route_net import RouteNet

CHAIN = 3
ROUNDS = 9
LEAST_MS = 2.0  # a measurement repeats its work until it takes about this long
SUBNETS = 24

Clock = Literal["wall", "cpu"]
DType = Literal["float32", "bfloat16", "float16"]
Work = Callable[[], object]
M = TypeVar("M", bound=nn.Module)
Name = TypeVar("Name")


def profile(
    space: RoutingGrid | Architecture,
    *,
    device: str = "cpu",
    batch: int = 1,
    dtype: DType = "float32",
    compiled: bool = False,
    keeps: Sequence[float] = (1.0,),
    rounds: int = ROUNDS,
    subnets: int = SUBNETS,
    threads: int = 1,
    clock: Clock = "wall",
    seed: int = 0,
) -> LatencyTable:
    """Measure every part of a grid on this machine.

    Args:
        space: the grid, or an architecture of it.
        device: `cpu` or `cuda`.
        batch: images of a forward pass.
        dtype: of weights and images.
        compiled: compile each edge with torch.compile.
        keeps: shares of tokens at which transformer edges are measured, computed packed; 1 is always measured.
        rounds: measurements behind each median, at least 3.
        subnets: random static subnets that are measured whole to fit the factors; 0 for none.
        threads: torch's on a CPU; the number is restored afterwards.
        clock: `wall`; or `cpu`, the thread's processor time, which a busy machine does not stretch (one thread).
        seed: of the subnets and of which tokens are kept.

    Raises:
        SpecError: an argument that is not allowed, or no such device.
    """
    _check(device, batch, keeps, rounds, threads, clock)
    grid = space.grid if isinstance(space, Architecture) else space
    bench = Bench(grid, device, batch, getattr(torch, dtype), compiled)
    with _threads(threads if device == "cpu" else None), torch.inference_mode():
        chosen = sample_static(grid, subnets, seed=seed) if subnets else []
        works = bench.parts(keeps, seed)
        works |= {number: bench.subnet(architecture) for number, architecture in enumerate(chosen)}
        times = measure(works, rounds=rounds, clock=clock, cuda=device == "cuda")
    parts = tuple(
        PartTime(kind=key[0], rate=key[1], depth=key[2], keep=keep, ms=times[key, keep] / bench.copies(key))
        for key, keep in (name for name in works if isinstance(name, tuple))
    )
    table = LatencyTable(
        grid=grid.hash,
        spec=grid.spec,
        device=this_device(device, threads if device == "cpu" else 0),
        batch=batch,
        dtype=dtype,
        compiled=compiled,
        clock=clock,
        rounds=rounds,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        parts=parts,
    )
    return calibrate(table, {architecture: times[number] for number, architecture in enumerate(chosen)})


class Bench:
    """Makes the pieces of work that are timed.

    Args:
        grid: whose parts.
        device, batch, dtype, compiled: as in `profile`.
    """

    def __init__(self, grid: RoutingGrid, device: str, batch: int, dtype: torch.dtype, compiled: bool) -> None:
        self.grid, self.spec = grid, grid.spec
        self.device, self.batch, self.dtype, self.compiled = device, batch, dtype, compiled
        self._classes = self.spec.block_family.modules()

    def copies(self, key: Key) -> int:
        """How many copies of a part one piece of work runs."""
        return CHAIN if key[0] in ("transformer", "patch_embed", "merge") else 1

    def parts(self, keeps: Sequence[float], seed: int) -> dict[object, Work]:
        """(part, keep) → its work, for every distinct part; transformer edges at each share of tokens."""
        return {
            (key, keep): self.part(key, keep, seed)
            for key in sorted(part_keys(self.grid))
            for keep in (sorted({1.0, *keeps}) if key[0] == "transformer" else (1.0,))
        }

    def part(self, key: Key, keep: float, seed: int) -> Work:
        """The work of one part."""
        kind, rate, depth = key
        spec, hw = self.spec, self.spec.map_size(rate) if rate else (0, 0)
        if kind == "stem":
            stem, images = self._ready(self._classes.Stem(spec)), self.images()
            return lambda: stem(images)
        if kind == "head":
            head, pooled = (
                self._ready(nn.Linear(spec.width(spec.max_down), spec.num_classes)),
                self._map(spec.max_down),
            )
            return lambda: head(pooled.mean(1))
        x = self._map(rate)
        if kind == "output":
            output = self._ready(self._classes.Output(spec, rate))
            return lambda: output(x)
        if kind == "merge":
            return lambda: _merge(x, CHAIN)
        if kind == "patch_embed":
            embeds = [self._ready(self._classes.PatchEmbed(spec, rate)) for _ in range(CHAIN)]
            return lambda: [embed(x, hw) for embed in embeds]
        stages = [self._ready(self._classes.Stage(spec, rate, depth)) for _ in range(CHAIN)]
        if keep == 1.0:
            return lambda: _chain(stages, x, hw)
        generator = torch.Generator().manual_seed(seed)
        kept = (torch.rand(x.shape[:2], generator=generator) < keep).to(self.device)
        return lambda: _packed_chain(stages, x, hw, kept)

    def subnet(self, architecture: Architecture) -> Work:
        """The work of a whole static network."""
        net = self._ready(RouteNet(architecture), compiled=False)
        for edge in net.edges.values():
            self._compile(edge)
        images = self.images()
        return lambda: net(images)

    def images(self) -> Tensor:
        """(B, C, H, W) random pixels."""
        size = (self.batch, self.spec.in_channels, *self.spec.image_size)
        return torch.randn(size, device=self.device, dtype=self.dtype)

    def _map(self, rate: int) -> Tensor:
        """(B, N, C) random tokens."""
        height, width = self.spec.map_size(rate)
        size = (self.batch, height * width, self.spec.width(rate))
        return torch.randn(size, device=self.device, dtype=self.dtype)

    def _ready(self, module: M, *, compiled: bool = True) -> M:
        module = module.eval().to(self.device, self.dtype)
        if compiled:
            self._compile(module)
        return module

    def _compile(self, module: nn.Module) -> None:
        if self.compiled:
            module.compile()


def _chain(stages: Sequence[nn.Module], x: Tensor, hw: tuple[int, int]) -> Tensor:
    for stage in stages:
        x = stage(x, hw)
    return x


def _packed_chain(stages: Sequence[nn.Module], x: Tensor, hw: tuple[int, int], kept: Tensor) -> Tensor:
    compute = Packed()
    for stage in stages:
        x = compute.row(stage, EdgeWork(Place(x), hw, kept))
    return x


def _merge(x: Tensor, count: int) -> Tensor:
    total = x
    for _ in range(count):
        total = total + x
    return total


def measure(works: Mapping[Name, Work], *, rounds: int, clock: Clock, cuda: bool) -> dict[Name, float]:
    """Median milliseconds of each piece of work, measured in turn.

    A round runs every piece until it has taken about LEAST_MS. Rounds are brought to one speed by the geometric
    mean of all pieces before the medians are taken.

    Args:
        works: name → work.
        rounds: how many.
        clock: `wall` or `cpu`.
        cuda: wait for the device before and after.
    """
    now = time.thread_time if clock == "cpu" else time.perf_counter
    repeats = {}
    for name, work in works.items():
        work()  # the first call allocates, chooses kernels and compiles
        repeats[name] = max(1, round(LEAST_MS / max(1e-3, _time(work, 1, now, cuda))))
    table = np.array(
        [[_time(work, repeats[name], now, cuda) for name, work in works.items()] for _ in range(rounds)]
    )
    speed = np.exp(np.log(np.maximum(table, 1e-9)).mean(axis=1, keepdims=True))
    medians = np.median(table / speed * np.median(speed), axis=0)
    return {name: float(ms) for name, ms in zip(works, medians, strict=True)}


def _time(work: Work, repeats: int, now: Callable[[], float], cuda: bool) -> float:
    """Milliseconds of one call, over `repeats` calls after one that is not counted."""
    work()
    if cuda:
        torch.cuda.synchronize()
    start = now()
    for _ in range(repeats):
        work()
    if cuda:
        torch.cuda.synchronize()
    return (now() - start) * 1e3 / repeats


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(device: str, batch: int, keeps: Sequence[float], rounds: int, threads: int, clock: str) -> None:
    if device not in ("cpu", "cuda"):
        raise SpecError(f"device: {device!r:.60} is not known; allowed: cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise SpecError("device: 'cuda' is not there; use cpu, or a machine with an NVIDIA card and its torch")
    if batch < 1 or threads < 1 or rounds < 3:
        raise SpecError(f"batch {batch}, threads {threads}, rounds {rounds}: give at least 1, 1 and 3")
    if not all(0 < keep <= 1 for keep in keeps):
        raise SpecError(f"keeps: {list(keeps)} is not allowed; give shares above 0, at most 1")
    if clock not in ("wall", "cpu") or (clock == "cpu" and (device != "cpu" or threads > 1)):
        raise SpecError(f"clock: {clock!r:.60} is not allowed here; use wall (cpu is for one thread on the CPU)")
