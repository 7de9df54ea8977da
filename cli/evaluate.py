"""`routespace evaluate`: the task's metric, cost both ways, and whether routing is really faster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from routespace.cli.options import AsJson, Data, DataRecipe, Device
from routespace.cli.printing import tell_boxes
from routespace.files import json_text

if TYPE_CHECKING:
    from routespace.nn.task_net import TaskNet

NAME = "evaluate"
EXAMPLE = "routespace evaluate runs/digits_tiny --json"
SPLITS = ("test", "val")


SubjectArgument = Annotated[
    Path, typer.Argument(metavar="RUN|BUNDLE", help="A finished run, or an extracted network.")
]
SplitName = Annotated[str, typer.Option(help="test, or val: what training and search looked at.")]
Speed = Annotated[
    bool | None,
    typer.Option("--speed/--no-speed", help="Time a routed network against all of it computed, as by default."),
]
Compiled = Annotated[bool, typer.Option("--compile", help="Time both with compiled blocks: a minute more.")]
ByClass = Annotated[bool, typer.Option("--by-class", help="Also print a row for each class.")]
Confusion = Annotated[
    Path | None, typer.Option(help="Write how many images of each class were taken for which, as a table (.csv).")
]
Picture = Annotated[Path | None, typer.Option(help="Draw which tokens of the first images were computed.")]


def run(
    source: SubjectArgument,
    split: SplitName = "test",
    recipe: DataRecipe = None,
    data: Data = None,
    speed: Speed = None,
    compiled: Compiled = False,
    by_class: ByClass = False,
    confusion: Confusion = None,
    picture: Picture = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Evaluate a trained network on the test split.

    MACs are told as counted (from the decisions taken), as expected (what the budget loss saw) and with everything
    computed; for a routed network the measured speed-up stands next to the counted one.
    """
    from routespace.cli.arguments import named_recipe, one_of
    from routespace.cli.status import busy, loading
    from routespace.deploy.folder import net_folder
    from routespace.errors import SpecError
    from routespace.files import require_place
    from routespace.train.data.lookup import require_at

    one_of("split", split, SPLITS)
    if compiled and speed is False:
        raise SpecError("compile: what is compiled is timed, and --no-speed times nothing; give one of them")
    net_folder(source)
    if data is not None:
        require_at(data)
    given = named_recipe(recipe)
    for path in filter(None, (picture, confusion)):
        require_place(path)
    with loading():
        from routespace.nn.heads.classify import Classifier
        from routespace.train.data.evaluation import evaluation_loaders
        from routespace.workflow import evaluation
        from routespace.workflow.artifacts import load_artifact
    found = load_artifact(source, recipe=given, device=device)
    chosen = found.images_recipe(named=data is not None)
    if picture is not None:
        evaluation.require_paintable(found.net, picture)
    _check_wishes(found.net, speed=speed, compiled=compiled, confusion=confusion)
    loaders = evaluation_loaders(
        chosen, found.net.spec, preprocess=found.preprocess, classes=found.classes, data=data
    )
    part = evaluation.require_split(split)
    with busy("evaluating"):
        timed = speed is not False
        report = evaluation.evaluate_network(found.net, loaders, split=part, speed=timed, compiled=compiled)
        if picture is not None:
            evaluation.paint_tokens(found.net, loaders, picture, split=part)
    if picture is not None and found.net.head.kind == Classifier.kind:  # no other's names are drawn
        tell_boxes(loaders.source.classes, several=True)
    _tell(report, as_json=as_json, by_class=by_class, confusion=confusion)


def _check_wishes(net: TaskNet, *, speed: bool | None, compiled: bool, confusion: Path | None) -> None:
    """Raise SpecError for what such a network cannot be asked."""
    from routespace.errors import SpecError
    from routespace.nn.heads.classify import Classifier

    if confusion is not None and net.head.kind != Classifier.kind:
        raise SpecError(
            "confusion: is of images that have one class each; leave it out, --by-class tells of the classes"
        )
    if (compiled or speed) and net.architecture.is_static:
        raise SpecError(
            f"{'compile' if compiled else 'speed'}: a static network is not timed here; leave it out, or time it "
            f"with `routespace bench`"
        )
    net.compile_blocks(compiled).compile_blocks(False)  # a family that cannot is refused before the work


