"""Measuring how long a network really takes: ratios of modes, interleaved in one process, medians.

Shapes: B images · C channels · H, W pixels.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from routespace.deploy.latency.device import using_threads
from routespace.nn.running import as_input, evaluating, now
from routespace.nn.task_net import TaskNet

ROUNDS = 9
WARM_UP = 2


def routed_times(
    net: TaskNet, images: Tensor | Sequence[Tensor], *, rounds: int = ROUNDS, compiled: bool = False
) -> dict[str, float]:
    """Seconds of a forward pass of a batch, or of one for each size: with everything computed, and routed.

    The first is the same network without gates and masks, every edge open. They take turns, so that what else the
    machine does hits both alike; one thread, for the same reason. On a GPU each turn is waited for.

    Args:
        net: a routed network; it is left as it was.
        images: (B, C, H, W), or several of different sizes; they are moved to the network's device and type.
        rounds: turns of each, after two that are not counted.
        compiled: with compiled blocks, both.

    Returns:
        `dense` and `routed` → median seconds.
    """
    groups = [as_input(net, some) for some in ([images] if isinstance(images, Tensor) else images)]
    models = {"dense": net.restrict(net.architecture.opened()), "routed": net.restrict(net.architecture)}
    for model in models.values():  # views with settings of their own, but for the mode: the modules are the same
        model.compile_blocks(compiled).decide(held=None, execution="auto")
    taken: dict[str, list[float]] = {mode: [] for mode in models}
    with evaluating(models["dense"]), evaluating(models["routed"]), using_threads(1), torch.inference_mode():
        for turn in range(-WARM_UP, rounds):
            for mode, model in models.items():
                start = now(groups[0].device)
                for some in groups:
                    model(some)
                seconds = now(groups[0].device) - start
                if turn >= 0:
                    taken[mode].append(seconds)
    return {mode: statistics.median(times) for mode, times in taken.items()}
