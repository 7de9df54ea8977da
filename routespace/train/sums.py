"""What the steps of an epoch add up to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from routespace.train.step_loss import Losses


class EpochSums:
    """Sums of the numbers of each step, by their names: those of `Losses`, the score by its metric's name.

    Args:
        metric: name of the task's.

    Attributes:
        values: name → sum.
        steps: that were added.
        images_per_s: of all processes, so far.
    """

    def __init__(self, metric: str) -> None:
        self._names = tuple(metric if name == "score" else name for name in Losses._fields)
        self._metric = metric
        self.images_per_s = 0.0
        self.clear()

    def clear(self) -> None:
        """Begin an epoch; the rate stays until a step has another."""
        self.values, self.steps = dict.fromkeys(self._names, 0.0), 0

    def add(self, numbers: Sequence[float]) -> None:
        """Add a step's, in the order of `Losses`."""
        for name, value in zip(self._names, numbers, strict=True):
            self.values[name] += value
        self.steps += 1

    def load(self, values: Mapping[str, float], steps: int) -> None:
        """Go on from `values`, the sums of so many steps."""
        self.values, self.steps = dict(values), steps

    def mean(self, name: str) -> float | None:
        """Over the steps that were added; None where there was none."""
        return self.values[name] / self.steps if self.steps else None

    @property
    def means(self) -> dict[str, float]:
        """Name → mean over the steps that were added; 0 where there was none."""
        return {name: total / max(1, self.steps) for name, total in self.values.items()}

    @property
    def score(self) -> float | None:
        """The metric on training images; None where batches do not tell it."""
        score = self.mean(self._metric)
        return score if score is not None and math.isfinite(score) else None
