"""Measuring how long a network really takes: ratios of modes, interleaved in one process, medians."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from routespace.nn.route_net import RouteNet

ROUNDS = 9
MODES = ("dense", "packed")


def routed_times(net: RouteNet, images: Tensor, rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds of one forward pass of a batch when masked and when only kept tokens are computed.

    The modes take turns, so that what else the machine does hits both alike; one thread, for the same reason.

    Args:
        net: a routed network; its mode is left as it was.
        images: (B, C, H, W).
        rounds: turns of each mode, after one that is not counted.

    Returns:
        mode → median seconds.
    """
    import torch

    before, threads = net.execution, torch.get_num_threads()
    taken: dict[str, list[float]] = {mode: [] for mode in MODES}
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for turn in range(rounds + 1):
                for mode in MODES:
                    net.execution = mode  # type: ignore[assignment]
                    start = time.perf_counter()
                    net(images)
                    if turn:
                        taken[mode].append(time.perf_counter() - start)
    finally:
        net.execution = before
        torch.set_num_threads(threads)
    return {mode: statistics.median(times) for mode, times in taken.items()}
