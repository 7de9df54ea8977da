"""Milliseconds of one image through a trained network, measured: what a study minimises without a latency table.

image_ms(net, images, device="cpu")
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from routespace.deploy.latency.profiling import median_ms
from routespace.nn.running import as_input, evaluating, place_of
from routespace.nn.task_net import TaskNet

ROUNDS = 9  # turns of each image; the median counts


def image_ms(net: TaskNet, images: Sequence[Tensor], *, device: str = "cpu") -> float:
    """Milliseconds of one image: the mean over `images`, each the median of several forward passes.

    A routed network takes its time by the image, and saves time only where it computes no more than it decided:
    it is timed in execution `auto`. Execution, device and mode of the network are afterwards what they were.

    Args:
        net: a trained network.
        images: each (1, C, H, W).
        device: where to measure; a GPU is waited for.
    """
    place = torch.device(device)
    with _at(net, place), evaluating(net), net.deciding_as(execution="auto"), torch.inference_mode():
        works = [partial(net, as_input(net, image)) for image in images]
        times = median_ms(works, rounds=ROUNDS, clock="wall", device=place)
    return sum(times) / len(times)


@contextmanager
def _at(net: TaskNet, place: torch.device) -> Iterator[None]:
    """A network on a device, and on its own again afterwards."""
    home, _ = place_of(net)
    try:
        net.to(place)
        yield
    finally:
        net.to(home)
