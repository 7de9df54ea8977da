"""`routespace search`: a study of many short trainings, its Pareto front as table and picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from routespace.cli.options import Changes, Data, Latency

if TYPE_CHECKING:
    from routespace.cli.watch import Watcher
    from routespace.search import StudyProgress, StudyRecord, TrialRecord
    from routespace.train.recipe.recipe import Recipe

NAME = "search"
EXAMPLE = "routespace search digits_tiny --trials 6 --out runs/search"
FRONT_FILE = "front.png"


def run(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe's name or YAML file, with a `search` section.")],
    trials: Annotated[int | None, typer.Option(help="Trials wanted in all; else the recipe's number.")] = None,
    data: Data = None,
    storage: Annotated[
        str | None, typer.Option(help="Database URL or journal file; else study.db in --out.")
    ] = None,
    study: Annotated[str | None, typer.Option(help="The study's name; else the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampler.")] = None,
    latency: Latency = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder; else runs/RECIPE-search.")] = None,
    changes: Changes = None,
) -> None:
    """Search any fields of a recipe with Optuna; the same command resumes or joins a study.

    Accuracy is measured on validation; the test split is for `evaluate` alone. Times are measured, or predicted by
    the --latency table, which also checks their limit.
    """
    from routespace.cli.app import same_command
    from routespace.cli.arguments import command_line
    from routespace.cli.status import loading
    from routespace.cli.train import with_changes
    from routespace.cli.watch import watching
    from routespace.search.space import require_search

    chosen = with_changes(recipe, changes or [], data=data)
    require_search(chosen)
    if latency is not None:
        chosen = chosen.override({"search.latency_table": str(latency.resolve())})
    folder = out or Path("runs") / f"{chosen.name}-search"
    with loading("loading torch and optuna"):
        from routespace.search import run_study
        from routespace.train import run as _  # noqa: F401 (what the trials load, while Ctrl-C is easy)
    try:
        with watching() as watcher:
            record = run_study(
                chosen,
                folder,
                trials=trials,
                storage=storage,
                study_name=study,
                seed=seed,
                progress=TrialWatch(watcher, chosen),
            )
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"interrupted; the same command goes on: {same_command(ctx)}") from error
    show_front(record)
    picture = draw_front(record, folder / FRONT_FILE)
    drawn = f"front drawn in {picture}\n" if picture else ""
    take = command_line("extract", folder, "--trial", next((trial.number for trial in record.best), "N"))
    print(f"\n{drawn}take one: {take} -o DIR")


class TrialWatch:
    """Tells when a trial starts and how it ended, and hands what its training tells to a watcher."""

    def __init__(self, watcher: Watcher, recipe: Recipe) -> None:
        self.watcher, self.recipe = watcher, recipe
        self.started: int | None = None

    def __call__(self, news: StudyProgress) -> None:
        """Print what is new."""
        if news.trial is not None:
            self.watcher.say(trial_line(news))
            return
        if news.number != self.started:
            self.started = news.number
            self.watcher.begin(f"trial {news.number} ", None)
            self.watcher.say(f"trial {news.number} [{news.ended + 1}/{news.trials}] starts: {_changes(news)}")
        if news.training is not None:
            self.watcher(news.training)


def trial_line(news: StudyProgress) -> str:
    """One line for a trial that ended."""
    trial = news.trial
    assert trial is not None
    found = trial.reason or ", ".join(shown(name, value) for name, value in (trial.values or {}).items())
    took = f" ({trial.seconds:.0f} s)" if trial.seconds is not None else ""
    return f"trial {trial.number} [{news.ended}/{news.trials}] {trial.state}: {found}{took}  {_changes(news)}"


def _changes(news: StudyProgress) -> str:
    return ", ".join(f"{field}={short(value)}" for field, value in news.changes.items())


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
