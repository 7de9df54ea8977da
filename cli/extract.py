"""`routespace extract`: from a trained supernet to a small static network in a folder of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from routespace import file_names
from routespace.cli.options import Device, Latency, out, overwriting
from routespace.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from routespace.cli.budgets import Budgets
    from routespace.deploy.latency.table import LatencyTable
    from routespace.workflow.artifacts import Artifact
    from routespace.workflow.fine_tuning import FineTuning
    from routespace.workflow.taking import Extraction
    from routespace.workflow.wishes import Wishes

NAME = "extract"
EXAMPLE = "routespace extract runs/digits_tiny --macs 12M -o small/"
METHODS = ("milp", "threshold")
CHOICES = ("usage", "kl", "candidates")


def run(
    source: Annotated[Path, typer.Argument(metavar="RUN|STUDY", help="A finished run, or a study with --trial.")],
    folder: Annotated[Path, out("The bundle's folder; of several budgets one with a bundle for each.")],
    macs: Annotated[
        str | None,
        typer.Option(
            metavar="MACS[,MACS…]",
            help="The most MACs, such as 12M; of several each gives a network, cut from the one before.",
        ),
    ] = None,
    ratio: Annotated[
        str | None,
        typer.Option(metavar="SHARE[,SHARE…]", help="The same as shares of the MACs of the recipe's base."),
    ] = None,
    ms: Annotated[float | None, typer.Option(help="The most milliseconds, by the --latency table.")] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=AMOUNT", help="The most of any resource, such as params=2M. Repeatable."),
    ] = None,
    latency: Latency = None,
    trial: Annotated[int | None, typer.Option(help="Which trial of a STUDY, by its number.")] = None,
    method: Annotated[
        str, typer.Option(help="How a part is found by its scores: milp (proven best) or threshold.")
    ] = "milp",
    choose: Annotated[
        str | None,
        typer.Option(
            help="usage (the most used part), kl (what changes the outputs most when it is missing) or candidates "
            "(the best of several on validation); by default the last after a sandwich training."
        ),
    ] = None,
    finetune: Annotated[
        int | None,
        typer.Option(metavar="EPOCHS", help="Train the part for so many epochs before it is saved."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="BUNDLE|RUN|timm:NAME|none", help="Who teaches it meanwhile; by default what it was cut from."
        ),
    ] = None,
    cut: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="The largest share of the MACs that one cut takes away before a fine-tuning, such as 0.6; "
            "else all are cut at once.",
        ),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE[,SIZE…]",
            help="Move the network to images of this size first, a side in pixels or HxW; of several the best on "
            "validation is taken. Limits count images of that size.",
        ),
    ] = None,
    evaluate: Annotated[
        bool, typer.Option(help="Measure the task's metric on validation, whole and extracted.")
    ] = True,
    drop_rates: Annotated[
        bool, typer.Option("--drop-rates", help="Let the part do without rates of a pyramid where that is best.")
    ] = False,
    overwrite: Annotated[bool, overwriting("a bundle, or several, that are there")] = False,
    recipe: Annotated[str | None, typer.Option(help="Recipe to take instead of the run's own.")] = None,
    device: Device = "auto",
) -> None:
    """Choose the best part of a supernet under a limit, take it out, verify and save it.

    Without a limit it is the recipe's own budget. A static network is then taken whole. With --finetune the part
    is trained on before it is saved, by the recipe of its run. Smaller images are often a cheaper way to save MACs
    than fewer blocks: --image-size. Several budgets with commas between them (--ratio 0.85,0.7,0.5 --finetune 2)
    give several networks: each is cut from the one before and trained on.
    """
    from routespace.cli.arguments import named_recipe, parse_limits, parse_sizes
    from routespace.cli.budgets import Budgets
    from routespace.cli.status import loading
    from routespace.deploy.folder import net_folder, require_bundle_place, require_series_place

    _check_choice(choose, method)
    given = named_recipe(recipe)
    limits, budgets = parse_limits(limit or []), Budgets.parse(macs, ratio)
    _check_limits(limits, budgets, ms=ms, latency=latency)
    _check_teacher(finetune, teacher, cut)
    sizes = parse_sizes(image_size)
    (require_series_place if budgets.several else require_bundle_place)(folder, overwrite=overwrite)
    run_folder = _run_folder(source, trial)
    net_folder(run_folder)
    with loading():
        from routespace.workflow.artifacts import load_artifact
        from routespace.workflow.wishes import Wishes
    tuning = _tuning(finetune, teacher, cut)
    found = load_artifact(run_folder, recipe=given, device=device)
    _require_images(found, wanted=given is not None and (evaluate or tuning is not None))
    table = None if latency is None else _table(latency, found, sized=bool(sizes))
    wishes = Wishes(
        limits | ({} if ms is None else {"latency_ms": ms}),
        table=table,
        method=method,
        by=choose,
        every_rate=not drop_rates,
        evaluated=evaluate,
        overwrite=overwrite,
        tuning=tuning,
        image_size=sizes or None,
    )
    first = _watched(found, folder, budgets, wishes)
    print(f"\nwritten to {folder}")
    _what_next(found, first)


def _watched(found: Artifact, folder: Path, budgets: Budgets, wishes: Wishes) -> Path:
    """Take out what is wished, and show it; the bundle, or the first of several."""
    from routespace.cli.extract_series import taken_series
    from routespace.cli.extract_steps import ShownExtraction
    from routespace.train.stopping import TrainingStoppedError
    from routespace.train.tasks.kinds import task_of_head
    from routespace.workflow.extraction import extract_as_wished

    limits = budgets.of(found)
    try:
        if budgets.several:
            return folder / taken_series(found, folder, limits, wishes).members[0].name
        for most in limits.values():  # one, or none
            wishes = replace(wishes, limits={**wishes.limits, "macs": most})
        shown = ShownExtraction(task_of_head(found.net.head, found.net.spec).metric)
        show(found, extract_as_wished(found, folder, wishes, shown), wishes.table)
        return folder
    except TrainingStoppedError as error:
        raise KeyboardInterrupt("interrupted; nothing was saved") from error


def _table(path: Path, found: Artifact, *, sized: bool) -> LatencyTable:
    """The table of --latency; of this grid, or of one of another image size, which is checked with the sizes."""
    from routespace.deploy.latency.table import load_table

    grid = found.net.architecture.grid
    return load_table(path, grid=None if sized else grid, families=[grid.spec.family])


def _require_images(found: Artifact, *, wanted: bool) -> None:
    """Raise DataError, before the work, where a recipe that was given is about images of other classes."""
    if wanted:
        _ = found.held_out().val


def _check_choice(choose: str | None, method: str) -> None:
    from routespace.cli.arguments import one_of

    one_of("method", method, METHODS)
    if choose is not None:
        one_of("choose", choose, CHOICES)


def _check_teacher(epochs: int | None, teacher: str | None, cut: float | None) -> None:
    """Raise SpecError for a teacher without anything to teach, and for steps without anything between them."""
    if teacher is not None and epochs is None:
        raise SpecError("teacher: it teaches in a fine-tuning; give --finetune EPOCHS with it")
    if cut is not None and epochs is None:
        raise SpecError("cut: between two cuts the part is fine-tuned; give --finetune EPOCHS with it")


def _tuning(epochs: int | None, teacher: str | None, cut: float | None) -> FineTuning | None:
    from routespace.workflow.fine_tuning import AT_ONCE, FineTuning

    return None if epochs is None else FineTuning(epochs, teacher, AT_ONCE if cut is None else cut)


def _what_next(found: Artifact, folder: Path) -> None:
    """Print the commands that a bundle is for."""
    from routespace.errors import command_line

    if found.preprocess is not None:
        print(f"look at images with: {command_line('predict', folder, 'IMAGE_OR_FOLDER')}")
    if found.recipe is not None:
        print(f"fine-tune it with: {command_line('train', found.folder, '--from', folder)}")


def _check_limits(
    limits: Mapping[str, float], budgets: Budgets, *, ms: float | None, latency: Path | None
) -> None:
    """Raise SpecError for limits that say one thing twice, or half of one."""
    if budgets.ratios and ("macs" in limits or budgets.macs):
        raise SpecError("macs: --macs and --ratio are two ways to say one thing; give one of them")
    if "macs" in limits and budgets.macs:
        raise SpecError("macs: it is limited twice; give it once")
    if "latency_ms" in limits:
        raise SpecError("limit.latency_ms: give it as --ms, with the --latency table that it is about")
    if (ms is None) != (latency is None):
        raise SpecError("ms: --ms and --latency go together; give a limit and the table that it is about")


def _run_folder(source: Path, trial: int | None) -> Path:
    """The run itself, or that of a study's trial."""
    if trial is None:
        if (source / file_names.STUDY).exists():
            raise SpecError(f"trial: {source} is a study; name one of its trials with --trial N")
        return source
    from routespace.search import load_study, trial_folder

    return trial_folder(load_study(source), trial)


