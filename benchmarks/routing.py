"""What a routed block and a routed network take, as ratios to the same one dense, measured in one run.

    python benchmarks/routing.py [--family pvt_v2] [--batch 1 8] [--what training] [--quick] [--json OUT]
    python benchmarks/routing.py --device cuda --dtype bf16 --batch 256 512 --clock wall

Columns: `masked` computes everything and masks; `packed`, `auto` and `capacity` (top-k, equal counts) are eager,
all ÷ dense eager; `compiled` is packed ÷ dense, both with compiled blocks; `ideal` is the share of MACs. Every
variant runs once in every round, so that a busy machine slows them alike; numbers are medians. On a CPU the
clock is the processor time of the thread (--clock wall for the other one), with one thread and with malloc told
to keep its memory, without which large maps are paid for page by page. On CUDA timm's compiled pvt_v2_b2 runs
in the same rounds, and `capacity` is also captured as a CUDA graph.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.grid.usage import EdgeUsage
from routespace.memory import keep_freed_memory
from routespace.nn.compiled import compile_blocks
from routespace.nn.packing import Keep
from routespace.nn.route_net import RouteNet
from routespace.nn.routes import Routes

PRESETS = {"pvt_v2": "pvt_v2_b2", "swin_v2": "swin_v2_t"}
KEEPS = (1.0, 0.75, 0.5, 0.25)
Runs = dict[str, Callable[[], object]]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="pvt_v2", choices=PRESETS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--keep", type=float, nargs="+", default=list(KEEPS))
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
    return args


ARGS = arguments()
DEVICE = torch.device(ARGS.device)
DTYPE = torch.float32 if ARGS.dtype == "fp32" else torch.bfloat16


def seconds(run: Callable[[], object]) -> float:
    """The time of one call."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    clock = time.thread_time if ARGS.clock == "cpu" else time.perf_counter
    start = clock()
    run()
    return clock() - start


def medians(runs: Runs) -> dict[str, float]:
    """Milliseconds of each run, interleaved, after two calls to warm up."""
    for run in runs.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ARGS.rounds):
        for name, run in runs.items():
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


def block_runs(spec: GridSpec, rate: int, batch: int, train: bool) -> Runs:
    """One block of a rate in every mode; index tables are made anew in each call."""
    (h, w), width = spec.map_size(rate), spec.width(rate)
    stage = spec.block_family.modules().Stage(spec, rate, 1).to(DEVICE, DTYPE).train(train)
    x = torch.randn(batch, h * w, width, device=DEVICE, dtype=DTYPE, requires_grad=train)

    def run(keep: float | None, *, packed: bool = True, capacity: bool = False, on: bool = False) -> Callable:
        draw = torch.rand(batch, h * w, device=DEVICE)
        count = max(1, round((keep or 1) * h * w))
        if capacity:
            kept = torch.zeros_like(draw).scatter_(1, draw.topk(count).indices, 1.0) > 0
        else:
            kept = draw < (keep or 1)

        def forward() -> torch.Tensor:
            compile_blocks(stage, on)
            if keep is None:
                return stage(x, (h, w))
            return stage(x, (h, w), Keep(kept, (h, w), None, count if capacity else None), packed=packed)

        return stepped(stage, forward, train)

    return variants(run)


def variants(run: Callable[..., Callable]) -> Runs:
    """Dense once, then every mode at every keep ratio."""
    runs: Runs = {"dense": run(None)}
    if not ARGS.no_compile:
        runs["dense compiled"] = run(None, on=True)
    for keep in ARGS.keep:
        runs[f"masked {keep}"] = run(keep, packed=False)
        runs[f"packed {keep}"] = run(keep)
        runs[f"capacity {keep}"] = run(keep, capacity=True)
        if not ARGS.no_compile:
            runs[f"compiled {keep}"] = run(keep, on=True)
    return runs