def _tell(report: dict[str, Any], *, as_json: bool, by_class: bool, confusion: Path | None) -> None:
    """Write and print an evaluation."""
    from routespace.cli.evaluate_classes import confusion_csv, show_classes
    from routespace.cli.printing import csv_bytes
    from routespace.files import write_bytes

    if confusion is not None:
        write_bytes(confusion, csv_bytes(confusion_csv(report)))
    if as_json:
        print(json_text(report))
        return
    show(report)
    if by_class:
        print()
        show_classes(report)


def show(report: dict[str, Any]) -> None:
    """Print an evaluation."""
    from routespace.cli.evaluate_classes import worst_classes
    from routespace.cli.render import giga, mega, pairs, percent
    from routespace.train.tasks.kinds import TASKS

    metric = TASKS[report["task"]].metric
    macs, counted, expected = report["macs"], report["counted_macs"], report["expected_macs"]
    routed = "speed" in report or counted < macs
    rows: list[tuple[str, object]] = [
        (metric.name, f"{metric.text(report[metric.name])} of {report['images']} {report['split']} images"),
        ("also", ", ".join(f"{name} {metric.text(report[name])}" for name in report["also"]) or None),
        ("by class", worst_classes(report)),
        ("loss", f"{report['loss']:.4f}"),
        ("parameters", mega(report["params"])),
        ("MACs", giga(macs) + (" with everything computed" if routed else "") + _size(report)),
    ]
    if routed:
        rows.append(("MACs, counted", f"{giga(counted)} ({percent(counted / macs)})"))
        rows.append(("MACs, expected", f"{giga(expected)} ({percent(expected / macs)})"))
    if report["network_macs"] != macs:
        rows.append(("", f"{giga(report['network_macs'])} with the head, which no budget counts"))
    rows += _as_fed(report, routed=routed)
    if report.get("object_auc"):
        areas = report["object_auc"]
        low, high = min(areas, key=lambda name: areas[name]), max(areas, key=lambda name: areas[name])
        text = f"{areas[high]:.2f} ({high})" + (f", worst {areas[low]:.2f} ({low})" if low != high else "")
        rows.append(("gates find objects", f"area under the curve {text}; a coin has 0.50"))
    pairs([*rows, *_speed(report)])


def _size(report: dict[str, Any]) -> str:
    """The size of the images that MACs are told of, where not all have it."""
    height, width = report["image_size"]
    return f", of a picture of {height} × {width} px" if "as_fed" in report else ""


def _as_fed(report: dict[str, Any], *, routed: bool) -> list[tuple[str, object]]:
    """The row of what pictures of other sizes than the grid's took as they were fed."""
    from routespace.cli.render import giga

    if "as_fed" not in report:
        return []
    fed = report["as_fed"]
    ways = f"{giga(fed['counted_macs'])} counted, {giga(fed['macs'])}" if routed else giga(fed["macs"])
    head = f", {giga(fed['network_macs'])} with the head" if report["network_macs"] != report["macs"] else ""
    sizes = f"{fed['sizes']} {'size' if fed['sizes'] == 1 else 'sizes'}"
    return [("MACs, as fed", f"{ways} with everything computed{head}: means of pictures of {sizes}")]


def _speed(report: dict[str, Any]) -> list[tuple[str, object]]:
    """The rows of a routed network's speed."""
    if "speed" not in report:
        return []
    speed = report["speed"]
    where = "one thread" if speed["device"] == "cpu" else speed["device"]
    ways = f"routed {speed['routed_ms']:.1f} ms, everything computed {speed['dense_ms']:.1f} ms"
    batch = f"batch {speed['batch']}" + (f" of {speed['sizes']} sizes" if speed["sizes"] > 1 else "")
    return [
        ("speed-up", f"{speed['measured_speedup']:.2f}× measured, {speed['counted_speedup']:.2f}× counted"),
        ("", f"{batch}: {ways}, {where}" + (", compiled" if speed["compiled"] else "")),
    ]
