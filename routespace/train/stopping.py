"""Stopping a training from outside: SIGTERM (a cluster's preemption) and SIGINT (Ctrl-C) end it cleanly."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from routespace.errors import RoutespaceError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class TrainingStoppedError(RoutespaceError):
    """A signal ended the training; its checkpoint is saved."""


class DivergedError(RoutespaceError):
    """A network gives no finite numbers any more."""


class PeerError(RoutespaceError):
    """Another of several processes ended the training; that one has told why."""


def is_first_process() -> bool:
    """Whether this process speaks for all that train together; asked before torch is there."""
    return os.environ.get("RANK", "0") == "0"


class StopSignal:
    """While active, the first SIGTERM or SIGINT is only noted in `caught`; a second one acts as usual."""

    def __init__(self) -> None:
        self.caught: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