def show(found: Artifact, taken: Extraction, table: LatencyTable | None = None) -> None:
    """Print what was taken, under which limits, and what was measured on the way."""
    from routespace.cli.render import amount, pairs
    from routespace.deploy.latency.table import predict
    from routespace.grid.resources import RESOURCES
    from routespace.nn.cost import network_cost
    from routespace.train.macs import counted_macs

    macs = counted_macs(taken.net, {}), counted_macs(found.net, {})  # what limits are about
    limits, network = taken.limits, taken.card.costs["macs"]
    small = {**taken.card.costs, "macs": macs[0]}
    whole = {**network_cost(found.net).totals, "macs": macs[1]}
    rows: list[tuple[str, object]] = []
    if _px(found) != _px(taken):
        rows.append(("images", f"{_px(taken)}; the whole was trained on {_px(found)}"))
    for name in dict.fromkeys(["macs", "params", *limits]):
        label = {"params": "parameters"}.get(name, RESOURCES[name].label)
        under = f" (limit {amount(name, limits[name])})" if name in limits else ""
        if name in small:
            rows.append((label, f"{amount(name, small[name])} of {amount(name, whole[name])}{under}"))
            if name == "macs" and network != macs[0]:
                rows.append(("", f"{amount('macs', network)} with the head, which no budget counts"))
        elif table is not None:
            rows.append((label, f"{predict(table, taken.net.architecture):.3g} ms predicted{under}"))
    rows.append(("verified", f"largest difference of outputs {taken.max_difference:.1e}"))
    rows += _measured(found, taken)
    rows += [("remark", line) for line in taken.card.remarks]
    pairs([*rows, ("architecture", taken.card.architecture)])


def _measured(found: Artifact, taken: Extraction) -> list[tuple[str, object]]:
    """Rows on what was measured on validation; of which size images are where there are two."""
    from routespace.cli.watch import clock
    from routespace.train.tasks.kinds import task_of_head

    metric = task_of_head(taken.net.head, taken.net.spec).metric
    rows: list[tuple[str, object]] = []
    if taken.score is not None and taken.score_whole is not None:
        own, size = _px(found), _px(taken)
        new, old = ("", "") if own == size else (f" of {size}", f" of {own}")
        part, whole = metric.text(taken.score), metric.text(taken.score_whole)
        rows.append((metric.name, f"{part} of {taken.images} validation images{new}; whole{old} {whole}"))
    if taken.tuned is not None:
        after, spent = metric.text(taken.tuned[metric.name]), clock(taken.tuned["seconds"])
        epochs = taken.tuned["epochs"]
        rows.append(("fine-tuned", f"{after} after {epochs} {'epoch' if epochs == 1 else 'epochs'}, {spent}"))
    return rows


def _px(owner: Artifact | Extraction) -> str:
    """Height and width of the images that a network is for."""
    height, width = owner.net.spec.image_size
    return f"{height}x{width} px"
