"""The numbers of training steps, read from the device: those of each step at once, or of many steps together.

    readings.add(losses, seconds)       # after a step
    if readings.each_step or readings.are_many:
        found = readings.take()

Reading waits until a GPU has done all that was asked of it. Numbers that stay there hold up no step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from routespace.train.step_loss import Losses

READ_STEPS = 16  # steps whose numbers are read from a GPU at once


class Reading(NamedTuple):
    """What one step told, as means over all processes.

    Attributes:
        losses: the numbers of `Losses`, in its order.
        seconds: that it took.
    """

    losses: list[float]
    seconds: float


class StepReadings:
    """Numbers of the steps since the last reading.

    Args:
        accelerator: whose processes each have numbers of their own.
        needed: whether the next step goes by those of the last.
    """

    def __init__(self, accelerator: Accelerator, *, needed: bool) -> None:
        self._accelerator, self._needed = accelerator, needed
        self._unread: list[Tensor] = []

    @property
    def each_step(self) -> bool:
        """Whether the next step needs the numbers of the last, or nothing is gained by reading them later."""
        return self._needed or self._accelerator.device.type == "cpu"

    @property
    def are_many(self) -> bool:
        """Whether as many steps wait as are read together."""
        return len(self._unread) >= READ_STEPS

    def add(self, losses: Losses, seconds: float) -> None:
        """After a step; all processes then have the same numbers, and so end together."""
        numbers = [value.detach().double() for value in losses]
        numbers.append(torch.full_like(numbers[0], seconds))
        self._unread.append(self._accelerator.reduce(torch.stack(numbers), "mean"))

    def take(self) -> list[Reading]:
        """Those of the steps since the last reading, in their order."""
        found: list[list[float]] = torch.stack(self._unread).tolist() if self._unread else []
        self._unread.clear()
        return [Reading(losses, seconds) for *losses, seconds in found]
