"""What a command is doing, in one line on stderr: in a terminal while it does it, in a pipe not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from routespace.cli.interrupts import imports


@contextmanager
def busy(what: str) -> Iterator[Callable[[str], None]]:
    """Show `what …` while the block runs; it is given a function that shows something else from then on."""
    from rich.console import Console

    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield lambda _: None
        return
    with screen.status(f"{what} …") as status:
        yield lambda more: status.update(f"{more} …")


@contextmanager
def loading(what: str = "loading torch") -> Iterator[None]:
    """A block that only imports: say so, because it takes seconds, and let Ctrl-C end it at once."""
    with imports(), busy(what):
        yield
