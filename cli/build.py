"""`routespace build`: a grid, drawn and counted, before anything is trained. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from routespace.cli.grid_options import grid_fields, grid_options
from routespace.cli.options import AsJson
from routespace.errors import BudgetError, GridError, SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from routespace.grid.graph import RoutingGrid

NAME = "build"
EXAMPLE = "routespace build --layers 24 --max-down 32 --macs 4G -o grid.json"
WHOLE = ("preset", "family", "size")  # options that stand for a grid of their own
LONGEST = 4000  # digits of an integer that JSON readers still take


@grid_options
def run(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="GRID|RECIPE|BUNDLE|RUN",
            help="Whose grid to start from (a preset such as dit_b2, a grid's JSON file, a recipe, a folder); "
            "else the options alone.",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Set any field of the grid: --set window=8. Repeatable.")
    ] = None,
    macs: Annotated[str | None, typer.Option(help="A budget to check, such as 12M or 1.2G.")] = None,
    latency: Annotated[Path | None, typer.Option(help="A table of `profile`: adds milliseconds.")] = None,
    ms: Annotated[float | None, typer.Option(help="Milliseconds to check, by the --latency table.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the grid as JSON.")] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Add what training it takes (needs torch: seconds).")
    ] = False,
    as_json: AsJson = False,
    **fields: Any,
) -> None:
    """Build a routing grid, draw it, and count what is in it.

    Nothing is trained: the numbers are analytic. One multiply-add is one MAC. All MACs are without gates; what the
    gates of the full grid add is told apart, and `cost` prints both together.
    """
    from routespace.cli.arguments import parse_macs, said_once
    from routespace.files import json_text, require_place, write_json
    from routespace.grid.graph import RoutingGrid
    from routespace.grid.spec import GridSpec
    from routespace.train.recipe.yaml import parse_assignments

    options, more = grid_fields(fields), parse_assignments(changes or [])
    for name, value in options.items():
        said_once(name, f"--{name.replace('_', '-')}", value, more)
    grid = RoutingGrid(GridSpec.parse(_start(source, options | more) | options | more))
    budget = None if macs is None else parse_macs(macs)
    if out is not None:
        require_place(out)
    if ms is not None and latency is None:
        raise SpecError("ms: it is checked by a table; measure one with `routespace profile` and give --latency")
    report = summary(grid, budget)
    if latency is not None:
        report["latency_ms"] = _latencies(grid, latency)
    if memory:
        report["memory"] = _memory(grid)
    print(json_text(report)) if as_json else show(grid, report)
    _require(grid, report, budget=budget, ms=ms)
    if out is not None:
        write_json(out, grid.to_json())


def _start(source: str | None, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the grid that is changed; raises SpecError where the options name another grid."""
    from routespace.workflow.subjects import load_subject

    if source is None:
        return {}
    twice = next((name for name in WHOLE if name in asked), None)
    if twice is not None:
        raise SpecError(f"{twice}: {source} is a whole grid already; give --{twice} without it, or leave it out")
    return load_subject(source).grid.spec.model_dump()


def _require(grid: RoutingGrid, report: dict[str, Any], *, budget: int | None, ms: float | None) -> None:
    """Raise BudgetError where nothing in the grid keeps a limit."""
    from routespace.grid.count import require_satisfiable

    if budget is not None:
        require_satisfiable(grid, budget)
    if ms is not None and not ms >= report["latency_ms"]["min"]:
        least = report["latency_ms"]["min"]
        raise BudgetError(
            f"ms: {ms:g} is not enough for this grid; the fastest static network takes {least:.4g} ms"
        )


def summary(grid: RoutingGrid, budget: int | None = None) -> dict[str, Any]:
    """The numbers of a grid as JSON data; integers are exact but for the median, which is rounded to a bin.

    `params` and `macs` are without gates; `gates` is what default gates on every edge add to `params` and
    `macs.full`.
    """
    from routespace.cli.render import log10
    from routespace.grid.architecture import Architecture
    from routespace.grid.cost import architecture_cost
    from routespace.grid.count import count_paths, count_static, satisfiable, static_range
    from routespace.grid.gate_spec import GateSpec
    from routespace.grid.graph import KINDS
    from routespace.grid.sample import median_macs

    full = Architecture.full(grid)
    cost, gated = architecture_cost(full), architecture_cost(full, gates=GateSpec())
    least_most, count = static_range(grid), count_static(grid)
    report: dict[str, Any] = {
        "layers": grid.spec.layers,
        "rates": list(grid.spec.rates),
        "nodes": len(grid.nodes),
        "removed_nodes": grid.removed_nodes,
        "edges": {kind: len(grid.of_kind(kind)) for kind in KINDS},
        "params": cost.params,
        "gates": {"params": gated.params - cost.params, "macs": gated.macs - cost.macs},
        "macs": {
            "min": least_most.min_macs,
            "median": median_macs(grid),
            "max": least_most.max_macs,
            "staircase": _staircase_macs(grid),
            "full": cost.macs,
        },
        "static_architectures": count if log10(count) < LONGEST else None,
        "log10_static_architectures": round(log10(count), 3),
        "log10_with_missing_rates": round(log10(count_static(grid, every_rate=False)), 3),
        "paths": count_paths(grid) if log10(count_paths(grid)) < LONGEST else None,
        "image_size": list(grid.spec.image_size),
        "family": grid.spec.family.name,
        "hash": grid.hash,
    }
    if budget is not None:
        report |= {"budget_macs": budget, "satisfiable": satisfiable(grid, budget)}
    return report


