"""Predicted against measured latency of random subnets, static or routed.

    python benchmarks/latency.py [--preset dit_b0] [--image-size 224] [--batch 1] [--subnets 50] [--clock cpu]
    python benchmarks/latency.py --routed …

Profiles a grid, then measures subnets that the calibration has not seen, in turn with the ones it has. The
machine's speed between the two sessions is brought to one by the known subnets (both numbers are printed).
Goal: 5 % at the median and 12 % at the 95th percentile.

`--routed` puts a gate at each row of these subnets and adds the whole supernet. Each runs packed, with random
decisions replayed and with its own gates at several thresholds, and is predicted from the usage of that very pass.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from routespace.deploy.latency.bench import Bench, Work
from routespace.deploy.latency.profiling import median_ms, profile
from routespace.deploy.latency.table import LatencyTable, predict
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.sample import sample_static
from routespace.grid.spec import GridSpec
from routespace.grid.usage import Usage
from routespace.memory import keep_freed_memory
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import TaskNet, TaskOutput

ANCHORS = 12  # known subnets that tell the machine's speed
SHARES = (0.05, 0.1, 0.25, 0.5, 0.75)  # of computed tokens


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
    parser.add_argument("--routed", action="store_true", help="networks with gates, at several shares of tokens")
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
    grid, gates = grid_of(args), GateSpec() if args.routed else None
    start = time.perf_counter()
    table = profile(
        grid,
        device=args.device,
        batch=args.batch,
        gates=gates,
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
    bench = Bench(
        grid, device=args.device, batch=args.batch, dtype=torch.float32, compiled=args.compile, gates=gates
    )
    with torch.inference_mode():
        (routed if args.routed else static)(args, bench, table)


def unseen(args: argparse.Namespace, table: LatencyTable) -> tuple[list[Architecture], list[Architecture]]:
    """Static subnets that the calibration has not seen, and those that it has."""
    known = [Architecture(table.spec, dict.fromkeys(net.edges, "open")) for net in table.subnets]
    fresh = sample_static(RoutingGrid(table.spec), args.subnets + len(known), seed=1)
    return [a for a in fresh if a not in set(known)][: args.subnets], known[:ANCHORS]


def timed(
    args: argparse.Namespace,
    bench: Bench,
    table: LatencyTable,
    works: dict[object, Work],
    known: list[Architecture],
) -> tuple[dict[object, float], float]:
    """Milliseconds of each piece of work, and the machine's speed since the profile, by the known subnets."""
    both = works | {architecture: bench.subnet(architecture) for architecture in known}
    place = torch.device(args.device)
    times = dict(
        zip(both, median_ms(list(both.values()), rounds=args.rounds, clock=args.clock, device=place), strict=True)
    )
    drift = float(np.median([times[a] / net.ms for a, net in zip(known, table.subnets, strict=False)] or [1.0]))
    measured = [times[name] for name in works]
    print(f"measured {min(measured):.2f} to {max(measured):.2f} ms; machine's speed since the profile {drift:.3f}")
    return times, drift


def static(args: argparse.Namespace, bench: Bench, table: LatencyTable) -> None:
    """Static subnets."""
    fresh, known = unseen(args, table)
    times, drift = timed(args, bench, table, {a: bench.subnet(a) for a in fresh}, known)
    measured = np.array([times[a] for a in fresh])
    plain = table.model_copy(update={"factors": {}, "offset_ms": 0.0})
    macs = np.array([architecture_cost(a).macs for a in fresh])
    header()
    row("table", np.array([predict(table, a) for a in fresh]), measured)
    row("table, at the machine's speed now", drift * np.array([predict(table, a) for a in fresh]), measured)
    row("sum of parts, without calibration", drift * np.array([predict(plain, a) for a in fresh]), measured)
    row("MACs times one factor", macs * np.median(measured / macs), measured)


@dataclass(frozen=True)
class Pass:
    """One way of running a routed network.

    Attributes:
        way: `replayed` decisions, drawn at random (no gate is asked), or its `own` gates.
        share: of the tokens that a row computes: as drawn; about so for own gates, whose threshold is set to it.
        usage: what it computes.
        work: the run.
    """

    way: str
    share: float
    architecture: Architecture
    usage: Usage
    work: Work


def routed(args: argparse.Namespace, bench: Bench, table: LatencyTable) -> None:
    """Networks whose rows are gated, and the supernet, at several shares of computed tokens."""
    fresh, known = unseen(args, table)
    architectures = [*(gated_rows(a) for a in fresh), Architecture.full(bench.grid)]
    passes = [one for architecture in architectures for one in passes_of(bench, architecture)]
    works: dict[object, Work] = {number: one.work for number, one in enumerate(passes)}
    times, drift = timed(args, bench, table, works, known)
    no_gates = timeless_gates(table)
    header()
    for way in ("replayed", "own"):
        for share in SHARES:
            chosen = [n for n, one in enumerate(passes) if (one.way, one.share) == (way, share)]
            measured = np.array([times[n] for n in chosen])
            for what, used in (("", table), *(((", without gates' time", no_gates),) if way == "own" else ())):
                found = [predict(used, passes[n].architecture, passes[n].usage) for n in chosen]
                row(f"{way}, share {share:g}{what}", drift * np.array(found), measured)


def gated_rows(architecture: Architecture) -> Architecture:
    """A static network with a gate at each of its transformers."""
    rows = [architecture.grid.edges[name] for name in architecture.edges if name.endswith("transformer")]
    names = {edge.name for edge in rows} | {str(edge.partner) for edge in rows}
    return Architecture(architecture.spec, {**architecture.edges, **dict.fromkeys(names, "gated")})


def passes_of(bench: Bench, architecture: Architecture) -> list[Pass]:
    """A network with decisions replayed, and with its own gates at thresholds that let about a share through."""
    net, images = bench.net(architecture), bench.images()
    net.decide(gates=bench.gates.model_copy(update={"threshold": 0.0}))
    chances = [r.chance.flatten() for r in net(images).routes.values() if r.chance is not None]
    found = []
    for share in SHARES:
        routes = Routes.random(net, images, keep=share)
        replay = partial(net, images, routes=routes)
        found.append(Pass("replayed", share, architecture, replay().routes.usage(), replay))
        spec = bench.gates.model_copy(update={"threshold": float(torch.cat(chances).quantile(1 - share))})
        decide = partial(run_at, net, images, spec)
        found.append(Pass("own", share, architecture, decide().routes.usage(), decide))
    return found


def run_at(net: TaskNet, images: torch.Tensor, gates: GateSpec) -> TaskOutput:
    """A pass with the gates at another threshold."""
    return net.decide(gates=gates)(images)


def timeless_gates(table: LatencyTable) -> LatencyTable:
    """The table with gates that take no time."""
    parts = [part.model_copy(update={"ms": 0.0}) if "gate" in part.kind else part for part in table.parts]
    return table.model_copy(update={"parts": tuple(parts)})


def header() -> None:
    """What `row` prints."""
    print(f"{'prediction':<40}{'median':>8}{'p95':>8}{'worst':>8}{'bias':>8}")


def row(name: str, predicted: np.ndarray, measured: np.ndarray) -> None:
    """Relative errors, and the median of predicted over measured as a bias."""
    error, bias = np.abs(predicted / measured - 1), np.median(predicted / measured) - 1
    print(f"{name:<40}{np.median(error):>8.1%}{np.quantile(error, 0.95):>8.1%}{error.max():>8.1%}{bias:>+8.1%}")


if __name__ == "__main__":
    main()
