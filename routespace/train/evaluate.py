"""One pass over held-out images: accuracy, loss, usage, and the cost both ways.

*Counted* MACs are those of the hard decisions that inference takes (threshold, EMA gate weights). *Expected* MACs
are what the budget loss would see on the same images: the gates sample as in training, with their live weights and
noise, while the blocks run as at inference. When they differ, the budget that was trained is not the one that is
paid; calibration and training are there to make them meet.

What a gate decides changes the features of the next one, so each of the two needs a forward pass of its own. They
share the batches: nothing is read or rendered twice.

Shape legend: B images.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch

from routespace.errors import DataError
from routespace.grid.usage import shares_to_json
from routespace.nn.task_net import AnyNet, TaskNet
from routespace.nn.usage import UsageMeter
from routespace.train.budget import counted_macs
from routespace.train.data.loaders import Batch
from routespace.train.tasks.classify import ClassifyMeter

NOISE_SEED = 0  # of the sampling gates: the same numbers for the same network


class Sampling(NamedTuple):
    """How gates sample: the temperature of their relaxation and the factor of their noise."""

    temperature: float
    noise: float


@torch.no_grad()
def evaluate(
    net: TaskNet, loader: Iterable[Batch], *, expected: bool = True, sampling: Sampling | None = None
) -> dict[str, Any]:
    """Measure a network.

    Args:
        net: it is put into eval mode for the pass, and back.
        loader: batches of images (B, C, H, W) and labels (B,).
        expected: also run each batch with sampling gates, for the expected MACs; without it they are None.
        sampling: how they sample; None as at the end of training.

    Returns:
        accuracy (0…1), loss, images, images_per_s (this process's, data included, sampling left out),
        counted_macs, expected_macs (MACs of one image, both on all images of the loader) and usage
        (edge name → {tokens, images, asked}).

    Raises:
        DataError: the loader holds no images, or one of them cannot be read.
    """
    training = net.training
    device = next(net.parameters()).device
    net.eval()
    meter, usage, sampled = ClassifyMeter(net.spec.num_classes, device), UsageMeter(), UsageMeter()
    sampling = sampling or Sampling(net.gate_spec.final_temperature, net.gate_spec.final_noise)
    start = _now(device)
    try:
        for batch, (images, labels) in enumerate(loader):
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            output = net(images)
            meter.update(output, labels)
            usage.update(output.routes, len(images))
            if expected and net.gates:
                paused = _now(device)
                with sampling_gates(net, sampling, NOISE_SEED + batch):
                    sampled.update(net(images).routes, len(images))
                start += _now(device) - paused
        seconds = _now(device) - start
    finally:
        net.train(training)
    if not usage.images:
        raise DataError("data: no images to evaluate with")
    total = usage.gathered()
    counted = total.usage()
    counted_cost = counted_macs(net, counted)
    sampled_cost = counted_macs(net, sampled.gathered().usage()) if net.gates else counted_cost
    return {
        **meter.compute(),
        "images": total.images,
        "images_per_s": usage.images / seconds,
        "counted_macs": counted_cost,
        "expected_macs": sampled_cost if expected else None,
        "usage": shares_to_json(counted),
    }


def _now(device: torch.device) -> float:
    """Seconds, when everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextlib.contextmanager
def sampling_gates(net: TaskNet, sampling: Sampling, seed: int) -> Iterator[None]:
    """Gates in training mode; everything else, the global random numbers too, is as before afterwards."""
    backbone = net.backbone
    temperature, noise = backbone.temperature, backbone.noise
    devices = [torch.cuda.current_device()] if next(net.parameters()).is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        net.gates.train()
        backbone.temperature, backbone.noise = sampling
        try:
            yield
        finally:
            net.gates.eval()
            backbone.temperature, backbone.noise = temperature, noise


@torch.no_grad()
def measure(net: AnyNet, loader: Iterable[Batch]) -> float:
    """Counted MACs of one image; the network is in eval mode already."""
    usage, device = UsageMeter(), next(net.parameters()).device
    for images, _ in loader:
        usage.update(net(images.to(device, non_blocking=True)).routes, len(images))
    return counted_macs(net, usage.gathered().usage())
