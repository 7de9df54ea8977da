"""Progress: how far a run is, as a value for whoever watches (the command line, a study, a test)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from routespace.train.tasks.base import Metric
from routespace.train.tasks.kinds import ClassifySpec


@dataclass(frozen=True)
class Progress:
    """How far a run is, for whoever watches.

    Attributes:
        stage: `train`, `validate`, `calibrate` or `evaluate`.
        phase, phases: the phase under way, from 1; how many there are.
        epoch, epochs: the epoch under way, from 1; how many there are, in all phases; None where a
            phase goes by the clock.
        step, steps: steps done in this epoch; how many it has.
        loss, budget_loss, score: averages of this epoch so far: of what is minimised, of the budget's part in it
            (None without a budget), and of the task's metric on training images.
        macs_ratio, target_ratio: expected MACs of this epoch's training images and the target, as shares of the
            base; those of the validation images, expected and counted, are in `metrics`.
        images_per_s: in this epoch, all processes.
        eta_s: seconds of training that are left.
        metrics: the last line of metrics.jsonl, or empty.
        metric: what the score is called, and its unit.
    """

    stage: str
    epoch: int = 0
    epochs: int | None = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    budget_loss: float | None = None
    score: float | None = None
    macs_ratio: float | None = None
    target_ratio: float | None = None
    images_per_s: float | None = None
    eta_s: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    metric: Metric = ClassifySpec.metric
    phase: int = 1
    phases: int = 1
