"""The demo's end: its plain counterpart, the evaluation on the test split, the export, table and pictures."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routespace.cli.demo import heading

if TYPE_CHECKING:
    from routespace.cli.demo import Journey
    from routespace.grid.architecture import Architecture
    from routespace.nn.route_net import RouteNet
    from routespace.train.recipe import Recipe
    from routespace.train.run import RunResult

WINDOW = 3  # how far each rate's head width may lie from the common one


def plain_recipe(recipe: Recipe, like: Architecture) -> Recipe:
    """The recipe of a plain staircase in the same grid, with widths that give it the MACs of `like`.

    Heads stay as they are; the widths of the heads, one per rate, are chosen to come closest, the more equal
    ones first.
    """
    from routespace.grid.architecture import Architecture
    from routespace.grid.cost import architecture_cost
    from routespace.grid.graph import RoutingGrid
    from routespace.grid.spec import GridSpec

    wanted, heads = architecture_cost(like).macs, recipe.grid.shape.heads
    fields = recipe.grid.model_dump(exclude_none=True, exclude={"size"})

    def macs(sizes: tuple[int, ...]) -> float:
        widths = tuple(size * head for size, head in zip(sizes, heads, strict=True))
        grid = RoutingGrid(GridSpec.parse(fields | {"widths": widths}))
        return architecture_cost(Architecture.staircase(grid)).macs

    largest = max(width // head for width, head in zip(recipe.grid.shape.widths, heads, strict=True))
    equal = min(range(2, 2 * largest), key=lambda size: abs(macs((size,) * len(heads)) - wanted))
    near = range(max(2, equal - WINDOW), equal + WINDOW + 1)
    candidates = sorted(itertools.product(near, repeat=len(heads)), key=lambda sizes: max(sizes) - min(sizes))
    close = (sizes for sizes in candidates if abs(macs(sizes) / wanted - 1) <= 0.005)
    sizes = next(close, (equal,) * len(heads))
    widths = [size * head for size, head in zip(sizes, heads, strict=True)]
    return recipe.override({"name": f"{recipe.name}_plain", "routing": "static", "grid.widths": widths})


@dataclass(frozen=True)
class Row:
    """One network of the final table; accuracy is the test split's."""

    name: str
    macs: float
    params: int
    accuracy: float
    seconds: float | None
    note: str = ""


def conclude(
    journey: Journey, *, supernet: RunResult, small: RouteNet, tuned: RunResult, plain: RunResult
) -> None:
    """Evaluate everything on the test split, export, draw, and write `demo.json`."""
    from routespace.cli.evaluate import measure
    from routespace.cli.files import write_json
    from routespace.train.data import make_loaders

    heading(7, "evaluate on the test split, which nothing has looked at so far")
    loaders = make_loaders(journey.recipe)
    nets = {
        "supernet, routed": (supernet.net, supernet.metrics["seconds"]),
        "extracted": (small, None),
        "extracted, fine-tuned": (tuned.net, tuned.metrics["seconds"]),
        "plain PVTv2": (plain.net, plain.metrics["seconds"]),
    }
    reports = {name: measure(net, loaders, "test") for name, (net, _) in nets.items()}
    rows = [_row(name, reports[name], seconds) for name, (_, seconds) in nets.items()]
    _print(rows)
    heading(8, "export, and draw what was learned")
    exported = _export(journey, tuned.net)
    pictures = _pictures(journey, supernet, small)
    for line in (*exported, *map(str, pictures)):
        print(line)
    write_json(journey.out / "demo.json", {"rows": [vars(row) for row in rows], "reports": reports})


def _row(name: str, report: dict[str, Any], seconds: float | None) -> Row:
    speed = report.get("speed")
    note = ""
    if speed:
        note = (
            f"{speed['measured_speedup']:.2f}× as fast as with everything computed, measured; "
            f"{speed['counted_speedup']:.2f}× by counted MACs"
        )
    return Row(name, report["counted_macs"], report["params"], report["accuracy"], seconds, note)


def _print(rows: list[Row]) -> None:
    from routespace.cli.render import giga, mega, percent, table

    table(
        ("network", "MACs", "parameters", "test accuracy", "training"),
        [
            (
                row.name,
                giga(row.macs),
                mega(row.params),
                percent(row.accuracy),
                None if row.seconds is None else f"{row.seconds:.0f} s",
            )
            for row in rows
        ],
    )
    for row in rows:
        if row.note:
            print(f"\n{row.name}: {row.note}")


def _export(journey: Journey, net: RouteNet) -> list[str]:
    """ONNX, checked; where the extra is not installed, .pt2 instead."""
    from routespace.deploy.export import export_onnx, export_pt2
    from routespace.errors import MissingDependencyError

    try:
        report = export_onnx(net, journey.out / "model.onnx")
    except MissingDependencyError as error:
        print(f"{error}; writing .pt2 instead")
        report = export_pt2(net, journey.out / "model.pt2")
    return [f"{report.path}  checked, largest difference {report.max_difference:.1e}"]


def _pictures(journey: Journey, supernet: RunResult, small: RouteNet) -> list[Path]:
    """What the supernet's tokens used, and what was extracted."""
    from routespace.cli.arguments import load_usage
    from routespace.draw.grid import draw_grid

    net = supernet.net
    usage = load_usage(supernet.folder, net.architecture.grid)
    found = [
        draw_grid(net.architecture, usage, path=journey.out / "supernet.png", title="Supernet: tokens used"),
        draw_grid(small.architecture, path=journey.out / "extracted.png", title="What was extracted"),
    ]
    front = journey.out / "front.png"
    return [*found, front] if front.exists() else found
