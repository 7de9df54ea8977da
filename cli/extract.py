"""`routespace extract`: from a trained supernet to a small static network in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from routespace.errors import SpecError

if TYPE_CHECKING:
    from routespace.grid.architecture import Architecture
    from routespace.workflow.artifacts import Artifact
    from routespace.workflow.extraction import Extraction, TimeLimit

NAME = "extract"
EXAMPLE = "routespace extract runs/digits_tiny --macs 12M -o small/"


def run(
    source: Annotated[Path, typer.Argument(metavar="RUN|STUDY", help="A finished run, or a study with --trial.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The bundle's folder.")],
    macs: Annotated[str | None, typer.Option(help="The most MACs, such as 12M.")] = None,
    ratio: Annotated[float | None, typer.Option(help="The most MACs, as a share of the recipe's base.")] = None,
    ms: Annotated[float | None, typer.Option(help="The most milliseconds, by the --latency table.")] = None,
    latency: Annotated[Path | None, typer.Option(help="A table of `profile` for this grid.")] = None,
    trial: Annotated[int | None, typer.Option(help="Number of a study's trial.")] = None,
    method: Annotated[str, typer.Option(help="milp (proven best) or threshold.")] = "milp",
    evaluate: Annotated[bool, typer.Option(help="Measure accuracy on validation, before and after.")] = True,
    overwrite: Annotated[bool, typer.Option(help="Replace a bundle that is there.")] = False,
    recipe: Annotated[str | None, typer.Option(help="Recipe to take instead of the run's own.")] = None,
) -> None:
    """Choose the most used part of a supernet under a limit, take it out, verify and save it.

    Without a limit it is the recipe's own budget. A static network is then taken whole.
    """
    from routespace.cli.arguments import named_recipe
    from routespace.cli.render import draw, legend
    from routespace.deploy.bundle import require_bundle_place
    from routespace.workflow.artifacts import load_artifact
    from routespace.workflow.extraction import choose, take

    require_bundle_place(out, overwrite=overwrite)
    found = load_artifact(_run_folder(source, trial), recipe=named_recipe(recipe))
    timed = _time_limit(found, ms, latency)
    limit = None if timed and macs is None and ratio is None else _limit(found, macs, ratio)
    chosen = choose(found, limit, method=method, time_limit=timed)
    print(draw(chosen.grid, chosen))
    print(f"\n{legend(chosen)}\n")
    taken = take(found, chosen, out, evaluated=evaluate, overwrite=overwrite)
    show(found, taken, limit, _predicted(timed, chosen) if timed else None)
    print(f"\nwritten to {out}; fine-tune it with `routespace train RECIPE --from {out}`")


def _run_folder(source: Path, trial: int | None) -> Path:
    """The run itself, or that of a study's trial."""
    if trial is None:
        if (source / "study.json").exists():
            raise SpecError(f"trial: {source} is a study; name one of its trials with --trial N")
        return source
    from routespace.search import load_study, trial_folder

    return trial_folder(load_study(source), trial)


def _limit(found: Artifact, macs: str | None, ratio: float | None) -> int | None:
    """The most MACs, or None to take a static network whole."""
    from routespace.cli.arguments import parse_macs
    from routespace.workflow.extraction import own_limit

    if macs is not None and ratio is not None:
        raise SpecError("macs: --macs and --ratio are two ways to say one thing; give one of them")
    if macs is not None:
        return parse_macs(macs)
    if ratio is not None:
        if not ratio > 0:
            raise SpecError(f"ratio: {ratio} is not allowed; give a share above 0, such as 0.5")
        return round(ratio * found.require_recipe().base_macs())
    return own_limit(found)


def _time_limit(found: Artifact, ms: float | None, path: Path | None) -> TimeLimit | None:
    if ms is None and path is None:
        return None
    if ms is None or path is None:
        raise SpecError("ms: --ms and --latency go together; give a limit and the table that it is about")
    from routespace.deploy.latency.table import load_table
    from routespace.workflow.extraction import TimeLimit

    return TimeLimit(ms, load_table(path, grid=found.net.architecture.grid))


def _predicted(timed: TimeLimit, chosen: Architecture) -> str:
    from routespace.deploy.latency.table import predict

    return f"{predict(timed.table, chosen):.3g} ms predicted (limit {timed.ms:g} ms)"


def show(found: Artifact, taken: Extraction, limit: int | None, latency: str | None = None) -> None:
    """Print what was taken, and what was measured on the way."""
    from routespace.cli.render import giga, mega, pairs, percent
    from routespace.grid.cost import architecture_cost

    whole = architecture_cost(found.net.architecture, gates=found.net.gate_spec)
    under = "" if limit is None else f" (limit {giga(limit)})"
    rows: list[tuple[str, object]] = [
        ("MACs", f"{giga(taken.card.macs)} of {giga(whole.macs)}{under}"),
        ("parameters", f"{mega(taken.card.params)} of {mega(whole.params)}"),
        ("verified", f"largest difference of outputs {taken.max_difference:.1e}"),
    ]
    if taken.accuracy is not None:
        rows.append(("accuracy before", percent(taken.accuracy_whole)))
        rows.append(("accuracy after", percent(taken.accuracy)))
    pairs([*rows, ("latency", latency), ("architecture", taken.card.architecture)])