def net_runs(architecture: Architecture, batch: int, train: bool) -> Runs:
    """The staircase with gated rows, in every mode, replaying random decisions."""
    net = RouteNet(architecture).to(DEVICE, DTYPE).train(train)
    equal = RouteNet(architecture, GateSpec(capacity=True)).to(DEVICE, DTYPE).train(train)
    equal.load_state_dict(net.state_dict())
    plain = net.restrict(Architecture.staircase(architecture.grid))
    height, width = architecture.spec.image_size
    images = torch.randn(batch, architecture.spec.in_channels, height, width, device=DEVICE, dtype=DTYPE)

    def run(
        keep: float | None, *, packed: bool = True, capacity: bool = False, on: bool = False, auto: bool = False
    ) -> Callable:
        model = plain if keep is None else equal if capacity else net
        routes = None if keep is None else Routes.random(model, images, keep=keep)

        def forward() -> torch.Tensor:
            compile_blocks(model, on)
            model.execution = "auto" if auto else "packed" if packed else "dense"
            return model(images, routes=routes).logits

        return stepped(model, forward, train)

    runs = variants(run)
    for keep in ARGS.keep:
        runs[f"auto {keep}"] = run(keep, auto=True)
        if DEVICE.type == "cuda" and not train:
            runs[f"capacity graph {keep}"] = graphed(run(keep, capacity=True))
    if DEVICE.type == "cuda" and ARGS.family == "pvt_v2" and not ARGS.no_compile:
        import timm

        oracle = torch.compile(timm.create_model("pvt_v2_b2").to(DEVICE, DTYPE).train(train))
        runs["timm compiled"] = stepped(oracle, lambda: oracle(images), train)
    return runs


def net_ideal(architecture: Architecture, keep: float) -> float:
    """Share of MACs at a keep ratio."""
    rows = [name for name in architecture.gated_edges if name.endswith("transformer")]
    usage = dict.fromkeys(rows, EdgeUsage(tokens=keep))
    return architecture_cost(architecture, usage=usage).macs / architecture_cost(architecture).macs


def report(what: str, runs: Runs, ideal: Callable[[float], float]) -> list[dict]:
    """Measure, print one line per keep ratio, return the numbers."""
    ms = medians(runs)
    rows = []
    base, compiled_base = ms["dense"], ms.get("dense compiled")
    for keep in ARGS.keep:
        row = {"what": what, "keep": keep, "dense_ms": base, "dense_compiled_ms": compiled_base}
        for mode in ("masked", "packed", "auto", "capacity", "capacity graph", "compiled"):
            found = ms.get(f"{mode} {keep}")
            reference = compiled_base if mode in ("compiled", "capacity graph") and compiled_base else base
            row[mode] = None if found is None else found / reference
        row["ideal"] = ideal(keep)
        if "timm compiled" in ms:
            row["timm_compiled_ms"] = ms["timm compiled"]
        rows.append(row)
        ratios = (row[mode] for mode in ("masked", "packed", "auto", "capacity", "compiled", "ideal"))
        print(
            f"{what:28s} {keep:5.2f} {base:9.1f} {compiled_base or float('nan'):9.1f}  "
            + " ".join("      –" if ratio is None else f"{ratio:7.3f}" for ratio in ratios),
            flush=True,
        )
        for extra in ("capacity graph", "timm_compiled_ms"):
            if row.get(extra) is not None:
                print(f"{'':28s} {extra}: {row[extra]:.3f}")
    return rows


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.processor()


def main() -> None:
    """Measure everything that was asked for."""
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    preset = PRESETS[ARGS.family] if not ARGS.quick else {"pvt_v2": "pvt_v2_b0"}.get(ARGS.family, "swin_v2_t")
    spec = GridSpec.preset(preset)
    architecture = Architecture.routed(RoutingGrid(spec), "depth")
    clock = ARGS.clock if DEVICE.type == "cpu" else "wall"
    print(f"{preset} at {spec.image_size[0]}², {DEVICE}, {ARGS.dtype}, {clock} clock, {ARGS.rounds} rounds")
    heads = ("masked", "packed", "auto", "capac.", "compil.", "ideal")
    print(f"{'':28s} {'keep':>5s} {'dense ms':>9s} {'compiled':>9s}  " + " ".join(f"{h:>7s}" for h in heads))
    rows: list[dict] = []
    for train in [what == "training" for what in ARGS.what]:
        for batch in ARGS.batch:
            suffix = f"B={batch}" + (" train" if train else "")
            for rate in () if ARGS.no_blocks else spec.rates:
                cost = spec.block_family.block_cost(spec, rate)
                runs = block_runs(spec, rate, batch, train)
                share = lambda keep, c=cost: (c.fixed_macs + keep * c.routed_macs) / c.macs  # noqa: E731
                rows += report(f"block, rate {rate}, {suffix}", runs, share)
            runs = net_runs(architecture, batch, train)
            rows += report(f"network, {suffix}", runs, lambda keep: net_ideal(architecture, keep))
    if ARGS.json:
        head = {
            "what": "routing", "preset": preset, "dtype": ARGS.dtype, "clock": clock, "rounds": ARGS.rounds,
            "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else processor(),
            "load": os.getloadavg(), "torch": torch.__version__, "python": platform.python_version(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        ARGS.json.parent.mkdir(parents=True, exist_ok=True)
        ARGS.json.write_text(json.dumps(head | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
