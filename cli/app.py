"""The `routespace` command: one file per command, and one way for every error to look.

Whatever a user can cause ends as one line `error: …` on stderr and exit code 2, never a traceback; an interrupt
ends as one line and exit code 130, SIGTERM and 143. A traceback is a bug of ours.

The command files import typer and the standard library only; everything else is imported when a command runs,
so that `--help` answers at once and commands that need no torch do not wait for it.
"""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, cast

import typer
from typer.core import TyperGroup

from routespace.cli import (
    bench,
    build,
    cost,
    data,
    demo,
    evaluate,
    export,
    extract,
    predict,
    profile,
    recipes,
    search,
    train,
    verify,
)
from routespace.cli.families import allowing_families
from routespace.cli.interrupts import OF_SIGNALS, Interrupts
from routespace.cli.typed import TYPED, require_words
from routespace.errors import RoutespaceError, RoutespaceWarning, reason
from routespace.memory import keep_freed_memory, told_shortage
from routespace.train.stopping import PeerError, TrainingStoppedError, is_first_process

BAD_INPUT = 2
HOME = re.compile(r"(?:^|(?<==))~(?=/)")  # which a shell reads at the start of a word alone, not in --out=~/x

# typer carries its own click since 0.25 and used the real one before; this is the class in either.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class OneLineErrors(TyperGroup):
    """A group of commands whose errors are one line each."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Parse and run; ends the program with its exit code, unless a caller handles that (`standalone_mode`)."""
        ends = options.pop("standalone_mode", True)
        if not ends:
            return super().main(*args, **options | {"standalone_mode": False})
        try:
            code = super().main(*args, **options | {"standalone_mode": False})
        except UsageError as error:  # of the program's own options; a command's are told by `invoke`
            code = fail(one_line(error), BAD_INPUT).exit_code
        sys.exit(code)

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """A context that remembers what was typed."""
        typed = tuple(args)  # parsing empties the list
        args[:] = [HOME.sub(lambda found: os.path.expanduser(found[0]), word) for word in args]
        ctx = super().make_context(info_name, args, *rest, **extra)
        ctx.meta[TYPED] = typed
        return ctx

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command; what goes wrong is printed here."""
        interrupts = ctx.obj if isinstance(ctx.obj, Interrupts) else Interrupts()
        try:
            with interrupts.handling(active=interrupts is ctx.obj):
                require_words(ctx.meta[TYPED])
                super().invoke(ctx)
        except typer.Exit:
            raise
        except BaseException as error:
            ended = told(error, interrupted=interrupts.came)
            if ended is None:
                raise
            raise ended from error
        if interrupts.came:
            raise fail("interrupted", OF_SIGNALS + interrupts.came)


def told(error: BaseException, *, interrupted: signal.Signals | None = None) -> typer.Exit | None:
    """Print what a user can cause as one line; returns what ends the program, or None for a bug of ours.

    Args:
        error: what a command raised.
        interrupted: the signal that came before; whatever a library made of it, that is what happened.
    """
    if isinstance(error, KeyboardInterrupt):
        return fail(str(error) or "interrupted", OF_SIGNALS + (interrupted or _signal_behind(error)))
    if interrupted:
        return fail("interrupted", OF_SIGNALS + interrupted)
    if isinstance(error, BrokenPipeError):
        return None  # the reader of our output left (`… | head`): click ends quietly
    if isinstance(error, PeerError):
        return typer.Exit(BAD_INPUT)  # the process that it happened in has told it
    if isinstance(error, RoutespaceError | OSError | UsageError) or told_shortage(error) is not None:
        return fail(one_line(error), BAD_INPUT)
    return None


def _signal_behind(error: BaseException | None) -> signal.Signals:
    """The signal that ended a training, of which an interrupt tells; else Ctrl-C."""
    while error is not None and not isinstance(error, TrainingStoppedError):
        error = error.__cause__
    return signal.SIGINT if error is None else error.by


def fail(message: str, code: int) -> typer.Exit:
    """Print one line on stderr, in one of several processes; returns the exception that ends the program."""
    if tells(stopped=code > OF_SIGNALS):
        typer.echo(f"error: {message}", err=True)
    return typer.Exit(code)


def tells(*, stopped: bool = False) -> bool:
    """Whether this process tells why it ends.

    What goes wrong before several processes can agree goes wrong in each: the first one on a machine tells.
    Later the one that has an error tells (see PeerError). That they were stopped is told by the first of all.
    """
    if stopped:
        return is_first_process()
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return True
    return os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"


def one_line(error: BaseException) -> str:
    """An exception as one line: what was wrong, and with which file."""
    if isinstance(error, UsageError):
        return f"{error.format_message().rstrip('.')}; see --help"  # type: ignore[attr-defined]  # one class in either of click's homes
    shortage = told_shortage(error)
    if shortage is not None:
        return shortage
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'file'}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return reason(error)


app = typer.Typer(
    name="routespace",
    cls=OneLineErrors,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Neural architecture search over a routing space: build a grid of layers × downsampling rates, "
    "train it as a supernet under a budget, extract a small network, and verify that it is the same one.\n\n"
    "A RECIPE fixes a training and a RUN is its folder, a BUNDLE is the folder of an extracted network, a STUDY "
    "that of a search. One multiply-add is one MAC.",
    epilog="Start with `routespace demo`: the whole journey on real handwritten digits in a few minutes.",
)
for module in (
    build,
    train,
    evaluate,
    predict,
    search,
    extract,
    verify,
    recipes,
    cost,
    profile,
    bench,
    export,
    demo,
):
    app.command(module.NAME, epilog=f"Example:  {module.EXAMPLE}")(allowing_families(module.run))
app.add_typer(data.app, name=data.NAME)


def _print_version(asked: bool) -> None:
    if asked:
        from routespace import __version__

        typer.echo(f"routespace {__version__}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
    ),
) -> None:
    """Options of the whole program."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def quiet_libraries() -> None:
    """Warnings are ours, or about a GPU that cannot be used; libraries warn of each other and of our choices."""
    warnings.showwarning = telling_once()
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("default", category=RoutespaceWarning)  # told at the line of whoever called us
    warnings.filterwarnings("default", module=r"torch\.cuda")
    for theirs in ("timm", "torch.utils.cpp_extension"):  # they explain schedules, and where CUDA might be
        logging.getLogger(theirs).setLevel(logging.ERROR)


def telling_once() -> Callable[..., None]:
    """What shows a warning as one line, and no second time, such as by each trial of a study.

    Python forgets what it has told as soon as somebody catches warnings, which many do.
    """
    seen = set[str]()

    def show(message: Warning | str, *_: object) -> None:
        line = f"warning: {' '.join(str(message).split())}"
        if line not in seen:
            seen.add(line)
            print(line, file=sys.stderr, flush=True)

    return show


def run(interrupts: Interrupts) -> None:
    """Run the program on its command line, with its handler of Ctrl-C."""
    keep_freed_memory()
    quiet_libraries()
    if sys.stdout.encoding and sys.stdout.encoding.lower() not in ("utf-8", "utf8"):
        cast(io.TextIOWrapper, sys.stdout).reconfigure(errors="replace")
    app(obj=interrupts)
