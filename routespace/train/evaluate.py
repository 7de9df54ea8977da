"""One pass over held-out images: the task's metric, loss, usage, and the cost both ways.

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
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from routespace.checked import checked
from routespace.errors import DataError
from routespace.grid.gate_spec import GateSpec
from routespace.grid.usage import shares_to_json
from routespace.nn.module import unwrap
from routespace.nn.running import as_input, evaluating, in_mode, now, place_of, placed
from routespace.nn.task_net import TaskNet
from routespace.nn.usage import UsageMeter
from routespace.train.macs import metered_macs
from routespace.train.processes import together
from routespace.train.stopping import DivergedError
from routespace.train.tasks.base import Meter, Task
from routespace.train.tasks.kinds import task_of_head

# What is told of every task.
COUNTED = ("images", "images_per_s", "counted_macs", "expected_macs", "usage", "sizes", "by_class")
NOISE_SEED = 0  # of the sampling gates: the same numbers for the same network


class Sampling(NamedTuple):
    """How gates sample: the temperature of their relaxation and the factor of their noise."""

    temperature: float
    noise: float

    @classmethod
    def at(cls, gates: GateSpec, progress: float) -> Sampling:
        """After a share `progress` of the training."""
        temperature = gates.temperature * (gates.final_temperature / gates.temperature) ** progress
        return cls(temperature, gates.noise + (gates.final_noise - gates.noise) * progress)


@checked
@torch.no_grad()
def evaluate(
    net: TaskNet,
    loader: Iterable[Any],
    *,
    task: Task | None = None,
    expected: bool = True,
    sampling: Sampling | None = None,
    by_class: bool = False,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """Measure a network.

    Args:
        net: in a wrapper such as torch.compile's or not. It is in evaluation mode and decides by `auto` for the
            pass, and is then as it was before. Images are moved to its device and element type.
        loader: the task's batches; for a classifier images (B, C, H, W) and labels (B,).
        task: how it is measured; None for that of the network's head, a classifier's accuracy.
        expected: also run each batch with sampling gates, for the expected MACs; without it they are None.
        sampling: how they sample; None as at the end of training.
        by_class: also tell what was found of each class.
        device: where to run; None where the network is.

    Returns:
        The task's metric by its name (`accuracy`, 0…1), what else its meter tells, loss, images, images_per_s
        (this process's, data included, sampling left out), counted_macs, expected_macs (MACs of one image, both on
        all images of the loader), usage (edge name → {tokens, images, asked}), sizes (a `SizedUsage` for
        each size of images), and with `by_class` a `ByClass`, or None where the task has no classes.

    Raises:
        DataError: the loader holds no images, nothing that the metric is about, or one that cannot be read.
        DivergedError: the network gives no finite numbers.
    """
    net = unwrap(net, wanted=TaskNet)
    task = task or task_of_head(net.head, net.spec)
    sampling = sampling or Sampling(net.gate_spec.final_temperature, net.gate_spec.final_noise)
    with (
        placed(net, device),
        evaluating(net),
        net.deciding_as(held=None, shares=None, execution="auto"),
        together(),
    ):
        seen = _pass(net, loader, task, sampling if expected and net.gates else None)
    total = seen.usage.gathered()
    if not total.images:
        raise DataError("data: no images to evaluate with")
    found = seen.meter.compute()
    with together():  # all of them see it; one tells
        check_measured(found, task)
        if not math.isfinite(found["loss"]):
            raise DivergedError(
                f"net: its loss on held-out images is {found['loss']}, so its weights are of no use; its training "
                f"diverged, train again with a lower train.lr"
            )
    of_classes = {"by_class": seen.meter.by_class()} if by_class else {}
    counted = metered_macs(net, total)
    sampled = metered_macs(net, seen.sampled.gathered()) if expected and net.gates else counted
    return {
        **found,
        **of_classes,
        "images": total.images,
        "images_per_s": seen.usage.images / seen.seconds,
        "counted_macs": counted,
        "expected_macs": sampled if expected else None,
        "usage": shares_to_json(total.usage()),
        "sizes": total.by_size(net.spec.image_size),
    }


def check_measured(found: Mapping[str, Any], task: Task) -> None:
    """Raise DataError where a pass saw images, but nothing that the task's metric is about."""
    if task.metric.name not in found:
        raise DataError(f"data: no held-out image has anything to measure {task.metric.name} by; give others")


def further(found: Mapping[str, Any], metric: str) -> dict[str, float]:
    """What a task's meter told beside metric and loss, out of what `evaluate` gave: AP at one IoU, for example."""
    return {name: value for name, value in found.items() if name not in (*COUNTED, metric, "loss")}


@dataclass
class _Seen:
    """What one pass over held-out images found in this process."""

    meter: Meter
    usage: UsageMeter
    sampled: UsageMeter
    seconds: float = 0.0


def _pass(net: TaskNet, loader: Iterable[Any], task: Task, sampling: Sampling | None) -> _Seen:
    """Run every batch, and again with sampling gates where that is asked for."""
    device, _ = place_of(net)
    seen = _Seen(task.meter(device), UsageMeter(), UsageMeter())
    start = now(device)
    for number, batch in enumerate(loader):
        images, targets = task.prepare(batch, device, training=False)
        if not len(images):  # of a loader that filters: nothing to measure
            continue
        images = as_input(net, images)
        size = images.shape[-2:]
        output = net(images)
        seen.meter.update(output.outputs, targets)
        seen.usage.update(output.routes, len(images), size=size)
        if sampling is not None:
            paused = now(device)
            with sampling_gates(net, sampling, NOISE_SEED + number):
                seen.sampled.update(net(images).routes, len(images), size=size)
            start += now(device) - paused
    seen.seconds = now(device) - start
    return seen


@contextlib.contextmanager
def sampling_gates(net: TaskNet, sampling: Sampling, seed: int) -> Iterator[None]:
    """Gates in training mode; everything else, the global random numbers too, is as before afterwards."""
    place, _ = place_of(net)
    devices = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(devices), in_mode(net.gates, training=True), net.deciding_as(**sampling._asdict()):
        torch.manual_seed(seed)
        yield
