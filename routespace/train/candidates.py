"""evaluate_candidates: how good many static parts of one trained network are, in one pass over the images.

    found = evaluate_candidates(supernet, architectures, loader)
    found[3]["accuracy"], found[3]["counted_macs"]

What parts have in common is computed once for each batch (see `routespace/nn/candidates.py`). The numbers
are those that `evaluate` gives for each part alone.

Shape legend: B images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from routespace.checked import checked
from routespace.errors import DataError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.nn.candidates import SharedParts
from routespace.nn.module import unwrap
from routespace.nn.running import as_input, evaluating, now, place_of, placed
from routespace.nn.task_net import TaskNet
from routespace.train.evaluate import check_measured
from routespace.train.macs import budgeted_head
from routespace.train.processes import process_count, together
from routespace.train.stopping import DivergedError
from routespace.train.tasks.base import Task
from routespace.train.tasks.kinds import task_of_head

LEAST_BATCHES = 4  # before a part can be behind
LEAST_ERROR = 1e-3  # of a score: batches that happen to agree prove nothing


@checked
@torch.no_grad()
def evaluate_candidates(
    net: TaskNet,
    architectures: Sequence[Architecture],
    loader: Iterable[Any],
    *,
    task: Task | None = None,
    device: str | torch.device | None = None,
    drop_errors: float | None = None,
) -> list[dict[str, Any]]:
    """Measure static parts of a network with its weights as they are.

    Args:
        net: the supernet, in a wrapper or not. It is in evaluation mode for the pass, and then as it was before.
        architectures: its static parts, in any order, also several times the same.
        loader: the task's batches; for a classifier images (B, C, H, W) and labels (B,).
        task: how they are measured; None for that of the network's head, a classifier's accuracy.
        device: where to run; None where the network is.
        drop_errors: a part is measured no further once it lies so many standard errors behind the best, by the
            batches that both have seen. None is where a batch has no score, or several processes share the images.

    Returns:
        For each architecture, in the given order: the task's metric by its name, loss, images, dropped (whether
        it was measured on some of the images alone), counted_macs (of one image of the grid's size) and seconds
        (this process's of the whole pass, the same for all).

    Raises:
        SpecError: a part with gates, or none at all; or `drop_errors` below 0.
        GridError: an architecture that is no part of the network's.
        DataError: the loader holds no images, or one of them cannot be read.
        DivergedError: the network gives no finite numbers.
    """
    if drop_errors is not None and not 0 <= drop_errors < math.inf:
        raise SpecError(f"drop_errors: {drop_errors} is not allowed; give a number from 0 up, such as 3")
    net = unwrap(net, wanted=TaskNet)
    task = task or task_of_head(net.head, net.spec)
    running = _Running(SharedParts(net, architectures), list(range(len(architectures))))
    scores: list[list[float]] = [[] for _ in architectures]
    images, seen = 0, [0] * len(architectures)
    dropping = drop_errors is not None and process_count() == 1
    with placed(net, device), evaluating(net), together():
        place, _ = place_of(net)
        meters, start = [task.meter(place) for _ in architectures], now(place)
        for batch in loader:
            pictures, targets = task.prepare(batch, place, training=False)
            if not len(pictures):  # of a loader that filters
                continue
            images += len(pictures)
            for number, outputs in running(as_input(net, pictures)):
                meters[number].update(outputs, targets)
                seen[number] += len(pictures)
                score = task.score(outputs, targets) if dropping else None
                scores[number] += [] if score is None else [float(score)]
            if dropping and drop_errors is not None:
                sign = 1 if task.metric.direction == "maximise" else -1
                left = not_behind(running.numbers, scores, sign * drop_errors)
                if left != running.numbers:
                    running = _Running(SharedParts(net, [architectures[number] for number in left]), left)
        seconds = now(place) - start
    total = _total(images, place)
    if not total:
        raise DataError("data: no images to evaluate with")
    head = budgeted_head(net)
    found = [
        {
            **meter.compute(),
            "images": total if dropping is False else seen[number],
            "dropped": number not in running.numbers,
            "counted_macs": float(architecture_cost(architecture).with_head(head).macs),
            "seconds": seconds,
        }
        for number, (meter, architecture) in enumerate(zip(meters, architectures, strict=True))
    ]
    with together():
        check_measured(found[0], task)
        if not all(math.isfinite(part["loss"]) for part in found):
            raise DivergedError(
                "net: the loss of a part on held-out images is no number, so its weights are of no use; its "
                "training diverged, train again with a lower train.lr"
            )
    return found


class _Running:
    """The parts that are still measured, by their places among all."""

    def __init__(self, shared: SharedParts, numbers: list[int]) -> None:
        self._shared, self.numbers = shared, numbers

    def __call__(self, images: Tensor) -> Iterator[tuple[int, Any]]:
        for place, outputs in self._shared(images):
            yield self.numbers[place], outputs


def not_behind(numbers: Sequence[int], scores: Sequence[Sequence[float]], errors: float) -> list[int]:
    """Those of the parts that are not clearly behind the best of them.

    Args:
        numbers: parts that are compared, by their places in `scores`.
        scores: of each batch, which all of these have seen; fewer than `LEAST_BATCHES` say nothing.
        errors: how many standard errors are clear; below 0 where a lower score is better.
    """
    count = min(len(scores[number]) for number in numbers)
    if count < LEAST_BATCHES:
        return list(numbers)
    table = torch.tensor([list(scores[number]) for number in numbers], dtype=torch.float64) * math.copysign(
        1, errors
    )
    behind = table[table.mean(1).argmax()] - table
    error = behind.std(1) / math.sqrt(count)
    clear = behind.mean(1) > abs(errors) * error.clamp(min=LEAST_ERROR)
    return [number for number, lost in zip(numbers, clear.tolist(), strict=True) if not lost]


def _total(images: int, device: torch.device) -> int:
    """Images of all processes together."""
    if process_count() == 1:
        return images
    total = torch.tensor(images, device=device)
    torch.distributed.all_reduce(total)
    return int(total)
