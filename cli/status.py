"""What a command is doing, in one line on stderr: in a terminal while it does it, in a pipe every half minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread

import typer

from routespace.cli.interrupts import imports
from routespace.cli.watch import QUIET_S


@contextmanager
def busy(what: str) -> Iterator[Callable[[str], None]]:
    """Show `what …` and the time while the block runs; it is given a function that shows other words then."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    screen = Console(stderr=True)
    if not screen.is_terminal:
        with _now_and_then(what) as say:
            yield say
        return
    columns = SpinnerColumn(), TextColumn("{task.description} …", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=screen, transient=True) as shown:
        task = shown.add_task(what)
        yield lambda more: shown.update(task, description=more)


@contextmanager
def _now_and_then(what: str) -> Iterator[Callable[[str], None]]:
    """A function whose words become a line on stderr when nothing was for half a minute; nor is silence longer."""
    quiet_s, begin, ended, lock = QUIET_S, time.monotonic(), Event(), Lock()
    said, told = what, begin

    def say(more: str) -> None:
        nonlocal said, told
        with lock:
            said = more
            if time.monotonic() - told >= quiet_s:
                typer.echo(f"{more} …", err=True)
                told = time.monotonic()

    def tell_again() -> None:
        nonlocal told
        while not ended.wait(max(0.0, told + quiet_s - time.monotonic())):
            with lock:
                now = time.monotonic()
                if now - told >= quiet_s:
                    typer.echo(f"{said} … ({now - begin:.0f} s so far)", err=True)
                    told = now

    teller = Thread(target=tell_again, daemon=True)
    if quiet_s:
        teller.start()
    try:
        yield say
    finally:
        ended.set()
        if quiet_s:
            teller.join()


@contextmanager
def loading(what: str = "loading torch") -> Iterator[None]:
    """A block that only imports: say so, because it takes seconds, and let Ctrl-C end it at once."""
    with imports(), busy(what):
        yield
