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
        images_per_s: of all processes, so far.
    """

    def __init__(self, metric: str) -> None:
        self._names = tuple(metric if name == "score" else name for name in Losses._fields)
        self._metric = metric
        self.images_per_s = 0.0
        self.clear()

    def clear(self) -> None:
        """Begin an epoch; the rate stays until a step has another."""
        self.values = dict.fromkeys(self._names, 0.0)

    def add(self, numbers: Sequence[float]) -> None:
        """Add a step's, in the order of `Losses`."""
        for name, value in zip(self._names, numbers, strict=True):
            self.values[name] += value

    def load(self, values: Mapping[str, float]) -> None:
        """Go on from `values`."""
        self.values = dict(values)

    def mean(self, name: str, steps: int) -> float | None:
        """Over so many steps; None where there was none."""
        return self.values[name] / steps if steps else None

    def score(self, steps: int) -> float | None:
        """The metric on training images; None where batches do not tell it."""
        score = self.mean(self._metric, steps)
        return score if score is not None and math.isfinite(score) else None
