"""evaluate_candidates: how good many static parts of one trained network are, in one pass over the images.

    found = evaluate_candidates(supernet, architectures, loader)
    found[3]["accuracy"], found[3]["counted_macs"]

What parts have in common is computed once for each batch (see `routespace/nn/candidates.py`). The numbers
are those that `evaluate` gives for each part alone.

Shape legend: B images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from routespace.errors import DataError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.nn.candidates import SharedParts
from routespace.nn.module import unwrap
from routespace.nn.running import as_input, evaluating, now, place_of, placed
from routespace.nn.task_net import TaskNet, head_cost_of
from routespace.train.processes import process_count, together
from routespace.train.stopping import DivergedError
from routespace.train.tasks.base import Task
from routespace.train.tasks.kinds import task_of_head


@torch.no_grad()
def evaluate_candidates(
    net: TaskNet,
    architectures: Sequence[Architecture],
    loader: Iterable[Any],
    *,
    task: Task | None = None,
    device: str | torch.device | None = None,
) -> list[dict[str, Any]]:
    """Measure static parts of a network with its weights as they are.

    Args:
        net: the supernet, in a wrapper or not. It is in evaluation mode for the pass, and then as it was before.
        architectures: its static parts, in any order, also several times the same.
        loader: the task's batches; for a classifier images (B, C, H, W) and labels (B,).
        task: how they are measured; None for that of the network's head, a classifier's accuracy.
        device: where to run; None where the network is.

    Returns:
        For each architecture, in the given order: the task's metric by its name, loss, images, counted_macs (of
        one image of the grid's size) and seconds (this process's of the whole pass, the same for all).

    Raises:
        SpecError: a part with gates, or none at all.
        GridError: an architecture that is no part of the network's.
        DataError: the loader holds no images, or one of them cannot be read.
        DivergedError: the network gives no finite numbers.
    """
    net = unwrap(net, wanted=TaskNet)
    task = task or task_of_head(net.head, net.spec)
    shared = SharedParts(net, architectures)
    images = 0
    with placed(net, device), evaluating(net), together():
        place, _ = place_of(net)
        meters, start = [task.meter(place) for _ in architectures], now(place)
        for batch in loader:
            pictures, targets = task.prepare(batch, place, training=False)
            if not len(pictures):  # of a loader that filters
                continue
            images += len(pictures)
            for number, outputs in shared(as_input(net, pictures)):
                meters[number].update(outputs, targets)
        seconds = now(place) - start
    total = _total(images, place)
    if not total:
        raise DataError("data: no images to evaluate with")
    head = head_cost_of(net)
    found = [
        {
            **meter.compute(),
            "images": total,
            "counted_macs": float(architecture_cost(architecture).with_head(head).macs),
            "seconds": seconds,
        }
        for meter, architecture in zip(meters, architectures, strict=True)
    ]
    with together():
        if not all(math.isfinite(part["loss"]) for part in found):
            raise DivergedError(
                "net: the loss of a part on held-out images is no number, so its weights are of no use; its "
                "training diverged, train again with a lower train.lr"
            )
    return found


def _total(images: int, device: torch.device) -> int:
    """Images of all processes together."""
    if process_count() == 1:
        return images
    total = torch.tensor(images, device=device)
    torch.distributed.all_reduce(total)
    return int(total)
