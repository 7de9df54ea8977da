"""`routespace train`: a recipe becomes a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from routespace.train.recipe.recipe import Recipe

NAME = "train"
EXAMPLE = "routespace train digits_tiny --set train.epochs=5 --out runs/first"


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, a YAML file, or a run folder.")],
    data: Annotated[Path | None, typer.Option(help="A folder of images: ROOT/train/<class>/*.jpg.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; else runs/RECIPE.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Change a field.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    start: Annotated[Path | None, typer.Option("--from", metavar="BUNDLE", help="Fine-tune this network.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same as --set seed=…")] = None,
) -> None:
    """Train a recipe: a supernet with its gates under the budget, or a plain network.

    Stopped by Ctrl-C or SIGTERM it saves a checkpoint; --resume then gives what it would have given.
    """
    from routespace.cli.watch import watching
    from routespace.workflow.artifacts import load_artifact

    chosen = with_changes(recipe, changes or [], data, seed)
    folder = out or _folder(recipe, chosen, start, resume=resume)
    init = None if start is None else load_artifact(start).net
    from routespace.train.run import TrainingStoppedError, train

    try:
        with watching() as progress:
            result = train(chosen, folder, init=init, resume=resume, progress=progress)
    except (TrainingStoppedError, KeyboardInterrupt) as error:
        where = f"{error}: " if str(error) else ""
        raise KeyboardInterrupt(f"{where}routespace train {folder} --resume") from error
    show_result(result.metrics, folder)


def with_changes(name: str, changes: list[str], data: Path | None, seed: int | None) -> Recipe:
    """The recipe of that name with what the command line changes.

    Raises:
        SpecError: no such recipe, or a field that is not allowed.
    """
    from routespace.recipes import load_recipe
    from routespace.train.recipe.recipe import parse_assignments

    recipe, more = load_recipe(name), parse_assignments(changes)
    if data is not None:
        more |= {"data.kind": "folder", "data.root": str(data)}
    if seed is not None:
        more["seed"] = seed
    return recipe.override(more) if more else recipe


def _folder(given: str, recipe: Recipe, start: Path | None, *, resume: bool) -> Path:
    """Where to train when --out does not say."""
    if resume and Path(given).is_dir():
        return Path(given)
    return Path("runs") / (recipe.name if start is None else f"{recipe.name}-from-{start.name}")


def show_result(metrics: dict[str, Any], folder: Path) -> None:
    """Print a finished run's numbers."""
    from routespace.cli.render import giga, mega, pairs, percent
    from routespace.cli.watch import clock

    calibration = metrics.get("calibration") or {}
    target = metrics.get("target_macs")
    wanted = "" if target is None else f", budget {giga(target)} = {metrics['target_ratio']:.2f}×"
    expected = None
    if metrics.get("expected_macs") is not None:
        expected = f"{giga(metrics['expected_macs'])} = {metrics['expected_ratio']:.2f}×"
    print()
    pairs(
        [
            ("accuracy", f"{percent(metrics['accuracy'])} of {metrics['images']} validation images"),
            ("MACs, counted", f"{giga(metrics['counted_macs'])} = {metrics['counted_ratio']:.2f}×{wanted}"),
            ("MACs, expected", expected),
            ("1×", giga(metrics["base_macs"])),
            ("parameters", mega(metrics["params"])),
            ("budget missed", calibration.get("note") or None),
            ("time", f"{clock(metrics['seconds'])}, epochs: {metrics['epochs']}, on {metrics['device']}"),
            ("run", folder),
        ]
    )