def _staircase_macs(grid: RoutingGrid) -> float | None:
    """MACs of the plain network of equal shares; None where the grid lacks its patch embeddings."""
    from routespace.grid.architecture import Architecture
    from routespace.grid.cost import architecture_cost

    try:
        return architecture_cost(Architecture.staircase(grid)).macs
    except GridError:
        return None


def show(grid: RoutingGrid, report: dict[str, Any]) -> None:
    """Print the drawing and the table."""
    from routespace.cli.render import big, draw, giga, legend, log10, mega, pairs
    from routespace.grid.count import count_static

    print(draw(grid))
    print(f"\n{legend()}\n")
    edges, macs = report["edges"], report["macs"]
    count = report["static_architectures"]
    counted = big(count) if count is not None else f"10^{log10(count_static(grid)):.0f}"
    stairs = (
        "none (an embedding that it needs is missing)" if macs["staircase"] is None else giga(macs["staircase"])
    )
    added = f" (and {giga(report['gates']['macs'])} in gates)"
    rows: list[tuple[str, object]] = [
        ("grid", f"{report['layers']} layers × rates {'/'.join(map(str, report['rates']))}, {grid.spec.family}"),
        ("image", f"{report['image_size'][0]}×{report['image_size'][1]} px"),
        ("nodes", f"{report['nodes']} ({report['removed_nodes']} unused ones removed)"),
        ("edges", f"{sum(edges.values())}: " + ", ".join(f"{number} {kind}" for kind, number in edges.items())),
        ("parameters", f"{mega(report['params'])} (and {mega(report['gates']['params'])} in gates)"),
        ("MACs", f"staircase {stairs} · full {giga(macs['full'])}{added}"),
        ("MACs, static", f"min {giga(macs['min'])} · median {giga(macs['median'])} · max {giga(macs['max'])}"),
        ("architectures", f"{counted} static ones{_more(grid)}"),
        ("paths", big(report["paths"]) if report["paths"] is not None else None),
        ("hash", report["hash"]),
    ]
    if "memory" in report:
        rows += _memory_rows(report["memory"])
    if "latency_ms" in report:
        rows.insert(7, ("latency", " · ".join(f"{name} {ms:.3g} ms" for name, ms in report["latency_ms"].items())))
    if "satisfiable" in report:
        rows.append(("budget", f"{giga(report['budget_macs'])}: {_verdict(report)}"))
    pairs(rows)


def _more(grid: RoutingGrid) -> str:
    """How many there are with those that never reach some rate of a pyramid."""
    from routespace.cli.render import big, log10
    from routespace.grid.count import count_static

    if len(grid.outputs) == 1:
        return ""
    number = count_static(grid, every_rate=False)
    text = big(number) if log10(number) < LONGEST else f"10^{log10(number):.0f}"
    return f" ({text} with those that never reach some of the rates)"


def _memory(grid: RoutingGrid) -> dict[str, int | None]:
    """Bytes that training the full grid with default gates takes, and the largest batch that fits here."""
    from routespace.cli.status import loading
    from routespace.grid.architecture import Architecture
    from routespace.train.recipe.parts import TrainSpec

    with loading():
        from routespace.nn.running import pick_device
        from routespace.train.memory import free_memory, training_need
    device = pick_device("auto")
    need, free = training_need(Architecture.full(grid), TrainSpec(), device=device.type), free_memory(device)
    return {
        "weights": need.weights,
        "gradients": need.gradients,
        "optimiser": need.optimiser,
        "per_image": need.per_image,
        "free": free,
        "largest_batch": None if free is None else need.most_images(free),
    }


def _memory_rows(memory: dict[str, int | None]) -> list[tuple[str, object]]:
    from routespace.memory import bytes_text

    parts = [f"{name} {bytes_text(memory[name] or 0)}" for name in ("weights", "gradients", "optimiser")]
    rows: list[tuple[str, object]] = [
        ("training", " · ".join(parts)),
        ("", f"{bytes_text(memory['per_image'] or 0)} for each image of a batch, in fp32 with every gate open"),
    ]
    if memory["free"] is not None:
        rows.append(
            ("", f"{bytes_text(memory['free'])} are free here, for batches of up to {memory['largest_batch']}")
        )
    return rows


def _verdict(report: dict[str, Any]) -> str:
    if not report["satisfiable"]:
        return "not satisfiable"
    return "satisfiable" + (
        " (nothing static costs more)" if report["budget_macs"] >= report["macs"]["max"] else ""
    )


def _latencies(grid: RoutingGrid, path: Path) -> dict[str, float]:
    """Predicted milliseconds by a measured table: the fastest, the staircase, everything computed."""
    from routespace.deploy.latency.table import (
        load_table,
        predict,
        table_prices,
    )  # torch: the table knows its version
    from routespace.grid.architecture import Architecture
    from routespace.grid.count import least_sum

    table = load_table(path, grid=grid)
    prices = table_prices(table, grid).edges
    least, _ = least_sum(grid, [prices[name] for name in grid.edges])
    found = {"min": least + table.constant_ms}
    if _staircase_macs(grid) is not None:
        found["staircase"] = predict(table, Architecture.staircase(grid))
    return found | {"full": predict(table, Architecture.full(grid).opened())}  # as the MACs: without gates
