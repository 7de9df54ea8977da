"""`routespace profile`: a table of measured latencies, of this machine and this grid."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from routespace.cli.options import CLOCKS, DTYPES, ClockName, Device, SubjectName, Threads, Type, out

if TYPE_CHECKING:
    from routespace.deploy.latency.table import LatencyTable
    from routespace.grid.gate_spec import GateSpec
    from routespace.workflow.subjects import Subject

NAME = "profile"
EXAMPLE = "routespace profile pvt_v2_b0 --device cpu -o table.json"

Batch = Annotated[int, typer.Option(help="Images of a forward pass.")]
Compiled = Annotated[bool, typer.Option("--compile", help="With compiled blocks.")]
Routed = Annotated[bool, typer.Option("--routed", help="Default gates for a GRID; others bring their own.")]
Keeps = Annotated[
    str | None, typer.Option(help="Shares of tokens to measure edges at; else 1, with gates 0.25,0.5,0.75,1.")
]
Rounds = Annotated[int | None, typer.Option(help="Measurements behind each median.")]
Subnets = Annotated[int | None, typer.Option(help="Whole subnets to calibrate with; 0 for none.")]


def run(
    source: SubjectName,
    table_file: Annotated[Path, out("The table.")],
    device: Device = "cpu",
    batch: Batch = 1,
    dtype: Type = "float32",
    compiled: Compiled = False,
    routed: Routed = False,
    keeps: Keeps = None,
    rounds: Rounds = None,
    subnets: Subnets = None,
    threads: Threads = 1,
    clock: ClockName = "wall",
) -> None:
    """Measure how long each kind of edge takes on this machine, as a table.

    `build`, `search` and `extract` predict milliseconds with it (--latency). Times are medians, warm. Of a network
    with gates, these are timed too. The table names the device, threads, versions and date; one of another grid
    is refused later.
    """
    from routespace.cli.arguments import one_of, parse_numbers
    from routespace.cli.status import busy, loading
    from routespace.files import require_place
    from routespace.workflow.subjects import load_subject

    one_of("dtype", dtype, DTYPES)
    one_of("clock", clock, CLOCKS)
    kept = None if keeps is None else parse_numbers(keeps, "keeps", float)
    subject = load_subject(source)
    require_place(table_file)
    with loading():
        from routespace.deploy.latency import profiling
        from routespace.deploy.latency.table import save_table
        from routespace.nn.running import pick_device
    with busy("measuring"):
        table = profiling.profile(
            subject.grid,
            device=str(pick_device(device)),
            batch=batch,
            dtype=cast(Any, dtype),
            compiled=compiled,
            gates=_gates(subject, routed=routed),
            keeps=kept,
            rounds=profiling.ROUNDS if rounds is None else rounds,
            subnets=profiling.SUBNETS if subnets is None else subnets,
            threads=threads,
            clock=cast(Any, clock),
        )
    save_table(table, table_file)
    show(table, subject)
    print(f"\nwritten to {table_file}")


def _gates(subject: Subject, *, routed: bool) -> GateSpec | None:
    """How the network's edges are gated; None where none is."""
    from routespace.grid.gate_spec import GateSpec

    if subject.architecture is not None and not subject.architecture.is_static:
        return subject.gates
    return GateSpec() if routed else None


def show(table: LatencyTable, subject: Subject) -> None:
    """Print the parts' times and what whole networks take by them."""
    from routespace.cli.render import pairs
    from routespace.cli.render import table as print_table
    from routespace.deploy.latency.table import predict
    from routespace.errors import GridError
    from routespace.grid.architecture import Architecture

    threads = table.device.threads
    where = table.device.name + (f", {threads} thread{'s' if threads > 1 else ''}" if threads else "")
    where += f", batch {table.batch}, {table.dtype}" + (", compiled" if table.compiled else "")
    print_table(
        ("part", "rate", "blocks", "kept", "ms"),
        [
            (
                part.kind,
                f"1/{part.rate}" if part.rate else None,
                f"{part.depth}{f', phase {part.phase}' if part.phase else ''}" if part.depth else None,
                part.keep,
                f"{part.ms:.4f}",
            )
            for part in table.parts
        ],
        title=where,
    )
    full = Architecture.full(subject.grid)
    rows: list[tuple[str, object]] = [("full grid", f"{predict(table, full.opened()):.2f} ms")]
    if table.gates is not None:
        rows.append(("with its gates", f"{predict(table, full):.2f} ms"))
    with contextlib.suppress(GridError):  # a grid may lack an embedding that the staircase needs
        rows.append(("staircase", f"{predict(table, Architecture.staircase(subject.grid)):.2f} ms"))
    if subject.architecture is not None and subject.usage:
        rows.append(("as it was used", f"{predict(table, subject.architecture, subject.usage):.2f} ms"))
    print()
    pairs(rows)
