"""`routespace train`: a recipe becomes a run folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from routespace.cli.options import Changes, Data

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from routespace.train.recipe.recipe import Recipe

NAME = "train"
EXAMPLE = "routespace train digits_tiny --set train.epochs=5 --out runs/first"


def run(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|RUN", help="A recipe's name (`recipes` lists them) or YAML file, or a run's folder."
        ),
    ],
    data: Data = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The run's folder; else runs/RECIPE.")] = None,
    changes: Changes = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with an interrupted run where it stopped; device and memory may be others."
        ),
    ] = False,
    start: Annotated[
        Path | None,
        typer.Option("--from", metavar="BUNDLE|RUN", help="Fine-tune this network: its grid and gates."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same as --set seed=…")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda: the same as --set train.device=…")] = None,
) -> None:
    """Train a recipe: a supernet with its gates under the budget, or a plain network.

    Stopped by Ctrl-C or SIGTERM it saves a checkpoint; --resume then gives what it would have given.
    """
    from routespace.cli.own_classes import with_own_classes
    from routespace.cli.status import loading
    from routespace.cli.watch import watching
    from routespace.train.recipe.recipe import parse_assignments

    chosen = with_changes(recipe, changes or [], data=data, seed=seed, device=device)
    asked = frozenset(parse_assignments(changes or []))
    folder = out or _folder(recipe, chosen, start, resume=resume)
    _require_effect(chosen, asked, given=start is not None)
    _require(chosen, folder, start, resume=resume)
    with loading():
        from routespace.train.run import train_recipe
        from routespace.train.start import fine_tuning
        from routespace.train.stopping import TrainingStoppedError, is_first_process
        from routespace.workflow.artifacts import load_artifact
    lines: list[str] = []
    if data is not None and start is None:
        chosen, lines = with_own_classes(chosen, recipe, asked)
    given = None if start is None else load_artifact(start)
    init = None if given is None else given.net
    earlier = () if given is None else [score.model_dump(mode="json") for score in given.scores]
    try:
        shown = chosen
        if init is not None and chosen.budget.macs is not None and not resume:  # a share of that network's base
            shown = fine_tuning(chosen, init, asked).recipe
        lines += () if given is None or resume else other_classes(chosen, given.classes)
        with watching(budget=budget_ratio(shown)) as progress:
            for line in lines if is_first_process() else ():
                progress.say(line)
            told: dict[str, Any] = {"progress": progress if is_first_process() else None, "tell": progress.say}
            result = train_recipe(chosen, folder, init=init, resume=resume, asked=asked, earlier=earlier, **told)
    except (TrainingStoppedError, KeyboardInterrupt) as error:
        raise _interrupted(folder) from error
    if is_first_process():
        show_result(result.metrics, folder)


def _interrupted(folder: Path) -> KeyboardInterrupt:
    """What to say of a training that was stopped: how it goes on, where it had begun."""
    from routespace.errors import command_line
    from routespace.train.run_folder import RunFolder

    if not RunFolder(folder).is_run:
        return KeyboardInterrupt("interrupted; nothing was trained yet, and nothing is left")
    return KeyboardInterrupt(f"interrupted; it goes on with: {command_line('train', folder, '--resume')}")


def _require_effect(recipe: Recipe, asked: Collection[str], *, given: bool) -> None:
    """Raise SpecError for what was set and a training does not heed; a given network may change what it heeds."""
    from routespace.errors import SpecError
    from routespace.train.recipe.effects import require_effect

    searched = next((field for field in asked if f"{field}.".startswith("search.")), None)
    if searched is not None:
        raise SpecError(f"{searched}: is for `routespace search`; a training does not heed it, leave it out")
    if not given:
        require_effect(recipe, asked)


def _require(recipe: Recipe, folder: Path, start: Path | None, *, resume: bool) -> None:
    """Raise what can be told before torch is imported."""
    from routespace.files import require_folder
    from routespace.train.named_files import require_files
    from routespace.train.run_folder import RunFolder
    from routespace.train.run_lock import refuse_held
    from routespace.train.stopping import is_first_process

    if is_first_process():
        refuse_held(folder)
    if not resume:
        RunFolder(folder).refuse_existing()
    if start is not None:
        _require_network(start)
    if not resume:
        require_files(recipe)
        require_folder(folder)


def _require_network(start: Path) -> None:
    """Raise BundleError for what `--from` cannot take."""
    from routespace.deploy.folder import net_folder
    from routespace.errors import BundleError

    if start.is_file():
        way = f"--set {shlex.quote(f'train.weights={start}')}"
        raise BundleError(f"--from: {start} is a file; give a run or a bundle, or start from it by {way}")
    net_folder(start)


def other_classes(recipe: Recipe, given: Sequence[str] | None) -> tuple[str, ...]:
    """A line where a given network's outputs are as many as the data's classes, and of other names.

    Args:
        recipe: of the data.
        given: the network's class names in output order; None where they are not known.
    """
    from routespace.train.data.catalogue import examples
    from routespace.train.data.source import class_names

    if not given:
        return ()
    names = class_names(recipe)
    if len(names) != len(given) or names == tuple(given):
        return ()  # another number of classes gives a new head, which is told
    line = (
        f"classes: the network's outputs were {examples(given)}, and are now to be {examples(names)}; its head is "
        f"trained on as it is"
    )
    return (line,)


def budget_ratio(recipe: Recipe) -> float | None:
    """The recipe's budget as a share of its base; None without one."""
    target = recipe.budget_macs()
    return None if target is None else target / recipe.base_macs()


