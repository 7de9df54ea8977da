"""What `routing.py` times: a block and a network in every mode, and the clock.

Shape legend: B images · N tokens.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.gate_spec import GateSpec, gate_places
from routespace.grid.resources import RESOURCES
from routespace.grid.spec import GridSpec
from routespace.grid.usage import EdgeUsage
from routespace.nn.families.base import modules_of
from routespace.nn.families.compiled import compile_blocks
from routespace.nn.packing.keep import KeptTokens
from routespace.nn.packing.maps import spread
from routespace.nn.routing.routes import EdgeRoute, Routes
from routespace.nn.task_net import TaskNet

TIMM = {"pvt_v2_b2": "pvt_v2_b2", "pvt_v2_b0": "pvt_v2_b0", "swin_v2_t": "swinv2_tiny_window8_256"}
WARM_UP = 2  # calls of each variant that are not timed
TILE = 8  # side of a square of tokens where the family has no windows
Runs = dict[str, Callable[[], object]]
Counted = dict[float, float]  # keep ratio → share of MACs by the cost model


@dataclass(frozen=True)
class Settings:
    """What the command line asks for; see there."""

    family: str
    preset: str
    device: torch.device
    dtype: torch.dtype
    rows: str
    keys: str
    keep: tuple[float, ...]
    rounds: int
    clock: str
    no_compile: bool


def seconds(settings: Settings, run: Callable[[], object]) -> float:
    """The time of one call."""
    on_cpu = settings.device.type == "cpu"
    clock = time.thread_time if on_cpu and settings.clock == "cpu" else time.perf_counter
    settle = (lambda: None) if on_cpu else torch.cuda.synchronize
    settle()
    start = clock()
    run()
    settle()
    return clock() - start


def medians(settings: Settings, runs: Runs) -> dict[str, float]:
    """Milliseconds of each run, after the calls that warm up: in rounds, each in an order of its own.

    A run leaves caches and freed memory to the next: always after the same one, it would be timed with that.
    """
    for run in [*runs.values()] * WARM_UP:
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    shuffle = random.Random(0)
    for _ in range(settings.rounds):
        for name in shuffle.sample(list(runs), len(runs)):
            times[name].append(seconds(settings, runs[name]) * 1e3)
    return {name: statistics.median(found) for name, found in times.items()}


def stepped(module: torch.nn.Module, forward: Callable[[], torch.Tensor], train: bool) -> Callable[[], object]:
    """An inference call, or a training step without the optimiser."""

    def inference() -> object:
        with torch.inference_mode():
            return forward()

    def training() -> object:
        module.zero_grad(set_to_none=True)
        return forward().float().square().mean().backward()

    return training if train else inference


def graphed(run: Callable[[], object]) -> Callable[[], object]:
    """The call captured as a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def square(settings: Settings, spec: GridSpec) -> int:
    """Side of the squares of tokens that are decided together."""
    window = spec.shape.own.get("window")
    return 1 if settings.rows == "token" else window if isinstance(window, int) else TILE


def random_mask(
    settings: Settings, spec: GridSpec, rate: int, batch: int, keep: float, *, capacity: bool
) -> torch.Tensor:
    """(B, N) bool, an exact share of the squares: of the batch, or with `capacity` of each image."""
    hw, side = spec.map_size(rate), square(settings, spec)
    draw = torch.rand(batch, gate_places("window", hw, side), device=settings.device)
    ranked = draw if capacity else draw.view(1, -1)
    best = ranked.topk(max(1, round(keep * ranked.shape[1]))).indices
    return spread(torch.zeros_like(ranked).scatter_(1, best, 1.0).view_as(draw) > 0, hw, side)


