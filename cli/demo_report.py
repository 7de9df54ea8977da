"""The demo's end: the export, pictures, and the evaluation on the test split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routespace.cli.demo_journey import heading

if TYPE_CHECKING:
    from routespace.cli.demo_journey import Journey
    from routespace.deploy.bundle import Bundle
    from routespace.nn.task_net import TaskNet
    from routespace.train.run import RunResult

ROUTED, PLAIN = "supernet, routed", "plain PVTv2"
TUNED = ", fine-tuned"


@dataclass(frozen=True)
class TableRow:
    """One network of the final table.

    Attributes:
        accuracy: of the test split.
        seconds: of the training steps that made it, those of what it was taken from with them.
    """

    name: str
    macs: float
    params: int
    accuracy: float
    seconds: float
    note: str = ""


def export_and_draw(journey: Journey, supernet: RunResult, small: Bundle) -> None:
    """Export the supernet, and draw what was learned; while the fine-tuning is still under way."""
    from routespace.train.data.loaders import make_loaders
    from routespace.train.run_folder import RunFolder
    from routespace.workflow.evaluation import paint_tokens

    heading(5, "export, and draw what was learned")
    exported = _export(journey, supernet.net)
    loaders = make_loaders(RunFolder(supernet.folder).read_recipe())
    pictures = [paint_tokens(supernet.net, loaders, journey.out / "tokens.png", split="val")]
    pictures += _pictures(journey, supernet, small.net)
    for line in (*exported, *map(str, pictures)):
        print(line)


def conclude(
    journey: Journey,
    *,
    supernet: RunResult,
    small: Bundle,
    tuned: RunResult,
    plain: RunResult,
    longer: RunResult,
) -> None:
    """Evaluate everything on the test split, and write `demo.json`."""
    from routespace.files import write_json
    from routespace.train.data.loaders import make_loaders
    from routespace.train.run_folder import RunFolder
    from routespace.workflow.evaluation import evaluate_network

    heading(6, "evaluate on the test split, which nothing has looked at so far")
    loaders, tuned_loaders, plain_loaders = (  # the same kind of scenes, at each network's image size
        make_loaders(RunFolder(run.folder).read_recipe()) for run in (supernet, tuned, plain)
    )
    before, after = supernet.metrics["step_seconds"], tuned.metrics["step_seconds"]
    nets = {
        ROUTED: (supernet.net, loaders, before),
        PLAIN: (plain.net, plain_loaders, plain.metrics["step_seconds"]),
        PLAIN + TUNED: (longer.net, plain_loaders, plain.metrics["step_seconds"] + longer.metrics["step_seconds"]),
        "extracted": (small.net, tuned_loaders, before),
        "extracted" + TUNED: (tuned.net, tuned_loaders, before + after),
    }
    reports = {name: evaluate_network(net, data) for name, (net, data, _) in nets.items()}
    rows = [_row(name, reports[name], seconds) for name, (_, _, seconds) in nets.items()]
    _print(rows)
    print(f"\nwhat was extracted has the supernet's {before:.0f} s behind it, and {after:.0f} s of fine-tuning")
    write_json(journey.out / "demo.json", {"rows": [vars(row) for row in rows], "reports": reports})


def _row(name: str, report: dict[str, Any], seconds: float) -> TableRow:
    speed = report.get("speed")
    note = ""
    if speed:
        note = (
            f"{speed['measured_speedup']:.2f}× as fast as with everything computed, measured; "
            f"{speed['counted_speedup']:.2f}× by counted MACs"
        )
    return TableRow(name, report["counted_macs"], report["params"], report["accuracy"], seconds, note)


def _print(rows: list[TableRow]) -> None:
    from routespace.cli.render import giga, mega, percent, table

    table(
        ("network", "MACs", "parameters", "test accuracy", "training"),
        [
            (
                row.name,
                giga(row.macs),
                mega(row.params),
                percent(row.accuracy),
                f"{row.seconds:.0f} s",
            )
            for row in rows
        ],
    )
    for row in rows:
        if row.note:
            print(f"\n{row.name}: {row.note}")


def _export(journey: Journey, net: TaskNet) -> list[str]:
    """ONNX, checked; where the extra is not installed, .pt2 instead."""
    from routespace.deploy.export.write import export
    from routespace.errors import MissingDependencyError

    try:
        report = export(net, journey.out / "model.onnx")
    except MissingDependencyError as error:
        print(f"{error}; writing .pt2 instead")
        report = export(net, journey.out / "model.pt2")
    return [f"{report.path}  checked, largest difference {report.max_difference:.1e}"]


def _pictures(journey: Journey, supernet: RunResult, small: TaskNet) -> list[Path]:
    """What the supernet's tokens used, and what was extracted."""
    from routespace.draw.grid import draw_grid
    from routespace.workflow.subjects import load_usage

    net = supernet.net
    usage = load_usage(supernet.folder, net.architecture.grid)
    found = [
        draw_grid(net.architecture, usage, path=journey.out / "supernet.png", title="Supernet: tokens used"),
        draw_grid(small.architecture, path=journey.out / "extracted.png", title="What was extracted"),
    ]
    front = journey.out / "front.png"
    return [*found, front] if front.exists() else found
