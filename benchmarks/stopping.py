"""Ctrl-C and SIGTERM end a script of many trainings: one line, no next training, and its processes end with it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from routespace.train.stopping import TrainingStoppedError

OF_SIGNALS = 128  # what shells add to a signal for an exit code


class Stopped(KeyboardInterrupt):
    """A signal came.

    Attributes:
        by: the signal.
    """

    def __init__(self, by: signal.Signals) -> None:
        super().__init__(by.name)
        self.by = by


def until_stopped(main: Callable[[], None]) -> None:
    """Run a script; a training that is stopped has saved its checkpoint, and ends the script.

    Args:
        main: the script.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        main()
    except (Stopped, TrainingStoppedError) as stopped:
        print(f"stopped by {stopped.by.name}; the same command goes on", file=sys.stderr)
        sys.exit(OF_SIGNALS + stopped.by)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(signal.Signals(number))
