"""What a command is doing, in one line on stderr: in a terminal while it does it, in a pipe every half minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from routespace.cli.interrupts import imports
from routespace.cli.watch import QUIET_S


@contextmanager
def busy(what: str) -> Iterator[Callable[[str], None]]:
    """Show `what …` while the block runs; it is given a function that shows something else from then on."""
    from rich.console import Console

    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield _now_and_then()
        return
    with screen.status(f"{what} …") as status:
        yield lambda more: status.update(f"{more} …")


def _now_and_then() -> Callable[[str], None]:
    """Prints what it is given as a line on stderr when nothing was for half a minute."""
    told = time.monotonic()

    def say(more: str) -> None:
        nonlocal told
        if time.monotonic() - told >= QUIET_S:
            typer.echo(f"{more} …", err=True)
            told = time.monotonic()

    return say


@contextmanager
def loading(what: str = "loading torch") -> Iterator[None]:
    """A block that only imports: say so, because it takes seconds, and let Ctrl-C end it at once."""
    with imports(), busy(what):
        yield
