"""One pass over held-out images: accuracy, loss, usage, and the cost both ways.

*Counted* MACs are those of the hard decisions that inference takes (threshold, EMA gate weights). *Expected* MACs
are what the budget loss would see on the same images: the gates sample as in training. When they differ, the
budget that was trained is not the one that is paid; calibration and training are there to make them meet.

Shape legend: B images.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from routespace.errors import DataError
from routespace.grid.usage import EdgeUsage, usage_to_json
from routespace.nn.route_net import RouteNet
from routespace.nn.usage_meter import UsageMeter
from routespace.train.budget import counted_macs
from routespace.train.data import Batch
from routespace.train.tasks import ClassifyMeter

NOISE_SEED = 0  # of the sampling gates: the same numbers for the same network


@torch.no_grad()
def evaluate(net: RouteNet, loader: Iterable[Batch], *, expected: bool = True) -> dict[str, Any]:
    """Measure a network.

    Args:
        net: it is put into eval mode for the pass, and back.
        loader: batches of images (B, C, H, W) and labels (B,).
        expected: also make the pass that measures the expected MACs; without it they are None.

    Returns:
        accuracy (0…1), loss, images, images_per_s (this process's, data included), counted_macs, expected_macs
        (MACs of one image) and usage (edge name → {tokens, images, asked}).

    Raises:
        DataError: the loader holds no images, or one of them cannot be read.
    """
    training = net.training
    device = next(net.parameters()).device
    net.eval()
    meter, usage, images_seen = ClassifyMeter(net.spec.num_classes, device), UsageMeter(), 0
    start = time.perf_counter()
    try:
        for images, labels in loader:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            output = net(images)
            meter.update(output, labels)
            usage.update(output.routes, len(images))
            images_seen += len(images)
        if not images_seen:
            raise DataError("data: no images to evaluate with")
        seconds = time.perf_counter() - start
        counted = usage.gathered().usage()
        sampled = sampled_usage(net, loader, device) if expected and net.gates else counted
    finally:
        net.train(training)
    return {
        **meter.compute(),
        "images": usage.gathered().images,
        "images_per_s": images_seen / seconds,
        "counted_macs": counted_macs(net, counted),
        "expected_macs": counted_macs(net, sampled) if expected else None,
        "usage": usage_to_json(counted)["edges"],
    }


def sampled_usage(net: RouteNet, loader: Iterable[Batch], device: torch.device) -> dict[str, EdgeUsage]:
    """Usage with gates that sample as in training, everything else as at inference."""
    usage = UsageMeter()
    with sampling_gates(net):
        for images, _ in loader:
            usage.update(net(images.to(device, non_blocking=True)).routes, len(images))
    return usage.gathered().usage()


@contextlib.contextmanager
def sampling_gates(net: RouteNet) -> Iterator[None]:
    """Gates in training mode at their final temperature and noise."""
    temperature, noise = net.temperature, net.noise
    devices = [torch.cuda.current_device()] if next(net.parameters()).is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(NOISE_SEED)
        net.gates.train()
        net.temperature, net.noise = net.gate_spec.final_temperature, net.gate_spec.final_noise
        try:
            yield
        finally:
            net.gates.eval()
            net.temperature, net.noise = temperature, noise


@torch.no_grad()
def measure(net: RouteNet, loader: Iterable[Batch]) -> float:
    """Counted MACs of one image; the network is in eval mode already."""
    usage, device = UsageMeter(), next(net.parameters()).device
    for images, _ in loader:
        usage.update(net(images.to(device, non_blocking=True)).routes, len(images))
    return counted_macs(net, usage.gathered().usage())
