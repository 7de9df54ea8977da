"""`routespace search`: a study of many short trainings, its Pareto front as table and picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from routespace.search import StudyProgress, StudyRecord, TrialRecord

NAME = "search"
EXAMPLE = "routespace search digits_tiny --trials 6 --out runs/search"
FRONT_FILE = "front.png"


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or YAML file, with a `search` section.")],
    trials: Annotated[int | None, typer.Option(help="Trials wanted in all; else the recipe's number.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="Database URL or journal file; else study.db in --out.")
    ] = None,
    study: Annotated[str | None, typer.Option(help="The study's name; else the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampler.")] = None,
    latency: Annotated[
        Path | None,
        typer.Option(help="A table of `profile`: predicts latency_ms, which else is timed, and checks its limit."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; else runs/RECIPE-search.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Change a field.")] = None,
) -> None:
    """Search any fields of a recipe with Optuna; the same command resumes or joins a study.

    Accuracy is measured on validation; the test split is for `evaluate` alone.
    """
    from routespace.recipes import load_recipe
    from routespace.search import run_study
    from routespace.search.space import require_search

    chosen = load_recipe(recipe, changes or [])
    if latency is not None:
        require_search(chosen)
        chosen = chosen.override({"search.latency_table": str(latency.resolve())})
    folder = out or Path("runs") / f"{chosen.name}-search"
    try:
        record = run_study(
            chosen,
            folder,
            trials=trials,
            storage=storage,
            study_name=study,
            seed=seed,
            progress=print_trial,
        )
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"interrupted; the same command goes on: routespace search {recipe} --out {folder}"
        ) from error
    show_front(record)
    picture = draw_front(record, folder / FRONT_FILE)
    drawn = f"front drawn in {picture}; " if picture else ""
    print(f"\n{drawn}take one: routespace extract {folder} --trial N -o DIR")


def print_trial(news: StudyProgress) -> None:
    """One line for each trial that ended."""
    trial = news.trial
    if trial is None:
        return
    what = ", ".join(f"{field}={short(value)}" for field, value in trial.changes.items())
    found = trial.reason or ", ".join(shown(name, value) for name, value in (trial.values or {}).items())
    took = f" ({trial.seconds:.0f} s)" if trial.seconds is not None else ""
    print(f"trial {trial.number} [{news.ended}/{news.trials}] {trial.state}: {found}{took}  {what}", flush=True)


def shown(name: str, value: float) -> str:
    """An objective with its unit."""
    from routespace.cli.render import giga, mega, percent

    units = {"accuracy": percent, "macs": giga, "params": mega}
    return f"{name} {units[name](value)}" if name in units else f"{name} {value:.4g}"


def short(value: object) -> str:
    """A field's value, floats with four digits."""
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def show_front(record: StudyRecord) -> None:
    """Print the Pareto front and how many trials there were."""
    from routespace.cli.render import table

    names = record.objectives
    fields = sorted({field for trial in record.best for field in trial.changes})

    def row(trial: TrialRecord) -> tuple[str, ...]:
        found = trial.values or {}  # none where it was not trained
        values = [shown(name, found[name]).split(" ", 1)[1] if name in found else "–" for name in names]
        return str(trial.number), *values, *(short(trial.changes.get(field)) for field in fields)

    counts = {state: record.count(state) for state in ("finished", "pruned", "failed", "running", "waiting")}
    print(f"\n{record.name}: " + ", ".join(f"{number} {state}" for state, number in counts.items() if number))
    if record.best and not record.best[0].feasible:
        print("no trial keeps the limits; the closest one:")
    table(("trial", *names, *fields), [row(trial) for trial in record.best], title="Pareto front")


def draw_front(record: StudyRecord, path: Path) -> Path | None:
    """Draw all finished trials and the front; None where there is nothing to draw: no accuracy, no MACs."""
    from routespace.draw import front

    points = [
        front.Point(f"trial {trial.number}", trial.values["macs"], trial.values["accuracy"])
        for trial in record.trials
        if trial.values is not None and {"macs", "accuracy"} <= set(trial.values)
    ]
    return front.draw_front(points, path=path, title=f"{record.name}: accuracy on validation") if points else None