def with_changes(
    name: str,
    changes: list[str],
    *,
    data: Path | None,
    seed: int | None = None,
    device: str | None = None,
) -> Recipe:
    """The recipe of that name with what the command line changes.

    Raises:
        SpecError: no such recipe, a field that is not allowed, or two values for one.
    """
    from routespace.cli.arguments import said_once
    from routespace.recipes import load_recipe
    from routespace.train.recipe.data_kinds import absolute, data_at
    from routespace.train.recipe.recipe import parse_assignments

    recipe, more = load_recipe(name), parse_assignments(changes)
    if data is not None:
        said_once("data.root", "--data", data, more, read=absolute)
        more = _at(data_at(data, recipe.data), more)
    for option, field, value in (("--seed", "seed", seed), ("--device", "train.device", device)):
        said_once(field, option, value, more)
        more |= {} if value is None else {field: value}
    return recipe.override(more) if more else recipe


def _at(found: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The fields of --data beside those of --set, which hold where --data only supposes them."""
    root = {"data.root": found["data.root"]}
    same_kind = given.get("data.kind", found["data.kind"]) == found["data.kind"]
    return (found if same_kind else {}) | given | root


def _folder(given: str, recipe: Recipe, start: Path | None, *, resume: bool) -> Path:
    """Where to train when --out does not say."""
    from routespace.recipes import recipe_names

    if resume and Path(given).is_dir() and given not in recipe_names():  # names come first, as in `load_recipe`
        return Path(given)
    return Path("runs") / (recipe.name if start is None else f"{recipe.name}-from-{start.name}")


def show_result(metrics: dict[str, Any], folder: Path) -> None:
    """Print a finished run's numbers."""
    from routespace.cli.render import giga, mega, pairs
    from routespace.cli.watch import clock
    from routespace.train.tasks.kinds import TASKS

    metric = TASKS[metrics.get("task", "classify")].metric
    calibration = metrics.get("calibration") or {}
    target = metrics.get("target_macs")
    wanted = "" if target is None else f", budget {giga(target)} = {metrics['target_ratio']:.2f}×"
    expected = None
    if metrics.get("expected_macs") is not None:
        expected = f"{giga(metrics['expected_macs'])} = {metrics['expected_ratio']:.2f}×"
    print()
    pairs(
        [
            (metric.name, f"{metric.text(metrics[metric.name])} of {metrics['images']} validation images"),
            ("MACs, counted", f"{giga(metrics['counted_macs'])} = {metrics['counted_ratio']:.2f}×{wanted}"),
            ("MACs, expected", expected),
            ("1×", giga(metrics["base_macs"])),
            ("parameters", mega(metrics["params"])),
            ("budget missed", calibration.get("note") or None),
            *(("note", remark) for remark in metrics.get("remarks") or ()),
            ("time", f"{clock(metrics['seconds'])}, epochs: {metrics['epochs']}, on {metrics['device']}"),
            ("run", folder),
        ]
    )
