"""What a training tells of itself: how far it is after a step, and a line of metrics.jsonl after an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from routespace.train.course import Course
from routespace.train.evaluate import Sampling, further
from routespace.train.progress import Progress
from routespace.train.spending import Spending
from routespace.train.sums import EpochSums


def progress_of(
    course: Course, sums: EpochSums, spending: Spending, *, stage: str, lines: Sequence[Mapping[str, Any]]
) -> Progress:
    """How far a training is.

    Args:
        course: where it stands.
        sums: of its epoch.
        spending: of its phase.
        stage: see `Progress`.
        lines: of its epochs.
    """
    epoch, macs = course.epochs_done + 1, sums.mean("macs")
    return Progress(
        stage=stage,
        epoch=epoch if course.epochs is None else min(epoch, course.epochs),
        epochs=course.epochs,
        phase=course.number + 1,
        phases=len(course.phases),
        step=course.step,
        steps=course.steps,
        loss=sums.mean("loss"),
        budget_loss=sums.mean("budget_loss") if spending.loss is not None else None,
        score=sums.score,
        metric=course.phase.task.metric,
        macs_ratio=None if macs is None else macs / spending.base_macs,
        target_ratio=spending.target_ratio(course.progress()),
        images_per_s=sums.images_per_s,
        eta_s=course.eta_s(sums.images_per_s),
        metrics=dict(lines[-1]) if lines else {},
    )


def epoch_line(
    course: Course,
    sums: EpochSums,
    spending: Spending,
    *,
    found: Mapping[str, Any],
    sampling: Sampling,
    teaches: bool,
    lr: float,
    seconds: float,
) -> dict[str, Any]:
    """An epoch summed up, before the budget is corrected by it: all but the remarks.

    Args:
        course, sums, spending: at the epoch's end.
        found: what `evaluate` gave, expected and counted MACs of the same validation images.
        sampling: of the gates in the last step.
        teaches: whether a teacher's labels were learned from.
        lr: rate of learning.
        seconds: of training so far, validation included.
    """
    means, metric, base_macs = sums.means, course.phase.task.metric.name, spending.base_macs
    return {
        "epoch": course.epochs_done + 1,
        "phase": course.number + 1,
        "loss": means["loss"],
        "task_loss": means["task_loss"],
        "soft_loss": means["soft_loss"] if teaches else None,
        "budget_loss": means["budget_loss"],
        f"train_{metric}": means[metric] if math.isfinite(means[metric]) else None,
        metric: found[metric],
        **further(found, metric),
        "val_loss": found["loss"],
        "train_expected_ratio": means["macs"] / base_macs,
        "expected_ratio": found["expected_macs"] / base_macs,
        "counted_ratio": found["counted_macs"] / base_macs,
        "target_ratio": spending.target_ratio(course.progress()),
        "lr": lr,
        "temperature": sampling.temperature,
        "images_per_s": round(sums.images_per_s, 1),
        "seconds": round(seconds, 2),
    }
