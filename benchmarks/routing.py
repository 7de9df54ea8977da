"""What a routed block and a routed network take, as ratios to the same one dense, measured in one run.

    python benchmarks/routing.py [--family pvt_v2] [--batch 1 8] [--what training] [--quick] [--json OUT]
    python benchmarks/routing.py --family swin_v2 [--rows window] [--keys kept]
    python benchmarks/routing.py --device cuda --dtype bf16 --batch 256 512 --clock wall

Columns: `masked` computes everything and masks; `packed`, `auto` and `capacity` (top-k, equal counts) are eager,
all ÷ dense eager; `compiled` is packed ÷ dense, both with compiled blocks (pvt_v2). The last two are shares of
MACs: `ideal`, counted by the cost model, with keys and values of all tokens paid, and `run`, those really run. For
swin_v2 torch counts `run` in the packed call. It is less, as a window without a kept token runs nothing. For
pvt_v2, whose packed convolution torch does not count, `run` is `ideal`.

Rows are decided per token, or per square of a window's side (without `capacity`; the default for swin_v2, which is
timed with one block and with two, the second one's windows shifted). A block's mask keeps an exact share of the
batch's squares, but at least one; a network's decisions are drawn one by one.

Every variant runs once in every round, so that a busy machine slows them alike; numbers are medians. A network
gets new decisions in each call, as new images would bring them. On a CPU the clock is the processor time of the
thread (--clock wall for the other one), with one thread and with malloc told to keep its memory, without which
large maps are paid for page by page. `--products torch` leaves all matrix products to torch, as where MKL knows
the processor: on others they take half the time (`routespace.nn.kernels.linear`), and what is left weighs more.
timm's network runs in the same rounds (compiled on CUDA), and a line tells everything as shares of its time; on
CUDA `capacity` is also captured as a CUDA graph (of one decision).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import cycle, product
from pathlib import Path

import timm
import torch
from record import record
from torch.utils.flop_counter import FlopCounterMode

from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.gate_spec import GateSpec, gate_places
from routespace.grid.graph import RoutingGrid
from routespace.grid.resources import RESOURCES
from routespace.grid.spec import GridSpec
from routespace.grid.usage import EdgeUsage
from routespace.memory import keep_freed_memory
from routespace.nn.families.base import modules_of
from routespace.nn.families.compiled import compile_blocks
from routespace.nn.kernels.linear import onednn_is_used, products
from routespace.nn.packing.keep import KeptTokens
from routespace.nn.packing.maps import spread
from routespace.nn.routing.routes import EdgeRoute, Routes
from routespace.nn.task_net import TaskNet

PRESETS = {"pvt_v2": "pvt_v2_b2", "swin_v2": "swin_v2_t"}
QUICK = PRESETS | {"pvt_v2": "pvt_v2_b0"}
TIMM = {"pvt_v2_b2": "pvt_v2_b2", "pvt_v2_b0": "pvt_v2_b0", "swin_v2_t": "swinv2_tiny_window8_256"}
WARM_UP = 2  # calls of each variant that are not timed
TILE = 8  # side of a square of tokens where the family has no windows
MODES = ("masked", "packed", "auto", "capacity", "compiled")
COLUMNS = (*MODES, "ideal", "run")
Runs = dict[str, Callable[[], object]]
Counted = dict[float, float]  # keep ratio → share of MACs by the cost model


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="pvt_v2", choices=PRESETS)
    parser.add_argument("--rows", choices=("token", "window"), help="default: token for pvt_v2, else window")
    parser.add_argument("--keys", choices=("all", "kept"), default="all", help="what skipped tokens are as keys")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--keep", type=float, nargs="+", default=[1.0, 0.75, 0.5, 0.25])
    parser.add_argument("--products", default="auto", choices=("auto", "torch"), help="who multiplies matrices")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu", help="processor time, or the clock")
    parser.add_argument("--what", nargs="+", choices=("inference", "training"), default=["inference", "training"])
    parser.add_argument("--no-blocks", action="store_true", help="the whole network alone")
    parser.add_argument("--no-compile", action="store_true", help="eager alone: starts in seconds")
    parser.add_argument("--quick", action="store_true", help="three rounds, batch 1, keep .5 and .25, size b0")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.batch, args.keep = 3, [1], [0.5, 0.25]
    args.rows = args.rows or ("token" if args.family == "pvt_v2" else "window")
    args.no_compile |= args.family == "swin_v2"  # it has no compiled steps
    return args


ARGS = arguments()
DEVICE = torch.device(ARGS.device)
DTYPE = torch.float32 if ARGS.dtype == "fp32" else torch.bfloat16


def preset_name() -> str:
    """What is measured."""
    return (QUICK if ARGS.quick else PRESETS)[ARGS.family]


def seconds(run: Callable[[], object]) -> float:
    """The time of one call."""
    on_cpu = DEVICE.type == "cpu"
    clock = time.thread_time if on_cpu and ARGS.clock == "cpu" else time.perf_counter
    settle = (lambda: None) if on_cpu else torch.cuda.synchronize
    settle()
    start = clock()
    run()
    settle()
    return clock() - start


def medians(runs: Runs) -> dict[str, float]:
    """Milliseconds of each run, interleaved, after the calls that warm up."""
    for run in [*runs.values()] * WARM_UP:
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _, (name, run) in product(range(ARGS.rounds), runs.items()):
        times[name].append(seconds(run) * 1e3)
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


def square(spec: GridSpec) -> int:
    """Side of the squares of tokens that are decided together."""
    window = spec.shape.own.get("window")
    return 1 if ARGS.rows == "token" else window if isinstance(window, int) else TILE


def random_mask(spec: GridSpec, rate: int, batch: int, keep: float, *, capacity: bool) -> torch.Tensor:
    """(B, N) bool, an exact share of the squares: of the batch, or with `capacity` of each image."""
    hw, side = spec.map_size(rate), square(spec)
    draw = torch.rand(batch, gate_places("window", hw, side), device=DEVICE)
    ranked = draw if capacity else draw.view(1, -1)
    best = ranked.topk(max(1, round(keep * ranked.shape[1]))).indices
    return spread(torch.zeros_like(ranked).scatter_(1, best, 1.0).view_as(draw) > 0, hw, side)


def block_runs(spec: GridSpec, rate: int, depth: int, batch: int, train: bool) -> tuple[Runs, Counted]:
    """`depth` blocks of a rate in every mode; index tables are made anew in each call."""
    hw, width = spec.map_size(rate), spec.width(rate)
    stage = modules_of(spec.family).stage(spec, rate, depth).to(DEVICE, DTYPE).train(train)
    x = torch.randn(batch, hw[0] * hw[1], width, device=DEVICE, dtype=DTYPE, requires_grad=train)
    masks = {keep: random_mask(spec, rate, batch, keep, capacity=False) for keep in ARGS.keep}

    def run(keep: float | None, *, packed: bool = True, capacity: bool = False, on: bool = False) -> Callable:
        kept = random_mask(spec, rate, batch, keep, capacity=True) if capacity else masks.get(keep)
        count = int(kept[0].sum()) if capacity else None

        def forward() -> torch.Tensor:
            compile_blocks(stage, on)
            if kept is None:
                return stage(x, hw, packed=packed)
            keep = KeptTokens(kept, hw, per_image=count, sees_kept=ARGS.keys == "kept")
            return stage(x, hw, keep, packed=packed)

        return stepped(stage, forward, train)

    cost = spec.family.block_cost(spec, rate)
    macs = RESOURCES["macs"]
    used = {keep: macs.used(EdgeRoute(kept, kept.float()).usage(), cost) for keep, kept in masks.items()}
    return variants(run), {keep: float(macs) / cost.macs for keep, macs in used.items()}


def variants(run: Callable[..., Callable]) -> Runs:
    """Dense once, then every mode at every keep ratio."""
    runs: Runs = {"dense": run(None)}
    if not ARGS.no_compile:
        runs["dense compiled"] = run(None, on=True)
    for keep in ARGS.keep:
        runs[f"masked {keep}"] = run(keep, packed=False)
        runs[f"packed {keep}"] = run(keep)
        if ARGS.rows == "token":
            runs[f"capacity {keep}"] = run(keep, capacity=True)
        if not ARGS.no_compile:
            runs[f"compiled {keep}"] = run(keep, on=True)
    return runs


def drawn(net: TaskNet, images: torch.Tensor, keep: float) -> list[Routes]:
    """Decisions for every call of a variant."""
    return [Routes.random(net, images, keep=keep, seed=call) for call in range(WARM_UP + ARGS.rounds)]


def counted_share(architecture: Architecture, routes: Routes) -> float:
    """What is paid of all MACs, by the cost model."""
    usage = {name: EdgeUsage(*map(float, used)) for name, used in routes.usage().items()}
    return float(architecture_cost(architecture, usage=usage).macs) / float(architecture_cost(architecture).macs)


def net_runs(architecture: Architecture, batch: int, train: bool) -> tuple[Runs, Counted]:
    """The staircase with gated rows, in every mode, replaying random decisions."""
    spec = architecture.spec
    gates = GateSpec(rows=ARGS.rows, window=square(spec), keys=ARGS.keys)
    net = TaskNet.classifier(architecture, gates).to(DEVICE, DTYPE).train(train)
    equal = (
        TaskNet.classifier(architecture, GateSpec(capacity=True, keys=ARGS.keys)).to(DEVICE, DTYPE).train(train)
    )
    equal.load_state_dict(net.state_dict())
    plain = net.restrict(Architecture.staircase(architecture.grid))
    images = torch.randn(batch, spec.in_channels, *spec.image_size, device=DEVICE, dtype=DTYPE)

    def run(
        keep: float | None, *, packed: bool = True, capacity: bool = False, on: bool = False, auto: bool = False
    ) -> Callable:
        model = plain if keep is None else equal if capacity else net
        routes = cycle([None] if keep is None else drawn(model, images, keep))

        def forward() -> torch.Tensor:
            compile_blocks(model, on)
            model.decide(execution="auto" if auto else "packed" if packed else "dense")
            return model(images, routes=next(routes)).logits

        return stepped(model, forward, train)

    graphs = DEVICE.type == "cuda" and ARGS.family == "pvt_v2" and not train and ARGS.rows == "token"
    runs, counted = variants(run), {}
    for keep in ARGS.keep:
        runs[f"auto {keep}"] = run(keep, auto=True)
        counted[keep] = statistics.median(
            counted_share(architecture, r) for r in drawn(net, images, keep)[WARM_UP:]
        )
        if graphs:
            runs[f"capacity graph {keep}"] = graphed(run(keep, capacity=True))
    oracle = timm.create_model(TIMM[preset_name()]).to(DEVICE, DTYPE).train(train)
    called = torch.compile(oracle) if DEVICE.type == "cuda" and not ARGS.no_compile else oracle
    runs["timm"] = stepped(oracle, lambda: called(images), train)
    return runs, counted


def flops(run: Callable[[], object]) -> int:
    """What torch counts in one call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def report(what: str, runs: Runs, counted: Counted) -> list[dict]:
    """Measure, print one line per keep ratio, return the numbers."""
    ms = medians(runs)
    rows = []
    base, compiled_base = ms["dense"], ms.get("dense compiled")
    for keep in ARGS.keep:
        row = {"what": what, "keep": keep, "dense_ms": base, "dense_compiled_ms": compiled_base}
        for mode in (*MODES, "capacity graph"):
            found = ms.get(f"{mode} {keep}")
            reference = compiled_base if mode in ("compiled", "capacity graph") and compiled_base else base
            row[mode] = None if found is None else found / reference
        row["ideal"] = row["run"] = counted[keep]
        if ARGS.family == "swin_v2":
            calls = [flops(runs[f"packed {keep}"]) for _ in range(WARM_UP + ARGS.rounds)]  # once around
            row["run"] = statistics.median(calls[WARM_UP:]) / flops(runs["dense"])
        ratios = " ".join("       –" if row[key] is None else f"{row[key]:8.3f}" for key in COLUMNS)
        print(f"{what:28s} {keep:5.2f} {base:9.1f} {compiled_base or float('nan'):9.1f}  {ratios}", flush=True)
        row["timm_ms"] = ms.get("timm")
        if row["capacity graph"] is not None:
            print(f"{'':28s} capacity graph: {row['capacity graph']:.3f}")
        rows.append(row)
    if "timm" in ms:
        shares = ", ".join(f"{name} {found / ms['timm']:.3f}" for name, found in ms.items() if name != "timm")
        print(f"{'':28s} timm takes {ms['timm']:.1f} ms; shares of that: {shares}")
    return rows


