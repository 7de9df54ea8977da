"""`routespace extract`: from a trained supernet to a small static network in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from routespace.errors import RoutespaceError, SpecError

if TYPE_CHECKING:
    from routespace.cli.networks import Found
    from routespace.deploy.bundle import Card
    from routespace.deploy.latency.table import LatencyTable
    from routespace.grid.architecture import Architecture

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
    from routespace.cli.networks import load_found
    from routespace.cli.render import draw, legend

    found = load_found(_run_folder(source, trial), recipe)
    timed = _time_limit(found, ms, latency)
    limit = None if timed and macs is None and ratio is None else _limit(found, macs, ratio)
    chosen = choose(found, limit, method, timed)
    print(draw(chosen.grid, chosen))
    print(f"\n{legend(chosen)}\n")
    card, rows = take(found, chosen, out, evaluated=evaluate, overwrite=overwrite)
    if timed:
        rows.append(("latency", _predicted(timed, chosen)))
    show(found, card, rows, limit)
    print(f"\nwritten to {out}; fine-tune it with `routespace train RECIPE --from {out}`")


def _run_folder(source: Path, trial: int | None) -> Path:
    """The run itself, or that of a study's trial."""
    if trial is None:
        if (source / "study.json").exists():
            raise SpecError(f"trial: {source} is a study; name one of its trials with --trial N")
        return source
    from routespace.search import load_study, trial_folder

    return trial_folder(load_study(source), trial)


def _limit(found: Found, macs: str | None, ratio: float | None) -> int | None:
    """The most MACs, or None to take a static network whole."""
    from routespace.cli.arguments import parse_macs

    if macs is not None and ratio is not None:
        raise SpecError("macs: --macs and --ratio are two ways to say one thing; give one of them")
    if macs is not None:
        return parse_macs(macs)
    if ratio is not None:
        if not ratio > 0:
            raise SpecError(f"ratio: {ratio} is not allowed; give a share above 0, such as 0.5")
        return round(ratio * found.require_recipe().base_macs())
    if found.net.architecture.is_static:
        return None
    limit = found.require_recipe().budget_macs()
    if limit is None:
        raise SpecError("macs: the recipe has no budget; say how much may be kept with --macs 12M or --ratio .5")
    return limit


class TimeLimit(NamedTuple):
    """The most milliseconds, and the table that predicts them."""

    ms: float
    table: LatencyTable


def _time_limit(found: Found, ms: float | None, path: Path | None) -> TimeLimit | None:
    if ms is None and path is None:
        return None
    if ms is None or path is None:
        raise SpecError("ms: --ms and --latency go together; give a limit and the table that it is about")
    from routespace.deploy.latency.table import load_table

    return TimeLimit(ms, load_table(path, grid=found.net.architecture.grid))


def _predicted(timed: TimeLimit, chosen: Architecture) -> str:
    from routespace.deploy.latency.table import predict

    return f"{predict(timed.table, chosen):.3g} ms predicted (limit {timed.ms:g} ms)"


def choose(found: Found, limit: int | None, method: str = "milp", timed: TimeLimit | None = None) -> Architecture:
    """The static architecture that keeps what the run used most.

    Raises:
        BudgetError: a limit is below the least possible, which the message names.
        BundleError: a gated network whose usage was not measured.
    """
    from routespace.deploy.derive import derive
    from routespace.errors import BundleError

    architecture = found.net.architecture
    if limit is None and timed is None:
        return architecture
    usage = found.usage
    if usage is None and not architecture.is_static:
        raise BundleError(f"{found.folder}: has no usage.json; train the run to its end, or run it again")
    times = {} if timed is None else {"latency_ms": timed.ms, "table": timed.table}
    return derive(architecture, usage or {}, macs=limit, method=method, **times)  # type: ignore[arg-type]


def take(
    found: Found, chosen: Architecture, out: Path, *, evaluated: bool = True, overwrite: bool = False
) -> tuple[Card, list[tuple[str, Any]]]:
    """Extract, verify, evaluate on validation and save; the card, and what was measured by name.

    Raises:
        RoutespaceError: the extracted network differs from the supernet's part; nothing is saved then.
    """
    from routespace.cli.networks import RECIPE_FILE
    from routespace.deploy.bundle import Card, Provenance, save_bundle
    from routespace.deploy.extract import extract
    from routespace.deploy.verify import verify
    from routespace.files import write_text

    small = extract(found.net, chosen).eval()
    report = verify(found.net, chosen, small)
    if not report.ok:
        raise RoutespaceError("verify: the extracted network differs: " + "; ".join(report.lines()))
    rows: list[tuple[str, Any]] = [("verified", f"largest difference of outputs {report.max_difference:.1e}")]
    accuracy = None
    if evaluated:
        before, accuracy = _accuracies(found, small)
        rows += [("accuracy before", before), ("accuracy after", accuracy)]
    recipe = found.recipe
    papers = Provenance(
        recipe=recipe.name if recipe else None,
        recipe_hash=recipe.hash if recipe else None,
        run=str(found.folder),
        parent=found.net.architecture.hash,
    )
    card = save_bundle(
        small, out, Card.of(small, accuracy_before=accuracy, provenance=papers), overwrite=overwrite
    )
    if recipe is not None:  # so that `evaluate` finds the bundle's data
        write_text(out / RECIPE_FILE, recipe.to_yaml())
    return card, rows


def _accuracies(found: Found, small: Any) -> tuple[float, float]:
    """Accuracy on validation of the network and of its part. The test split is for `evaluate` alone."""
    from routespace.train.data.loaders import make_loaders
    from routespace.train.run import evaluate

    loader = make_loaders(found.require_recipe()).val
    return evaluate(found.net, loader)["accuracy"], evaluate(small, loader)["accuracy"]


def show(found: Found, card: Card, rows: list[tuple[str, Any]], limit: int | None) -> None:
    """Print what was taken, and what was measured on the way."""
    from routespace.cli.render import giga, mega, pairs, percent
    from routespace.grid.cost import architecture_cost

    whole = architecture_cost(found.net.architecture, gates=found.net.gate_spec)
    under = "" if limit is None else f" (limit {giga(limit)})"
    named = [(name, percent(value) if isinstance(value, float) else value) for name, value in rows]
    pairs(
        [
            ("MACs", f"{giga(card.macs)} of {giga(whole.macs)}{under}"),
            ("parameters", f"{mega(card.params)} of {mega(whole.params)}"),
            *named,
            ("architecture", card.architecture),
        ]
    )
