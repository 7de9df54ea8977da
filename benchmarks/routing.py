"""What a routed block and a routed network take, as ratios to the same one dense, measured in one run.

    python benchmarks/routing.py [--family pvt_v2] [--batch 1 8] [--what training] [--quick] [--json OUT]
    python benchmarks/routing.py --family swin_v2 [--rows window] [--keys kept]
    python benchmarks/routing.py --device cuda --dtype bf16 --batch 256 512 --clock wall

Columns: `masked` computes everything and masks; `packed`, `auto` and `capacity` (top-k, equal counts) are eager,
all ÷ dense eager; `compiled` is packed ÷ dense, both with compiled blocks (pvt_v2). `best` is the figure that
counts: the fastest routed mode ÷ the fastest dense one, which are named at the end of the line. The last two are
shares of MACs: `ideal`, counted by the cost model, with keys and values of all tokens paid, and `run`, those
really run. For swin_v2 torch counts `run` in the packed call. It is less, as a window without a kept token runs
nothing. For pvt_v2, whose packed convolution torch does not count, `run` is `ideal`.

Rows are decided per token, or per square of a window's side (without `capacity`; the default for swin_v2, which is
timed with one block and with two, the second one's windows shifted). A block's mask keeps an exact share of the
batch's squares, but at least one; a network's decisions are drawn one by one.

Every variant runs once in every round, so that a busy machine slows them alike, and in random order, so that none
always follows the same one; numbers are medians. A network
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
from itertools import product
from pathlib import Path

import torch
from record import record
from routing_runs import WARM_UP, Counted, Runs, Settings, block_runs, flops, medians, net_runs

from routespace.deploy.latency.device import this_device
from routespace.grid.architecture import Architecture
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.memory import keep_freed_memory
from routespace.nn.kernels.linear import onednn_is_used, products

PRESETS = {"pvt_v2": "pvt_v2_b2", "swin_v2": "swin_v2_t"}
QUICK = PRESETS | {"pvt_v2": "pvt_v2_b0"}
ROUTED = ("masked", "packed", "auto", "compiled")
MODES = ("masked", "packed", "auto", "capacity", "compiled")
COLUMNS = (*MODES, "best", "ideal", "run")


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


def settings_of(args: argparse.Namespace) -> Settings:
    """What the runs have to know of it."""
    return Settings(
        family=args.family,
        preset=(QUICK if args.quick else PRESETS)[args.family],
        device=torch.device(args.device),
        dtype=torch.float32 if args.dtype == "fp32" else torch.bfloat16,
        rows=args.rows,
        keys=args.keys,
        keep=tuple(args.keep),
        rounds=args.rounds,
        clock=args.clock,
        no_compile=args.no_compile,
    )


def fastest(ms: dict[str, float], keep: float) -> tuple[str, str, float]:
    """The fastest mode with everything computed, the fastest routed one, and the second's time ÷ the first's.

    `capacity` decides otherwise, and stands for itself.
    """
    whole = min((name for name in ("dense", "dense compiled") if name in ms), key=ms.__getitem__)
    routed = min((mode for mode in ROUTED if f"{mode} {keep}" in ms), key=lambda mode: ms[f"{mode} {keep}"])
    return whole, routed, ms[f"{routed} {keep}"] / ms[whole]


def report(settings: Settings, what: str, runs: Runs, counted: Counted) -> list[dict]:
    """Measure, print one line per keep ratio, return the numbers."""
    ms = medians(settings, runs)
    rows = []
    base, compiled_base = ms["dense"], ms.get("dense compiled")
    for keep in settings.keep:
        row = {"what": what, "keep": keep, "dense_ms": base, "dense_compiled_ms": compiled_base}
        for mode in (*MODES, "capacity graph"):
            found = ms.get(f"{mode} {keep}")
            reference = compiled_base if mode in ("compiled", "capacity graph") and compiled_base else base
            row[mode] = None if found is None else found / reference
        row["best_dense"], row["best_routed"], row["best"] = fastest(ms, keep)
        row["ideal"] = row["run"] = counted[keep]
        if settings.family == "swin_v2":
            calls = [flops(runs[f"packed {keep}"]) for _ in range(WARM_UP + settings.rounds)]  # once around
            row["run"] = statistics.median(calls[WARM_UP:]) / flops(runs["dense"])
        ratios = " ".join("       –" if row[key] is None else f"{row[key]:8.3f}" for key in COLUMNS)
        modes = f"{row['best_routed']} ÷ {row['best_dense']}"
        print(
            f"{what:28s} {keep:5.2f} {base:9.1f} {compiled_base or float('nan'):9.1f}  {ratios}  {modes}",
            flush=True,
        )
        row["timm_ms"] = ms.get("timm")
        if row["capacity graph"] is not None:
            print(f"{'':28s} capacity graph: {row['capacity graph']:.3f}")
        rows.append(row)
    if "timm" in ms:
        shares = ", ".join(f"{name} {found / ms['timm']:.3f}" for name, found in ms.items() if name != "timm")
        print(f"{'':28s} timm takes {ms['timm']:.1f} ms; shares of that: {shares}")
    return rows


def measure_all(args: argparse.Namespace, settings: Settings) -> list[dict]:
    """Everything that was asked for."""
    spec = GridSpec.preset(settings.preset)
    architecture = Architecture.routed(RoutingGrid(spec), "depth")
    rows: list[dict] = []
    depths = () if args.no_blocks else (1, 2) if settings.family == "swin_v2" else (1,)
    for what, batch in product(args.what, args.batch):
        train = what == "training"
        suffix = f"B={batch}" + (" train" if train else "")
        for rate, depth in product(spec.rates, depths):
            name = f"{'block' if depth == 1 else f'{depth} blocks'}, rate {rate}, {suffix}"
            runs = block_runs(settings, spec, rate, depth=depth, batch=batch, train=train)
            rows += report(settings, name, *runs)
        rows += report(settings, f"network, {suffix}", *net_runs(settings, architecture, batch=batch, train=train))
    return rows


def main() -> None:
    """Measure everything that was asked for, and print it."""
    args = arguments()
    settings = settings_of(args)
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clock = settings.clock if settings.device.type == "cpu" else "wall"
    size = GridSpec.preset(settings.preset).image_size[0]
    with products(args.products):
        faster = "oneDNN for large ones" if onednn_is_used() else "torch"
        print(
            f"{settings.preset} at {size}², {settings.device}, {args.dtype}, {clock} clock, {args.rounds} rounds"
        )
        print(f"{this_device(settings.device, 1).name}, products: {faster}")
        print(f"decisions per {args.rows}, keys: {args.keys}")
        heads = " ".join(f"{head:>8s}" for head in COLUMNS)
        print(f"{'':28s} {'keep':>5s} {'dense ms':>9s} {'compiled':>9s}  {heads}")
        rows = measure_all(args, settings)
    if args.json:
        told = {
            "what": "routing", "preset": settings.preset, "dtype": args.dtype, "clock": clock,
            "rounds": args.rounds, "rows_per": args.rows, "keys": args.keys, "products": faster,
        }  # fmt: skip
        record(args.json, settings.device.type, told | {"rows": rows})


if __name__ == "__main__":
    main()
