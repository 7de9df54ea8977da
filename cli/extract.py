"""`routespace extract`: from a trained supernet to a small static network in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from routespace import file_names
from routespace.cli.options import Device, Latency, out
from routespace.errors import SpecError

if TYPE_CHECKING:
    from routespace.grid.architecture import Architecture
    from routespace.workflow.artifacts import Artifact
    from routespace.workflow.extraction import Extraction, TimeLimit

NAME = "extract"
EXAMPLE = "routespace extract runs/digits_tiny --macs 12M -o small/"
METHODS = ("milp", "threshold")


def run(
    source: Annotated[Path, typer.Argument(metavar="RUN|STUDY", help="A finished run, or a study with --trial.")],
    folder: Annotated[Path, out("The bundle's folder.")],
    macs: Annotated[str | None, typer.Option(help="The most MACs, such as 12M.")] = None,
    ratio: Annotated[float | None, typer.Option(help="The most MACs, as a share of the recipe's base.")] = None,
    ms: Annotated[float | None, typer.Option(help="The most milliseconds, by the --latency table.")] = None,
    latency: Latency = None,
    trial: Annotated[int | None, typer.Option(help="Number of a study's trial.")] = None,
    method: Annotated[str, typer.Option(help="milp (proven best) or threshold.")] = "milp",
    evaluate: Annotated[bool, typer.Option(help="Measure accuracy on validation, whole and extracted.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    recipe: Annotated[str | None, typer.Option(help="Recipe to take instead of the run's own.")] = None,
    device: Device = "auto",
) -> None:
    """Choose the most used part of a supernet under a limit, take it out, verify and save it.

    Without a limit it is the recipe's own budget. A static network is then taken whole.
    """
    from routespace.cli.arguments import named_recipe, one_of, parse_macs
    from routespace.cli.render import draw, legend
    from routespace.cli.status import busy, loading
    from routespace.deploy.folder import require_bundle_place
    from routespace.errors import command_line
    from routespace.workflow.subjects import net_folder

    one_of("method", method, METHODS)
    most, given = None if macs is None else parse_macs(macs), named_recipe(recipe)
    _check_limits(macs, ratio, ms=ms, latency=latency)
    require_bundle_place(folder, overwrite=overwrite)
    run_folder = _run_folder(source, trial)
    net_folder(run_folder)
    with loading():
        from routespace.workflow.artifacts import load_artifact
        from routespace.workflow.extraction import choose, take
    found = load_artifact(run_folder, recipe=given, device=device)
    timed = _time_limit(found, ms, latency)
    if most is None and (ratio is not None or timed is None):
        most = _own_limit(found, ratio)
    chosen = choose(found, most, method=method, time_limit=timed)
    print(draw(chosen.grid, chosen))
    print(f"\n{legend(chosen)}\n", flush=True)
    with busy("extracting, verifying and evaluating"):
        taken = take(found, chosen, folder, evaluated=evaluate, overwrite=overwrite)
    show(found, taken, most, _predicted(timed, chosen) if timed else None)
    print(f"\nwritten to {folder}")
    if found.recipe is not None:
        print(f"fine-tune it with: {command_line('train', found.folder, '--from', folder)}")


def _check_limits(macs: str | None, ratio: float | None, *, ms: float | None, latency: Path | None) -> None:
    """Raise SpecError for limits that say one thing twice, or half of one."""
    if macs is not None and ratio is not None:
        raise SpecError("macs: --macs and --ratio are two ways to say one thing; give one of them")
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


def _time_limit(found: Artifact, ms: float | None, path: Path | None) -> TimeLimit | None:
    if ms is None or path is None:
        return None
    from routespace.deploy.latency.table import load_table
    from routespace.workflow.extraction import TimeLimit

    return TimeLimit(ms, load_table(path, grid=found.net.architecture.grid))


def _predicted(timed: TimeLimit, chosen: Architecture) -> str:
    from routespace.deploy.latency.table import predict

    return f"{predict(timed.table, chosen):.3g} ms predicted (limit {timed.ms:g} ms)"


def show(found: Artifact, taken: Extraction, limit: int | None, latency: str | None = None) -> None:
    """Print what was taken, and what was measured on the way."""
    from routespace.cli.render import giga, mega, pairs, percent
    from routespace.nn.task_net import network_cost

    whole = network_cost(found.net)
    under = "" if limit is None else f" (limit {giga(limit)})"
    rows: list[tuple[str, object]] = [
        ("MACs", f"{giga(taken.card.macs)} of {giga(whole.macs)}{under}"),
        ("parameters", f"{mega(taken.card.params)} of {mega(whole.params)}"),
        ("verified", f"largest difference of outputs {taken.max_difference:.1e}"),
    ]
    if taken.accuracy is not None:
        on = f" of {taken.images} validation images"
        rows.append(("accuracy", f"{percent(taken.accuracy)}{on}; whole {percent(taken.accuracy_whole)}"))
    pairs([*rows, ("latency", latency), ("architecture", taken.card.architecture)])
