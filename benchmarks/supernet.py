"""What a training step of a supernet takes: memory, with and without checkpointing, and time by alive MACs.

    python benchmarks/supernet.py [--layers 24] [--size b2] [--image 224] [--batch 1] [--rounds 5] [--json OUT]

Printed: for the whole grid with every gate open, the megabytes of an image that the forward pass leaves behind for
the backward pass, and the time of a step, both again with `set_grad_checkpointing`; then for random subnets, whose
gates alone are held open while the others are shut, the time of a step as a share of the whole grid's, against
their share of its MACs. All variants run once in every round; times are medians of the thread's processor time (on
CUDA: of the clock), and one step without an optimiser.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from record import record
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.graph import RoutingGrid
from routespace.grid.sample import sample_static
from routespace.grid.spec import GridSpec
from routespace.memory import keep_freed_memory
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import TaskNet


class Alive(TorchDispatchMode):
    """Notes every storage that is made inside, to ask later which are still in use."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.found[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def megabytes(self) -> float:
        """Of the storages in use."""
        return sum(size for storage, size in self.found.values() if not storage.expired()) / 1e6


def kept_megabytes(net: TaskNet, images: torch.Tensor, routes: Routes) -> float:
    """What a forward pass leaves behind beside weights, for each image."""
    held = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    with Alive() as alive:
        logits = net(images, routes=routes).logits
    alive.found = {key: value for key, value in alive.found.items() if key not in held}
    megabytes = alive.megabytes() / len(images)
    del logits
    return megabytes


def medians(runs: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Seconds of each run, interleaved, after one call to warm up."""
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _, (name, run) in product(range(rounds + 1), runs.items()):
        start = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times[name].append(clock() - start)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--size", default="b2")
    parser.add_argument("--image", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--subnets", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = arguments()
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device(args.device)
    grid = RoutingGrid(GridSpec(layers=args.layers, max_down=32, size=args.size, image_size=args.image))
    net = TaskNet.classifier(Architecture.full(grid), execution="packed").to(device).train()
    images = torch.randn(args.batch, 3, args.image, args.image, device=device)
    everything = Routes.full(net, images)

    def step(routes: Routes, *, checkpointing: bool = False) -> Callable[[], object]:
        def run() -> object:
            net.set_grad_checkpointing(checkpointing)
            net.zero_grad(set_to_none=True)
            return net(images, routes=routes).logits.square().mean().backward()

        return run

    megabytes = {}
    for checkpointing in (False, True):
        net.set_grad_checkpointing(checkpointing)
        megabytes[checkpointing] = kept_megabytes(net, images, everything)
    chosen = sample_static(grid, args.subnets, seed=0)
    runs = {"whole": step(everything), "checkpointed": step(everything, checkpointing=True)}
    places, size = net.gate_places(images.shape[-2:]), len(images)
    held = [Routes.following(path, places, images=size, device=device) for path in chosen]
    runs |= {f"subnet {i}": step(routes) for i, routes in enumerate(held)}
    seconds = medians(runs, args.rounds, device)
    whole = seconds["whole"]
    report = {
        "memory_mb": megabytes[False],
        "memory_ratio": megabytes[True] / megabytes[False],
        "step_s": whole,
        "checkpointed_ratio": seconds["checkpointed"] / whole,
        "subnets": [
            {
                "macs": architecture_cost(path).macs / architecture_cost(Architecture.full(grid).opened()).macs,
                "time": seconds[f"subnet {i}"] / whole,
            }
            for i, path in enumerate(chosen)
        ],
    }
    print(f"{args.layers} layers, {args.size}, {args.image}², B={args.batch}, {device}, {args.rounds} rounds")
    print(f"whole grid     {megabytes[False]:8.0f} MB an image  {whole:8.2f} s a step")
    print(f"checkpointed   {report['memory_ratio']:8.3f} of it       {report['checkpointed_ratio']:8.3f} of it")
    for subnet in report["subnets"]:
        macs, took = subnet["macs"], subnet["time"]
        print(f"a subnet       {macs:8.3f} of the MACs  {took:8.3f} of the time   ÷ {took / macs:.3f}")
    if args.json:
        settings = {
            "what": "supernet", "layers": args.layers, "size": args.size, "image": args.image, "batch": args.batch,
        }  # fmt: skip
        record(args.json, device.type, settings | report)


if __name__ == "__main__":
    main()
