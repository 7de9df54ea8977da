"""What it takes to evaluate many parts of one network: together, as a share of one after the other.

    python benchmarks/subnets.py [--count 64] [--rounds 5] [--json OUT]

Three sets of parts: uniform samples of a small grid, plain staircases of a deep one, and uniform samples of the
deep one, which have little in common. Each round evaluates a batch with `SharedParts`, then with each part alone
(`net.restrict`, made beforehand); times are medians of the thread's processor time. Beside them stands the share
of the MACs. Last comes a step of a sandwich training: its time as a share of the largest network's step, over the
MACs of all its passes as a share of the largest network's.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import torch
from accelerate import Accelerator
from record import record

from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.graph import RoutingGrid
from routespace.grid.sample import sample_static
from routespace.grid.spec import GridSpec
from routespace.memory import keep_freed_memory
from routespace.nn.candidates import SharedParts
from routespace.nn.task_net import TaskNet
from routespace.recipes import load_recipe
from routespace.train.data.skipping import Group
from routespace.train.passes import Runner
from routespace.train.sandwich import Sandwich
from routespace.train.step_loss import StepLoss

STEPS = 100  # of an imagined epoch, whose parts are drawn


def medians(runs: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Processor seconds of each run, in turns, after one call to warm up."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds + 1):
        for found, run in zip(times, runs, strict=True):
            start = time.thread_time()
            run()
            found.append(time.thread_time() - start)
    return [statistics.median(found[1:]) for found in times]


def staircases(grid: RoutingGrid, count: int) -> list[Architecture]:
    """Plain staircases of different splits, drawn among those that use every layer."""
    layers, rates = grid.spec.layers, len(grid.spec.rates)
    cuts = list(combinations(range(1, layers), rates - 1))
    chosen = random.Random(0).sample(cuts, min(count, len(cuts)))
    splits = [[b - a for a, b in zip((0, *cut), (*cut, layers), strict=True)] for cut in chosen]
    return [Architecture.staircase(grid, split) for split in splits]


@torch.no_grad()
def compare(net: TaskNet, parts: list[Architecture], images: torch.Tensor, rounds: int) -> dict[str, float]:
    """Time and MACs of the parts together, as shares of one after the other."""
    shared, alone = SharedParts(net, parts), [net.restrict(part) for part in parts]
    together, apart = medians(
        [lambda: list(shared(images)), lambda: [part(images) for part in alone]],
        rounds,
    )
    return {"parts": len(parts), "time": together / apart, "macs": shared.share, "alone_s": apart}


def sandwich(rounds: int) -> dict[str, float]:
    """A sandwich step's time and MACs, as shares of the largest network's step."""
    recipe = load_recipe("digits_tiny").override({"train.mode": "sandwich", "train.start": "open"})
    torch.manual_seed(0)
    net = TaskNet.classifier(recipe.architecture(), recipe.gates).train()
    task = recipe.task.make(recipe.grid, recipe.train)
    run = Runner(StepLoss(net, task, None, recipe.train), Accelerator(cpu=True))
    passes = Sandwich(run, net, recipe, STEPS)
    batch = [Group(torch.randn(64, 3, *recipe.grid.image_size), torch.randint(10, (64,)))]
    step, paid = [0], [0.0]

    def whole() -> None:
        run(batch, 0.5, part=passes.largest)
        net.zero_grad()

    def all_passes() -> None:
        losses = passes(batch, 0.5, step[0])
        step[0] += 1
        paid.append(float(losses.macs))
        net.zero_grad()

    largest, every = medians([whole, all_passes], rounds)
    macs = statistics.mean(paid[2:]) / architecture_cost(net.architecture.opened()).macs
    return {"time": every / largest, "macs": macs, "time_over_macs": every / largest / macs}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12, help="of the deep grid")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = TaskNet.classifier(Architecture.full(RoutingGrid(load_recipe("digits_tiny").grid))).eval()
    spec = GridSpec(layers=args.layers, max_down=32, size="b0", image_size=64, num_classes=10)
    deep = TaskNet.classifier(Architecture.full(RoutingGrid(spec))).eval()
    images = torch.randn(16, 3, 64, 64)
    sets = {
        "small grid, uniform": (small, sample_static(small.architecture.grid, args.count, seed=0)),
        "deep grid, staircases": (deep, staircases(deep.architecture.grid, args.count)),
        "deep grid, uniform": (deep, sample_static(deep.architecture.grid, args.count, seed=0)),
    }
    report = {}
    for name, (net, parts) in sets.items():
        report[name] = found = compare(net, parts, images, args.rounds)
        print(f"{name:24} {len(parts)} parts  {found['time']:.3f} of the time  {found['macs']:.3f} of the MACs")
    report["sandwich step"] = found = sandwich(4 * args.rounds)
    told = f"{found['time']:.3f} of its time, {found['macs']:.3f} of its MACs, ÷ {found['time_over_macs']:.3f}"
    print(f"sandwich step ÷ largest  {told}")
    if args.json:
        record(args.json, "cpu", {"what": "subnets", "report": report})


if __name__ == "__main__":
    main()
