"""`routespace extract`: from a trained supernet to a small static network in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from routespace import file_names
from routespace.cli.options import Device, Latency, out
from routespace.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from routespace.deploy.latency.table import LatencyTable
    from routespace.grid.architecture import Architecture
    from routespace.workflow.artifacts import Artifact
    from routespace.workflow.cutting import Stage
    from routespace.workflow.extraction import Extraction
    from routespace.workflow.fine_tuning import FineTuning

NAME = "extract"
EXAMPLE = "routespace extract runs/digits_tiny --macs 12M -o small/"
METHODS = ("milp", "threshold")
CHOICES = ("usage", "kl", "candidates")


def run(
    source: Annotated[Path, typer.Argument(metavar="RUN|STUDY", help="A finished run, or a study with --trial.")],
    folder: Annotated[Path, out("The bundle's folder.")],
    macs: Annotated[str | None, typer.Option(help="The most MACs, such as 12M.")] = None,
    ratio: Annotated[float | None, typer.Option(help="The most MACs, as a share of the recipe's base.")] = None,
    ms: Annotated[float | None, typer.Option(help="The most milliseconds, by the --latency table.")] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=AMOUNT", help="The most of any resource, such as params=2M. Repeatable."),
    ] = None,
    latency: Latency = None,
    trial: Annotated[int | None, typer.Option(help="Number of a study's trial.")] = None,
    method: Annotated[str, typer.Option(help="milp (proven best) or threshold.")] = "milp",
    choose: Annotated[
        str | None,
        typer.Option(
            help="usage (the most used part), kl (what changes the outputs most when it is missing) or candidates "
            "(the best of several on validation); by default the last after a sandwich training."
        ),
    ] = None,
    finetune: Annotated[
        int | None, typer.Option(metavar="EPOCHS", help="Train the part on for so long before it is saved.")
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
            help="The most MACs that one cut takes away before a fine-tuning: 0.6; 1 is all at once.",
        ),
    ] = None,
    evaluate: Annotated[
        bool, typer.Option(help="Measure the task's metric on validation, whole and extracted.")
    ] = True,
    drop_rates: Annotated[
        bool, typer.Option("--drop-rates", help="Let the part do without rates of a pyramid where that is best.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    recipe: Annotated[str | None, typer.Option(help="Recipe to take instead of the run's own.")] = None,
    device: Device = "auto",
) -> None:
    """Choose the best part of a supernet under a limit, take it out, verify and save it.

    Without a limit it is the recipe's own budget. A static network is then taken whole. With --finetune the part
    is trained on before it is saved, by the recipe of its run.
    """
    from routespace.cli.arguments import named_recipe, parse_limits, parse_macs
    from routespace.cli.render import draw, legend
    from routespace.cli.status import loading
    from routespace.deploy.folder import net_folder, require_bundle_place
    from routespace.grid.resources import joined_limits

    _check_choice(choose, method)
    given = named_recipe(recipe)
    limits = parse_limits(limit or [])
    if macs is not None:
        limits = joined_limits(limits, parse_macs(macs))
    _check_limits(limits, ratio, ms=ms, latency=latency)
    _check_teacher(finetune, teacher, cut)
    require_bundle_place(folder, overwrite=overwrite)
    run_folder = _run_folder(source, trial)
    net_folder(run_folder)
    with loading():
        from routespace.deploy.latency.table import load_table
        from routespace.workflow.artifacts import load_artifact
        from routespace.workflow.extraction import require_effect
    tuning = _tuning(finetune, teacher, cut)
    found = load_artifact(run_folder, recipe=given, device=device)
    _require_images(found, wanted=given is not None and (evaluate or tuning is not None))
    table = None if latency is None else load_table(latency, grid=found.net.architecture.grid)
    limits = _all_limits(found, limits, ratio, ms)
    every = not drop_rates
    require_effect(found, limits, by=choose, method=method, every_rate=every)
    stage = _cut_down(found, limits, choose, tuning, every_rate=every)
    chosen = _choose(stage, found, limits, choose, table=table, method=method, every_rate=every)
    print(draw(chosen.grid, chosen))
    print(f"\n{legend(chosen)}\n", flush=True)
    taken = _take(stage, chosen, folder, origin=found, evaluate=evaluate, overwrite=overwrite)
    show(found, taken, limits, table)
    print(f"\nwritten to {folder}")
    _what_next(found, folder)


def _require_images(found: Artifact, *, wanted: bool) -> None:
    """Raise DataError, before the work, where a recipe that was given is about images of other classes."""
    if wanted:
        _ = found.held_out().val


def _cut_down(
    found: Artifact,
    limits: Mapping[str, float],
    by: str | None,
    tuning: FineTuning | None,
    *,
    every_rate: bool,
) -> Stage:
    """All cuts but the last, with progress."""
    from routespace.cli.watch import watching
    from routespace.train.stopping import TrainingStoppedError
    from routespace.workflow.cutting import Stage, cut_down
    from routespace.workflow.extraction import usual_choice

    if tuning is None:
        return Stage(found, None)
    with watching("fine-tuning ") as news:
        try:
            by = by or usual_choice(found)
            return cut_down(found, limits, tuning, by=by, every_rate=every_rate, progress=news, tell=news.say)
        except TrainingStoppedError as error:
            raise KeyboardInterrupt("interrupted; nothing was saved") from error


def _choose(
    stage: Stage,
    found: Artifact,
    limits: Mapping[str, float],
    by: str | None,
    *,
    table: LatencyTable | None,
    method: str,
    every_rate: bool,
) -> Architecture:
    """The part to take; of candidates a line on how it was found."""
    from routespace.cli.status import busy
    from routespace.train.tasks.kinds import task_of_head
    from routespace.workflow.choosing import choose_best, choose_part
    from routespace.workflow.extraction import usual_choice

    way = stage.way(by or usual_choice(found))
    if way != "candidates" or not limits:
        return choose_part(stage.artifact, limits, way, table=table, method=method, every_rate=every_rate)
    with busy("evaluating candidates"):
        best = choose_best(stage.artifact, limits, table=table, every_rate=every_rate)
    text = task_of_head(found.net.head, found.net.spec).metric.text
    each = ", ".join(f"{origin} {text(score)}" for origin, score in best.scores.items())
    print(f"best of {best.candidates} candidates on validation: {text(best.score)} (best by origin: {each})\n")
    return best.architecture


def _all_limits(
    found: Artifact, limits: Mapping[str, float], ratio: float | None, ms: float | None
) -> dict[str, float]:
    """The limits that were given, or the network's own where there is none."""
    given = {**limits, **({} if ms is None else {"latency_ms": ms})}
    own = None if given and ratio is None else _own_limit(found, ratio)
    return given if own is None else given | {"macs": own}


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


