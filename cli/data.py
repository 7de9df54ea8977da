"""`routespace data check`: every picture of a folder or table is read before it is trained on. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from routespace.train.data.check import DataReport

NAME = "data"
EXAMPLE = "routespace data check photos"
SHOWN = 20  # findings of each kind in a terminal; --json gives all
UNREADABLE = 1  # exit code, as of `verify`: the command went well, the data is not

app = typer.Typer(help="Look at your own pictures before training on them.")


@app.callback()
def group() -> None:
    """Look at your own pictures before training on them."""


@app.command("check", epilog=f"Example:  {EXAMPLE}")
def check(
    root: Annotated[Path, typer.Argument(help="A folder with train/<class>/ or <class>/, or a table (.csv).")],
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; else one for each processor.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every finding.")] = False,
) -> None:
    """Find unreadable, truncated, huge, duplicate and misnamed pictures.

    Exit code 0 when every picture can be read and 1 when not: training would stop at it, or leave it out where
    data.skip_bad allows for it.
    """
    import os

    from routespace.files import json_text
    from routespace.train.data.check import check_pictures

    with _bar(shown=not as_json) as progress:
        report = check_pictures(root, workers=workers or os.cpu_count() or 1, progress=progress)
    if as_json:
        found = [finding._asdict() for finding in report.findings]
        data = {"ok": report.ok, "counts": report.counts, "left_out": report.left_out, "findings": found}
        print(json_text(data))
    else:
        show(report)
    if not report.ok:
        raise typer.Exit(UNREADABLE)


def show(report: DataReport) -> None:
    """Print what was found, the worst first."""
    from routespace.train.data.check import PROBLEMS, by_problem

    print(report.text)
    for problem, findings in by_problem(report.findings).items():
        print(f"\n{PROBLEMS[problem]} ({len(findings)}):")
        for finding in findings[:SHOWN]:
            print(f"  {finding.path}  ({finding.detail})")
        if len(findings) > SHOWN:
            print(f"  … and {len(findings) - SHOWN} more; --json lists all")
    if not report.findings:
        print("every picture can be read; none is huge, there twice, or misnamed")


@contextmanager
def _bar(*, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar in a terminal; nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from routespace.cli.render import console

    screen = console()
    if not shown or not screen.is_terminal:
        yield None
        return
    columns = (TextColumn("reading"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