def block_runs(
    settings: Settings, spec: GridSpec, rate: int, *, depth: int, batch: int, train: bool
) -> tuple[Runs, Counted]:
    """`depth` blocks of a rate in every mode; index tables are made anew in each call."""
    hw, width = spec.map_size(rate), spec.width(rate)
    stage = modules_of(spec.family).stage(spec, rate, depth).to(settings.device, settings.dtype).train(train)
    x = torch.randn(batch, hw[0] * hw[1], width, device=settings.device, dtype=settings.dtype, requires_grad=train)
    masks = {keep: random_mask(settings, spec, rate, batch, keep, capacity=False) for keep in settings.keep}

    def run(keep: float | None, *, packed: bool = True, capacity: bool = False, on: bool = False) -> Callable:
        kept = random_mask(settings, spec, rate, batch, keep, capacity=True) if capacity else masks.get(keep)
        count = int(kept[0].sum()) if capacity else None

        def forward() -> torch.Tensor:
            compile_blocks(stage, on)
            if kept is None:
                return stage(x, hw, packed=packed)
            keep = KeptTokens(kept, hw, per_image=count, sees_kept=settings.keys == "kept")
            return stage(x, hw, keep, packed=packed)

        return stepped(stage, forward, train)

    cost = spec.family.block_cost(spec, rate)
    macs = RESOURCES["macs"]
    used = {keep: macs.used(EdgeRoute(kept, kept.float()).usage(), cost) for keep, kept in masks.items()}
    return variants(settings, run), {keep: float(macs) / cost.macs for keep, macs in used.items()}


def variants(settings: Settings, run: Callable[..., Callable]) -> Runs:
    """Dense once, then every mode at every keep ratio."""
    runs: Runs = {"dense": run(None)}
    if not settings.no_compile:
        runs["dense compiled"] = run(None, on=True)
    for keep in settings.keep:
        runs[f"masked {keep}"] = run(keep, packed=False)
        runs[f"packed {keep}"] = run(keep)
        if settings.rows == "token":
            runs[f"capacity {keep}"] = run(keep, capacity=True)
        if not settings.no_compile:
            runs[f"compiled {keep}"] = run(keep, on=True)
    return runs


def drawn(settings: Settings, net: TaskNet, images: torch.Tensor, keep: float) -> list[Routes]:
    """Decisions for every call of a variant."""
    return [Routes.random(net, images, keep=keep, seed=call) for call in range(WARM_UP + settings.rounds)]


def counted_share(architecture: Architecture, routes: Routes) -> float:
    """What is paid of all MACs, by the cost model."""
    usage = {name: EdgeUsage(*map(float, used)) for name, used in routes.usage().items()}
    return float(architecture_cost(architecture, usage=usage).macs) / float(architecture_cost(architecture).macs)


def net_runs(settings: Settings, architecture: Architecture, *, batch: int, train: bool) -> tuple[Runs, Counted]:
    """The staircase with gated rows, in every mode, replaying random decisions."""
    spec = architecture.spec
    gates = GateSpec(rows=settings.rows, window=square(settings, spec), keys=settings.keys)
    net = TaskNet.classifier(architecture, gates).to(settings.device, settings.dtype).train(train)
    equal = (
        TaskNet.classifier(architecture, GateSpec(capacity=True, keys=settings.keys))
        .to(settings.device, settings.dtype)
        .train(train)
    )
    equal.load_state_dict(net.state_dict())
    images = torch.randn(batch, spec.in_channels, *spec.image_size, device=settings.device, dtype=settings.dtype)

    def run(
        keep: float | None, *, packed: bool = True, capacity: bool = False, on: bool = False, auto: bool = False
    ) -> Callable:
        part = Architecture.staircase(architecture.grid) if keep is None else architecture
        model = (equal if capacity else net).restrict(part)  # with settings of its own
        model.compile_blocks(on).decide(execution="auto" if auto else "packed" if packed else "dense")
        routes = cycle([None] if keep is None else drawn(settings, model, images, keep))

        def forward() -> torch.Tensor:
            return model(images, routes=next(routes)).logits

        return stepped(model, forward, train)

    graphs = (
        settings.device.type == "cuda" and settings.family == "pvt_v2" and not train and settings.rows == "token"
    )
    runs, counted = variants(settings, run), {}
    for keep in settings.keep:
        runs[f"auto {keep}"] = run(keep, auto=True)
        counted[keep] = statistics.median(
            counted_share(architecture, r) for r in drawn(settings, net, images, keep)[WARM_UP:]
        )
        if graphs:
            runs[f"capacity graph {keep}"] = graphed(run(keep, capacity=True))
    oracle = timm.create_model(TIMM[settings.preset]).to(settings.device, settings.dtype).train(train)
    called = torch.compile(oracle) if settings.device.type == "cuda" and not settings.no_compile else oracle
    runs["timm"] = stepped(oracle, lambda: called(images), train)
    return runs, counted


def flops(run: Callable[[], object]) -> int:
    """What torch counts in one call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
