"""What routing takes of small networks, whose gates and index tables weigh as much as their blocks.

    python benchmarks/small.py [--keep .33] [--batch 1 8 64] [--training] [--json OUT]

Networks of one block a rate, as in the recipe `digits_map`, with its gates: one map for all rows, from a token and
the statistics of what is around it. Images are noise with a busy square of 14 to 44 of 96 px in it, which the map
follows; each rate's threshold opens the share `--keep` of a batch. The first network is that of the recipe
`digits_sparse` with the shares that halve its MACs. `plain` is the same network with everything computed and no
gates. All is eager, on one thread, interleaved; numbers are medians of processor time.

Columns: `masked`, `packed` and `auto` ÷ plain; `best`, the fastest of the three ÷ plain; `MACs`, counted with the
gates. Above 1 routing makes the network slower. With `--training` a step without the optimiser is timed instead.
The last line tells how many operators one image takes, as torch's profiler counts them, views included.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import cycle, product
from pathlib import Path

import torch
from record import record
from routing_runs import Settings, counted_share, medians, stepped

from routespace.deploy.latency.device import this_device
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.memory import keep_freed_memory
from routespace.nn.routing.deciding import Execution
from routespace.nn.routing.margins import MarginMap, share_cut
from routespace.nn.task_net import TaskNet

Keep = float | tuple[float, ...]  # of each rate
HALF_OF_SPARSE = (0.19, 0.27, 0.35, 0.43)  # by rates, as `digits_sparse` keeps them after training
NETWORKS: tuple[tuple[tuple[int, ...], int, Keep | None], ...] = (
    ((8, 16, 32, 48), 128, HALF_OF_SPARSE),
    ((8, 16, 32, 48), 96, None),
    ((16, 32, 64, 96), 96, None),
    ((16, 32, 64, 96), 192, None),
)
MODES: dict[str, Execution] = {"masked": "dense", "packed": "packed", "auto": "auto"}
GATES = GateSpec(source="map", opening="share", teach="dense", noise=0.0)
SIDES, OF_PX = (14, 44), 96  # of a busy square, and of the images that these are of
BATCHES = 5  # of different images, in turns


def busy_squares(images: int, px: int, seed: int) -> torch.Tensor:
    """(B, 3, px, px): faint noise with a square of strong noise somewhere."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.05 * torch.randn(images, 3, px, px, generator=generator)
    for image in x:
        low, high = (side * px // OF_PX for side in SIDES)
        side = int(torch.randint(low, high + 1, (), generator=generator))
        top, left = (int(torch.randint(0, px - side + 1, (), generator=generator)) for _ in range(2))
        image[:, top : top + side, left : left + side] += torch.randn(3, side, side, generator=generator)
    return x


@torch.no_grad()
def routed(widths: tuple[int, ...], px: int, keep: Keep) -> TaskNet:
    """A network whose map opens where deviations are large, for the share `keep` of the tokens of each rate."""
    spec = GridSpec(
        layers=4, depths=1, widths=widths, heads=(1, 2, 4, 6), mlp_ratios=(4,) * 4, sr_ratios=(4, 2, 1, 1),
        image_size=px, num_classes=10,
    )  # fmt: skip
    net = TaskNet.classifier(Architecture.routed(RoutingGrid(spec), "depth"), GATES).eval()
    backbone = net.backbone
    leader = next(gate for gate in backbone.gates.values() if gate.leads)
    for weight in (leader.weight, leader.ema_weight):
        weight.zero_()
        weight[0, 2 * widths[0] :] = 1
    images = busy_squares(32, px, seed=0)
    sizes = backbone.map_sizes(images)
    hw = sizes[spec.rates[0]]
    margins = MarginMap(leader.margins_to_decide_by(backbone.stem(images), hw, GATES), hw)
    shares = keep if isinstance(keep, tuple) else (keep,) * len(spec.rates)
    for gate, rate, share in zip(backbone.gates.values(), spec.rates, shares, strict=True):
        gate.cut.value.copy_(share_cut(margins.at(sizes[rate]), share))
    return net


def runs_of(net: TaskNet, batches: list[torch.Tensor], *, train: bool) -> dict[str, Callable[[], object]]:
    """The plain network, and the routed one in each mode."""
    net.train(train)

    def run(part: Architecture, execution: Execution) -> Callable[[], object]:
        turns: Iterator[torch.Tensor] = cycle(batches)
        model = net.restrict(part).decide(execution=execution)  # with settings of its own
        return stepped(model, lambda: model(next(turns)).logits, train)

    plain = Architecture.staircase(net.architecture.grid)
    routed = {name: run(net.architecture, execution) for name, execution in MODES.items()}
    return {"plain": run(plain, "dense")} | routed


def operators(net: TaskNet, image: torch.Tensor) -> dict[str, int]:
    """How many operators one image takes in each mode, those inside of others and views included."""
    counts = {}
    for name, run in runs_of(net, [image], train=False).items():
        run()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run()
        counts[name] = sum(event.count for event in profile.key_averages() if "::" in event.key)
    return counts


def measured(
    settings: Settings, network: tuple[tuple[int, ...], int, Keep | None], batch: int, *, train: bool
) -> dict[str, object]:
    """One line: measure, print, return the numbers."""
    widths, px, keep = network
    net = routed(widths, px, settings.keep[0] if keep is None else keep)
    batches = [busy_squares(batch, px, seed) for seed in range(1, BATCHES + 1)]
    ms = medians(settings, runs_of(net, batches, train=train))
    with torch.no_grad():
        macs = counted_share(net.architecture, net.eval()(torch.cat(batches)).routes)
    ratios = {name: ms[name] / ms["plain"] for name in MODES}
    best = min(ratios.values())
    told = " ".join(f"{ratio:8.3f}" for ratio in (*ratios.values(), best, macs))
    print(f"{'/'.join(map(str, widths)):>12s} {px:4d} {batch:4d} {ms['plain']:9.2f}  {told}", flush=True)
    return {
        "widths": widths,
        "px": px,
        "batch": batch,
        "plain_ms": ms["plain"],
        **ratios,
        "best": best,
        "macs": macs,
    }


def main() -> None:
    """Measure everything, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=float, default=0.33, help="share of tokens")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--training", action="store_true", help="steps without the optimiser")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device("cpu")
    settings = Settings(
        family="pvt_v2", preset="", device=device, dtype=torch.float32, rows="token", keys="all",
        keep=(args.keep,), rounds=args.rounds, clock="cpu", no_compile=True,
    )  # fmt: skip
    what = "training" if args.training else "inference"
    print(f"{what}, {this_device(device, 1).name}, {args.rounds} rounds, keep {args.keep}")
    heads = " ".join(f"{head:>8s}" for head in (*MODES, "best", "MACs"))
    print(f"{'widths':>12s} {'px':>4s} {'B':>4s} {'plain ms':>9s}  {heads}")
    rows = [
        measured(settings, network, batch, train=args.training) for network, batch in product(NETWORKS, args.batch)
    ]
    counts = operators(routed(*NETWORKS[0]), busy_squares(1, NETWORKS[0][1], seed=1))
    print("operators of one image:", ", ".join(f"{name} {count}" for name, count in counts.items()))
    told = {"what": f"small, {what}", "rounds": args.rounds, "keep": args.keep, "operators": counts, "rows": rows}
    if args.json:
        record(args.json, "cpu", told)


if __name__ == "__main__":
    main()
