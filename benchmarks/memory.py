"""What a training is told to take of the memory, against the peak of two real steps on a CPU.

    python benchmarks/memory.py

Each case runs in a process of its own. Measured is its peak beyond what imports had taken.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import torch

from routespace.memory import bytes_text, keep_freed_memory
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet
from routespace.recipes import load_recipe
from routespace.train.memory import recipe_need
from routespace.train.optim import make_optimizer

CASES = (
    ("dit_b1_imagenet", 8, "train.execution=dense"),
    ("dit_b1_imagenet", 8, "train.execution=packed"),
    ("dit_b1_imagenet", 8, "train.execution=dense", "train.precision=no"),
    ("dit_b1_imagenet", 16, "train.execution=dense", "train.grad_checkpointing=true"),
    ("dit_b1_imagenet", 8, "routing=static"),
    ("digits_tiny", 512, "train.execution=dense"),
    ("digits_tiny", 512, "train.execution=packed"),
    ("digits_tiny", 512, "train.execution=dense", "train.grad_checkpointing=true"),
)
STEPS = 2


def resident() -> int:
    """Bytes that the process has in memory, by Linux's table."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(name: str, batch: int, changes: list[str]) -> None:
    """Print one case."""
    keep_freed_memory()
    torch.set_num_threads(1)
    recipe = load_recipe(name, changes)
    architecture, task = recipe.architecture(), recipe.task.make(recipe.grid, recipe.train)
    told = recipe_need(recipe, architecture).of_batch(batch)
    before = resident()
    backbone = RouteNet(architecture, recipe.gates, execution=recipe.train.execution)
    net = TaskNet(backbone, task.head(recipe.grid)).train()
    net.set_grad_checkpointing(recipe.train.grad_checkpointing)
    optimizer = make_optimizer(net, recipe.train)
    for _ in range(STEPS):
        images = torch.randn(batch, recipe.grid.in_channels, *recipe.grid.image_size)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.train.precision != "no"):
            loss = net(images).logits.logsumexp(1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    case = f"{name}, batch {batch}, {', '.join(changes)}"
    print(f"{case:80} told {bytes_text(told):>8}, measured {bytes_text(peak):>8}, {peak / told:.2f}", flush=True)


def main() -> None:
    """Measure the case of the command line, or all of them."""
    if len(sys.argv) > 1:
        measure(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
        return
    for name, batch, *changes in CASES:
        subprocess.run([sys.executable, __file__, name, str(batch), *map(str, changes)], check=True)


if __name__ == "__main__":
    main()