def _take(
    stage: Stage, chosen: Architecture, folder: Path, *, origin: Artifact, evaluate: bool, overwrite: bool
) -> Extraction:
    """Extract, verify, evaluate, fine-tune and save, with progress."""
    from routespace.cli.status import busy
    from routespace.cli.watch import watching
    from routespace.train.stopping import TrainingStoppedError
    from routespace.workflow.extraction import extract_chosen

    if stage.tuning is None:
        with busy("extracting, verifying and evaluating"):
            return extract_chosen(stage.artifact, chosen, folder, evaluated=evaluate, overwrite=overwrite)
    with watching("fine-tuning ") as news:
        try:
            return extract_chosen(
                stage.artifact,
                chosen,
                folder,
                evaluated=evaluate,
                overwrite=overwrite,
                tuning=stage.tuning,
                progress=news,
                tell=news.say,
                origin=origin,
            )
        except TrainingStoppedError as error:
            raise KeyboardInterrupt("interrupted; nothing was saved") from error


def _what_next(found: Artifact, folder: Path) -> None:
    """Print the commands that a bundle is for."""
    from routespace.errors import command_line

    if found.preprocess is not None:
        print(f"look at images with: {command_line('predict', folder, 'IMAGE_OR_FOLDER')}")
    if found.recipe is not None:
        print(f"fine-tune it with: {command_line('train', found.folder, '--from', folder)}")


def _check_limits(
    limits: Mapping[str, float], ratio: float | None, *, ms: float | None, latency: Path | None
) -> None:
    """Raise SpecError for limits that say one thing twice, or half of one."""
    if "macs" in limits and ratio is not None:
        raise SpecError("macs: --macs and --ratio are two ways to say one thing; give one of them")
    if "latency_ms" in limits:
        raise SpecError("limit.latency_ms: give it as --ms, with the --latency table that it is about")
    if ratio is not None and not ratio > 0:
        raise SpecError(f"ratio: {ratio} is not allowed; give a share above 0, such as 0.5")
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


def _own_limit(found: Artifact, ratio: float | None) -> int | None:
    """The most MACs as a share of the recipe's base, or by its budget; None takes a static network whole."""
    from routespace.workflow.extraction import own_limit

    return own_limit(found) if ratio is None else round(ratio * found.require_recipe().base_macs())


def show(
    found: Artifact, taken: Extraction, limits: Mapping[str, float], table: LatencyTable | None = None
) -> None:
    """Print what was taken, under which limits, and what was measured on the way."""
    from routespace.cli.render import amount, pairs
    from routespace.cli.watch import clock
    from routespace.deploy.latency.table import predict
    from routespace.grid.resources import RESOURCES
    from routespace.nn.cost import network_cost
    from routespace.train.macs import counted_macs
    from routespace.train.tasks.kinds import task_of_head

    macs = counted_macs(taken.net, {}), counted_macs(found.net, {})  # what limits are about
    network = taken.card.costs["macs"]
    small = {**taken.card.costs, "macs": macs[0]}
    whole = {**network_cost(found.net).totals, "macs": macs[1]}
    rows: list[tuple[str, object]] = []
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
    if taken.score is not None and taken.score_whole is not None:
        metric = task_of_head(taken.net.head, taken.net.spec).metric
        on = f" of {taken.images} validation images"
        rows.append((metric.name, f"{metric.text(taken.score)}{on}; whole {metric.text(taken.score_whole)}"))
    if taken.tuned is not None:
        metric = task_of_head(taken.net.head, taken.net.spec).metric
        after, spent = metric.text(taken.tuned[metric.name]), clock(taken.tuned["seconds"])
        epochs = taken.tuned["epochs"]
        rows.append(("fine-tuned", f"{after} after {epochs} {'epoch' if epochs == 1 else 'epochs'}, {spent}"))
    rows += [("remark", line) for line in taken.card.remarks]
    pairs([*rows, ("architecture", taken.card.architecture)])
