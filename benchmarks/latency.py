"""Predicted against measured latency of random static subnets.

    python benchmarks/latency.py [--preset dit_b0] [--image-size 224] [--batch 1] [--subnets 50] [--clock cpu]

Profiles a grid, then measures subnets that the calibration has not seen, in turn with the ones it has. The
machine's speed between the two sessions is brought to one by the known subnets (both numbers are printed).
Goal: 5 % at the median and 12 % at the 95th percentile.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from routespace.deploy.latency import predict
from routespace.deploy.profiling import Bench, measure, profile
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.graph import RoutingGrid
from routespace.grid.sample import sample_static
from routespace.grid.spec import GridSpec
from routespace.memory import keep_freed_memory


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="dit_b0")
    parser.add_argument("--layers", type=int, help="a grid of so many layers of depth 1, in b0 widths")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--subnets", type=int, default=50)
    parser.add_argument("--known", type=int, default=24, help="subnets that the table is calibrated with")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", default="wall", help="cpu: processor time of the thread, for busy machines")
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


def grid_of(args: argparse.Namespace) -> RoutingGrid:
    """The grid that was asked for."""
    if args.layers:
        return RoutingGrid(GridSpec.parse({"layers": args.layers, "size": "b0", "image_size": args.image_size}))
    return RoutingGrid(GridSpec.preset(args.preset, image_size=args.image_size))


def main() -> None:
    """Measure and print."""
    args = arguments()
    keep_freed_memory()
    torch.set_num_threads(1)
    grid = grid_of(args)
    start = time.perf_counter()
    table = profile(
        grid,
        device=args.device,
        batch=args.batch,
        rounds=args.rounds,
        subnets=args.known,
        clock=args.clock,
        compiled=args.compile,
    )
    print(f"{table.device.name}, torch {torch.__version__}, {args.device}, batch {args.batch}, {args.clock} clock")
    print(
        f"{grid}: {len(table.parts)} parts and {len(table.subnets)} subnets in {time.perf_counter() - start:.0f} s"
    )
    print("factors  " + "  ".join(f"{name} {value:.3f}" for name, value in table.factors.items()))
    print(f"offset   {table.offset_ms:.3f} ms")

    known = [Architecture(grid.spec, dict.fromkeys(net.edges, "open")) for net in table.subnets]
    fresh = [a for a in sample_static(grid, args.subnets + len(known), seed=1) if a not in set(known)]
    fresh = fresh[: args.subnets]
    bench = Bench(grid, args.device, args.batch, torch.float32, args.compile)
    with torch.inference_mode():
        works = {architecture: bench.subnet(architecture) for architecture in [*fresh, *known[:12]]}
        times = measure(works, rounds=args.rounds, clock=args.clock, cuda=args.device == "cuda")
    measured = np.array([times[a] for a in fresh])
    drift = float(np.median([times[a] / net.ms for a, net in zip(known[:12], table.subnets, strict=False)]))
    plain = table.model_copy(update={"factors": {}, "offset_ms": 0.0})
    macs = np.array([architecture_cost(a).macs for a in fresh])
    print(
        f"measured {measured.min():.2f} to {measured.max():.2f} ms; machine's speed since the profile {drift:.3f}"
    )
    print(f"{'prediction':<38}{'median':>8}{'p95':>8}{'worst':>8}")
    for name, values in {
        "table": np.array([predict(table, a) for a in fresh]),
        "table, at the machine's speed now": drift * np.array([predict(table, a) for a in fresh]),
        "sum of parts, without calibration": drift * np.array([predict(plain, a) for a in fresh]),
        "MACs times one factor": macs * np.median(measured / macs),
    }.items():
        error = np.abs(values / measured - 1)
        print(f"{name:<38}{np.median(error):>8.1%}{np.quantile(error, 0.95):>8.1%}{error.max():>8.1%}")


if __name__ == "__main__":
    main()
