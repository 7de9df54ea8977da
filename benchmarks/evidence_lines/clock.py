"""Seconds of trainings that are compared: of the processor on a CPU, so that other work does not lengthen them."""

from __future__ import annotations

import time
from collections.abc import Callable

from routespace.train.progress import Progress


def clock_of(device: str) -> Callable[[], float]:
    """What tells seconds of work on a device."""
    return time.process_time if device == "cpu" else time.perf_counter


class Clock:
    """Adds up the seconds between steps in each phase: no validation, calibration or start.

    On a CPU they are those of the processor, which other work on the machine does not lengthen.
    """

    def __init__(self, device: str) -> None:
        self.seconds: dict[int, float] = {}
        self._now = clock_of(device)
        self._last = 0.0

    def __call__(self, news: Progress) -> None:
        now = self._now()
        if news.stage == "train" and news.step > 1:
            self.seconds[news.phase] = self.seconds.get(news.phase, 0.0) + now - self._last
        self._last = now
