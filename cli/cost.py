"""`routespace cost`: parameters, MACs and bytes of a network, analytically.

It needs torch for --check, and for the head of a dense task, which is priced by its layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from routespace.cli.options import SubjectName
from routespace.errors import SpecError
from routespace.files import json_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from routespace.grid.architecture import Architecture
    from routespace.grid.cost import ArchitectureCost
    from routespace.grid.families.base import EdgeCost
    from routespace.grid.gate_spec import GateSpec
    from routespace.grid.resources import GateCost
    from routespace.nn.heads.base import Head
    from routespace.workflow.subjects import Subject

NAME = "cost"
EXAMPLE = "routespace cost dit_b2 --architecture staircase --by rate"


def run(
    source: SubjectName,
    architecture: Annotated[
        str | None,
        typer.Option(help="full, staircase (the plain network) or a JSON file; else its own, of a GRID full."),
    ] = None,
    usage: Annotated[Path | None, typer.Option(help="Measured usage (a run's usage.json) to apply.")] = None,
    by: Annotated[str | None, typer.Option(help="Also list the edges by edge, layer, rate or kind.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    check: Annotated[bool, typer.Option(help="Count again with torch and with fvcore (takes seconds).")] = False,
) -> None:
    """Tell what a network costs for one image: parameters, MACs, bytes, and where.

    One multiply-add is one MAC. Gated edges count as wholly computed, unless --usage tells what a run measured.
    Their gates count too: its own, or those of a default GateSpec for a GRID. Of a detector or a network
    that segments, backbone and whole network are told; budgets count the backbone.
    """
    from routespace.files import read_json
    from routespace.grid.cost import By, architecture_cost, measured_cost
    from routespace.grid.gate_spec import GateSpec
    from routespace.grid.usage import sizes_from_json
    from routespace.workflow.subjects import USAGE_FILE, load_architecture, load_subject

    if by is not None and by not in get_args(By):
        raise SpecError(f"by: {by!r:.40} is not allowed; give one of {', '.join(get_args(By))}")
    found = load_subject(source)
    part = found.architecture
    if architecture is not None or part is None:
        part = load_architecture(found.grid, architecture or "full")
    measured = sizes_from_json(read_json(usage, wanted=USAGE_FILE), found.grid) if usage else None
    gates = found.gates or GateSpec()  # a grid has none yet; static architectures have none to pay for
    cost = measured_cost(part, measured, gates=gates) if measured else architecture_cost(part, gates=gates)
    dense = _dense_head(found, part)
    head = None if dense is None else dense.cost(part.spec)
    report = as_data(part, cost if head is None else cost.with_head(head), by)
    if measured is None:
        report |= _measured(found, part, head)
    if head is not None:
        report["backbone"] = cost.totals
    if part.missing_rates:
        report["missing_rates"] = list(part.missing_rates)
    if as_json:
        print(json_text(report))
    else:
        show(report)
    if check:
        _check(part, gates, dense, to_stderr=as_json)


def as_data(part: Architecture, cost: ArchitectureCost, by: str | None) -> dict[str, Any]:
    """A cost as JSON data: totals of each resource, parts with every token computed, and groups of edges.

    A group of one edge also tells the parts of its price with every token computed: `fixed_macs`, paid as soon as
    one token of the image is; `routed_macs`, of all tokens together; `gate_macs`, of all decisions of its gate.
    Without measured usage they add up to the group's `macs`. `skipped_macs`: of all tokens
    together on the path of skipped ones.
    """
    report: dict[str, Any] = {
        **cost.totals,
        "parts": {
            "stem": _sum([cost.stem]),
            "edges": _sum(cost.edges.values()),
            "gates": _sum(gates=cost.gates.values()),
            "outputs": _sum(cost.outputs.values()),
            "head": _sum([cost.head]),
        },
        "architecture": {"hash": part.hash, "edges": len(part.edges), "gated": len(part.gated_edges)},
        "grid": part.grid.hash,
    }
    if by is not None:
        groups = cost.grouped(cast(Any, by))
        report["by"] = by
        report["groups"] = {str(key): total for key, total in groups.items() if any(total.values())}
        if by == "edge":
            for name, group in report["groups"].items():
                edge, gate = cost.edges[name], cost.gates.get(name)
                group |= {"fixed_macs": edge.fixed_macs, "routed_macs": edge.routed_macs}
                group["gate_macs"] = gate.macs if gate else 0
                group["skipped_macs"] = gate.skipped_macs if gate else 0
    return report


def _sum(edges: Iterable[EdgeCost] = (), gates: Iterable[GateCost] = ()) -> dict[str, float]:
    """Resource → what some parts take with everything computed."""
    from routespace.grid.resources import NO_EDGE, NO_GATE, RESOURCES, analytic

    parts = [*((edge, NO_GATE) for edge in edges), *((NO_EDGE, gate) for gate in gates)]
    return {what: sum(RESOURCES[what].whole(*part) for part in parts) for what in analytic()}


def _dense_head(found: Subject, part: Architecture) -> Head | None:
    """The head of a dense task, of which the grid says nothing, without numbers; None for other networks."""
    if not found.has_own_head:
        return None
    from routespace.cli.status import loading

    with loading():
        import torch
    with torch.device("meta"):  # shapes alone
        return found.make_head(part.spec).over(part.output_rates)


def _measured(found: Subject, part: Architecture, head: EdgeCost | None) -> dict[str, Any]:
    """What a run's own measured usage makes of it, when there is one and it is about this architecture."""
    from routespace.grid.cost import measured_cost

    if not found.sizes or part != found.architecture:
        return {}
    cost = measured_cost(part, found.sizes, gates=found.gates)
    whole = cost if head is None else cost.with_head(head)
    report = {"measured": {what: amount for what, amount in whole.totals.items() if what != "params"}}
    if head is not None:
        report["measured_backbone"] = {what: cost.totals[what] for what in report["measured"]}
    return report


def show(report: dict[str, Any]) -> None:
    """Print the parts, the totals and the groups as tables."""
    from routespace.cli.render import amount, table
    from routespace.grid.resources import RESOURCES, analytic

    names = analytic()
    labels = [RESOURCES[what].label for what in names]

    def row(name: str, cost: dict[str, Any]) -> tuple[str, ...]:
        return name, *(amount(what, cost[what]) for what in names)

    rows = [row(name, cost) for name, cost in report["parts"].items() if any(cost.values())]
    dense = "backbone" in report
    if dense:
        rows.append(row("backbone", report["backbone"]))
    rows.append(row("whole network" if dense else "total", report))
    if "measured" in report:
        rows.append(row("as measured on validation", {"params": report["params"]} | report["measured"]))
    if "measured_backbone" in report:
        params = {"params": report["backbone"]["params"]}
        rows.append(row("the backbone of it", params | report["measured_backbone"]))
    table(("part", *labels), rows)
    if "missing_rates" in report:
        print(f"it never reaches rates {', '.join(map(str, report['missing_rates']))}")
    if "groups" in report:
        print()
        groups = [row(f"1/{key}" if report["by"] == "rate" else key, c) for key, c in report["groups"].items()]
        table((report["by"], *labels), groups)


def _check(part: Architecture, gates: GateSpec, head: Head | None, *, to_stderr: bool) -> None:
    """Count with torch and fvcore too; a difference is an error of ours and ends with exit code 1."""
    from routespace.deploy.counters import compare

    report = compare(part, gates=gates, head=head)
    typer.echo("\n" + "\n".join(report.lines()), err=to_stderr)
    if not report.ok:
        raise typer.Exit(1)
