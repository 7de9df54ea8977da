"""Measuring how long a network really takes: ratios of modes, interleaved in one process, medians."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from routespace.nn.route_net import RouteNet

ROUNDS = 9
WARM_UP = 2


def routed_times(
    net: RouteNet, images: Tensor, rounds: int = ROUNDS, *, compiled: bool = False
) -> dict[str, float]:
    """Seconds of one forward pass of a batch: with everything computed, and routed.

    The first is the same network without gates and masks, every edge open. They take turns, so that what else the
    machine does hits both alike; one thread, for the same reason.

    Args:
        net: a routed network; its mode is left as it was.
        images: (B, C, H, W).
        rounds: turns of each, after two that are not counted.
        compiled: with compiled blocks, both.

    Returns:
        `dense` and `routed` → median seconds.
    """
    import torch

    before, was_compiled, threads = net.execution, net.compiled, torch.get_num_threads()
    everything = net.restrict(net.architecture.opened())
    taken: dict[str, list[float]] = {"dense": [], "routed": []}
    torch.set_num_threads(1)
    try:
        net.execution = "auto"
        net.compile_blocks(compiled)
        with torch.inference_mode():
            for turn in range(-WARM_UP, rounds):
                for mode, model in (("dense", everything), ("routed", net)):
                    start = time.perf_counter()
                    model(images)
                    if turn >= 0:
                        taken[mode].append(time.perf_counter() - start)
    finally:
        net.execution = before
        net.compile_blocks(was_compiled)
        torch.set_num_threads(threads)
    return {mode: statistics.median(times) for mode, times in taken.items()}