def main() -> None:
    """Measure everything that was asked for."""
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    preset = preset_name()
    spec = GridSpec.preset(preset)
    architecture = Architecture.routed(RoutingGrid(spec), "depth")
    clock = ARGS.clock if DEVICE.type == "cpu" else "wall"
    print(f"{preset} at {spec.image_size[0]}², {DEVICE}, {ARGS.dtype}, {clock} clock, {ARGS.rounds} rounds")
    faster = "oneDNN for large ones" if onednn_is_used() else "torch"
    print(f"decisions per {ARGS.rows}, keys: {ARGS.keys}, products: {faster}")
    heads = " ".join(f"{head:>8s}" for head in COLUMNS)
    print(f"{'':28s} {'keep':>5s} {'dense ms':>9s} {'compiled':>9s}  {heads}")
    rows: list[dict] = []
    depths = () if ARGS.no_blocks else (1, 2) if ARGS.family == "swin_v2" else (1,)
    for what, batch in product(ARGS.what, ARGS.batch):
        train = what == "training"
        suffix = f"B={batch}" + (" train" if train else "")
        for rate, depth in product(spec.rates, depths):
            blocks = "block" if depth == 1 else f"{depth} blocks"
            rows += report(f"{blocks}, rate {rate}, {suffix}", *block_runs(spec, rate, depth, batch, train))
        rows += report(f"network, {suffix}", *net_runs(architecture, batch, train))
    if ARGS.json:
        settings = {
            "what": "routing", "preset": preset, "dtype": ARGS.dtype, "clock": clock, "rounds": ARGS.rounds,
            "rows_per": ARGS.rows, "keys": ARGS.keys, "products": faster,
        }  # fmt: skip
        record(ARGS.json, DEVICE.type, settings | {"rows": rows})


if __name__ == "__main__":
    with products(ARGS.products):
        main()
