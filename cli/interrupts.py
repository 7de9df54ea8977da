"""Ctrl-C at any moment, or SIGTERM: one line, exit code 130 or 143, and nothing half-done.

start       from the program's first moment on: nothing is half-done yet, so it ends at once
Interrupts  while a command runs: KeyboardInterrupt, so that files are tidied up; sure to arrive, and remembered
imports     while a command imports what it needs: at once again

Raising KeyboardInterrupt is not enough. A library whose import is interrupted turns it into an error of its own,
or hides it; so does Python in destructors. So an interrupt waits until no module is being imported, comes again
when a destructor hid it, and whatever ends a command after it is told as the interrupt that it was.

SIGTERM, by which batch systems end a job, does the same. One of several processes that train together leaves it to
the training: it may wait for the others, where no exception reaches it.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

OF_SIGNALS = 128  # what shells add to a signal for an exit code: 130 of SIGINT, 143 of SIGTERM
AGAIN_S = 0.05
IMPORT_FRAMES = "<frozen importlib"
LEFT_LINE = "\r\x1b[K\x1b[?25h"  # clears a status line and shows the cursor that it hid


def start() -> Interrupts:
    """Handle signals from now on. For the program's own process: it is not undone."""
    for number in _signals():
        signal.signal(number, end_at_once)
    interrupts = Interrupts()
    sys.unraisablehook = interrupts.hidden
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_leave_to_parent)
    return interrupts


def _leave_to_parent() -> None:
    """Workers that load data end with their parent, or when it ends them, without words of their own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def end_at_once(number: int = signal.SIGINT, frame: FrameType | None = None) -> NoReturn:
    """End the program here and now, with one line."""
    try:
        sys.stdout.flush()
    finally:
        left = LEFT_LINE if os.isatty(2) else ""
        os.write(2, f"{left}error: interrupted\n".encode())
        os._exit(OF_SIGNALS + number)


class Interrupts:
    """The handler of SIGINT and SIGTERM while a command runs; the second of them ends at once.

    Attributes:
        came: the first that came, whatever became of it; None while none has.
    """

    def __init__(self) -> None:
        self.came: signal.Signals | None = None
        self._raised = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt, when no import is under way that would make something else of it."""
        if self._raised:
            end_at_once(self.came or signal.SIGINT)
        self.came = self.came or signal.Signals(number)
        if _importing(frame):
            self._again()
            return
        self._raised = True
        raise KeyboardInterrupt

    @contextmanager
    def handling(self, *, active: bool = True) -> Iterator[None]:
        """Handle signals while a command runs, and leave the end of the program in peace after it."""
        numbers = _signals() if active else ()
        for number in numbers:
            signal.signal(number, self)
        try:
            yield
        finally:
            if active:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def hidden(self, unraisable: sys.UnraisableHookArgs) -> None:
        """What Python does with an exception that nobody can catch; an interrupt comes again."""
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._raised = False
            self._again()
        else:
            sys.__unraisablehook__(unraisable)

    def _again(self) -> None:
        timer = threading.Timer(AGAIN_S, _send)
        timer.daemon = True
        timer.start()


def _signals() -> tuple[signal.Signals, ...]:
    """What interrupts a command."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,)


def _send() -> None:
    """Send SIGINT to the main thread, whatever it waits for."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:  # Windows
        _thread.interrupt_main()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(IMPORT_FRAMES):
            return True
        frame = frame.f_back
    return False


@contextmanager
def imports() -> Iterator[None]:
    """A block that only imports, with nothing to tidy up: an interrupt ends the program at once."""
    before = {number: signal.getsignal(number) for number in _signals()}
    if not isinstance(before[signal.SIGINT], Interrupts):  # a program of somebody else's, such as a test
        yield
        return
    for number in before:
        signal.signal(number, end_at_once)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
