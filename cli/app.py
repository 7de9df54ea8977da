"""The `routespace` command: one file per command, and one way for every error to look.

Whatever a user can cause ends as one line `error: …` on stderr and exit code 2, never a traceback; an interrupt
ends as one line and exit code 130. A traceback is a bug of ours.

The command files import typer and the standard library only; everything else is imported when a command runs,
so that `--help` answers at once and commands that need no torch do not wait for it.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from routespace.cli import build, cost, demo, evaluate, export, extract, profile, recipes, search, train, verify
from routespace.errors import RoutespaceError
from routespace.memory import keep_freed_memory

BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, what shells expect

# typer carries its own click since 0.25 and used the real one before; this is the class in either.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class OneLineErrors(TyperGroup):
    """A group of commands whose errors are one line each."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command; what goes wrong is printed here."""
        try:
            return super().invoke(ctx)
        except (RoutespaceError, OSError, MemoryError, UsageError) as error:
            if isinstance(error, BrokenPipeError):
                raise  # the reader of our output left (`… | head`): click ends quietly
            raise fail(one_line(error), BAD_INPUT) from error
        except KeyboardInterrupt as error:
            raise fail(str(error) or "interrupted", INTERRUPTED) from error


def fail(message: str, code: int) -> typer.Exit:
    """Print one line on stderr; returns the exception that ends the program."""
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(code)


def one_line(error: BaseException) -> str:
    """An exception as one line: what was wrong, and with which file."""
    if isinstance(error, UsageError):
        return f"{error.format_message().rstrip('.')}; see --help"  # type: ignore[attr-defined]
    if isinstance(error, MemoryError):
        return "not enough memory; use a smaller batch, image or grid"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'file'}: {error.strerror[0].lower()}{error.strerror[1:]}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, OSError):
        return lines[-1] if lines else type(error).__name__  # a worker's traceback ends with the reason
    return " ".join(lines)


app = typer.Typer(
    name="routespace",
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Neural architecture search over a routing space: build a grid of layers × downsampling rates, "
    "train it as a supernet under a budget, extract a small network, and verify that it is the same one.",
    epilog="Start with `routespace demo`: the whole journey on real handwritten digits in a few minutes.",
)
for module in (build, train, evaluate, search, extract, verify, recipes, cost, profile, export, demo):
    app.command(module.NAME, epilog=f"Example:  {module.EXAMPLE}")(module.run)


def _print_version(asked: bool) -> None:
    if asked:
        from routespace import __version__

        typer.echo(f"routespace {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
    ),
) -> None:
    """Options of the whole program."""


def _one_line_warning(message: Warning | str, category: type[Warning], *_: object) -> str:
    return f"warning: {message}\n"


def main() -> None:
    """Entry point of the `routespace` script."""
    keep_freed_memory()
    warnings.formatwarning = _one_line_warning  # type: ignore[assignment]
    warnings.filterwarnings("ignore", category=FutureWarning)  # libraries about each other: not the user's
    logging.getLogger("timm").setLevel(logging.ERROR)  # it explains its schedules
    if sys.stdout.encoding and sys.stdout.encoding.lower() not in ("utf-8", "utf8"):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    app()
