"""`routespace search`: a study of many short trainings, its Pareto front as table and picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from routespace.cli.options import Changes, Data, Latency

if TYPE_CHECKING:
    from routespace.search import StudyRecord
    from routespace.train.recipe.recipe import Recipe

NAME = "search"
EXAMPLE = "routespace search digits_tiny --trials 6 --out runs/search"


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A recipe with a `search` section: its name (`recipes` lists them) or YAML file."
    ),
]
Trials = Annotated[int | None, typer.Option(help="Trials (trainings) wanted in all; else the recipe's number.")]
Storage = Annotated[str | None, typer.Option(help="Database URL or journal file; else study.db in --out.")]
StudyName = Annotated[str | None, typer.Option(help="The study's name; else the recipe's.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the sampler.")]
RetryFailed = Annotated[bool, typer.Option(help="First try again what failed earlier; else it counts as done.")]
Csv = Annotated[Path | None, typer.Option(help="Also write every trial of the study as a line of a table (.csv).")]
Out = Annotated[Path | None, typer.Option("-o", "--out", help="Folder; else runs/RECIPE-search.")]


def run(
    ctx: typer.Context,
    recipe: RecipeName,
    trials: Trials = None,
    data: Data = None,
    storage: Storage = None,
    study: StudyName = None,
    seed: Seed = None,
    latency: Latency = None,
    retry_failed: RetryFailed = True,
    csv: Csv = None,
    out: Out = None,
    changes: Changes = None,
) -> None:
    """Search any fields of a recipe with Optuna, by many short trainings.

    The same command goes on with a study, or joins one that runs in another shell. The task's metric is measured
    on validation; the test split is for `evaluate` alone. Times are measured, or predicted by the --latency table,
    which also checks their limit.
    """
    from routespace.cli.arguments import said_once
    from routespace.cli.own_classes import with_own_classes
    from routespace.cli.status import loading
    from routespace.cli.study_view import TrialWatch
    from routespace.cli.train import with_changes
    from routespace.cli.typed import same_command
    from routespace.cli.watch import watching
    from routespace.train.named_files import data_of_trials
    from routespace.train.recipe.data_kinds import absolute
    from routespace.train.recipe.yaml import parse_assignments

    asked = parse_assignments(changes or [])
    chosen = with_changes(recipe, changes or [], data=data)
    chosen.require_search()
    if latency is not None:
        said_once("search.latency_table", "--latency", latency, asked, read=absolute)
        chosen = chosen.override({"search.latency_table": str(latency.resolve())})
    chosen, lines = as_asked(chosen, {**asked, **({} if data is None else {"data.root": str(data)})})
    folder, seen = out or Path("runs") / f"{chosen.name}-search", data_of_trials(chosen)
    _require(chosen, asked, csv)
    _require_words(trials, seed, study)
    _require_place(folder, storage)
    with loading("loading torch and optuna"):
        from routespace.search import run_study
        from routespace.train import run as _  # noqa: F401 (what the trials load, while Ctrl-C is easy)
    if data is not None and seen is not None:
        chosen, more = with_own_classes(chosen, recipe, {*asked, *chosen.require_search().overrides})
        seen, lines = data_of_trials(chosen), [*lines, *more]
    try:
        with watching() as watcher:
            # What is dubious the trials warn of.
            for line in (*lines, *varied_anyway(chosen, asked), *_told_of(seen)):
                watcher.say(line)
            record = run_study(
                chosen,
                folder,
                trials=trials,
                storage=storage,
                study_name=study,
                seed=seed,
                retry_failed=retry_failed,
                progress=TrialWatch(watcher),
            )
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"interrupted; the same command goes on: {same_command(ctx)}") from error
    conclude(record, folder, csv)


def as_asked(recipe: Recipe, asked: Mapping[str, object]) -> tuple[Recipe, list[str]]:
    """The recipe whose trials have what was asked for, where its search has other values for them; lines on these.

    Args:
        recipe: with what was asked for.
        asked: dotted fields that were set on purpose; of `search.overrides` itself, they all hold.
    """
    overrides = dict(recipe.require_search().overrides)
    if any(name in ("search", "search.overrides") for name in asked):
        return recipe, []
    lines = []
    for field in list(overrides):
        if any(f"{field}.".startswith(f"{name}.") for name in asked):
            value = overrides.pop(field)
            lines.append(f"{field}: as asked for, in place of the {value} that search.overrides has for trials")
    return (recipe.override({"search.overrides": overrides}) if lines else recipe), lines


def varied_anyway(recipe: Recipe, asked: Mapping[str, object]) -> list[str]:
    """Lines on what was set on purpose and the search varies all the same: what becomes of it."""
    from routespace.search.space import Space
    from routespace.train.recipe.effects import value_at

    search = recipe.require_search()
    own = recipe.override(search.overrides)
    first = Space.of(recipe).values_in(own) is not None
    what = "the first trial has it, the others need not" if first else "no trial need have it"
    return [
        f"{field}: {value_at(own, field)} was set, and search.space varies it: {what}"
        for field in search.space
        if any(f"{field}.".startswith(f"{name}.") for name in asked if not name.startswith("search."))
    ]


def _require_effect(recipe: Recipe, asked: Mapping[str, object]) -> None:
    """Raise SpecError for what was set and no trial heeds."""
    from routespace.train.recipe.effects import require_effect

    search = recipe.require_search()
    set_here = [name for name in asked if name.partition(".")[0] != "search" and name not in search.space]
    require_effect(recipe.override(search.overrides), set_here, open_to=search.space)


def _require_words(trials: int | None, seed: int | None, name: str | None) -> None:
    """Raise SpecError for numbers, and a name, that no study can have."""
    from routespace.checked import require_seed
    from routespace.deploy.study_place import require_study_name
    from routespace.train.recipe.searching import require_trials

    if trials is not None:
        require_trials(trials)
    if seed is not None:
        require_seed(seed)
    require_study_name(name)


def _require_place(folder: Path, storage: str | None) -> None:
    """Raise where no study can lie."""
    from routespace.deploy.study_place import require_study_place

    require_study_place(folder, storage)


def _require(recipe: Recipe, asked: Mapping[str, object], csv: Path | None) -> None:
    """Raise what can be told before torch is imported: no effect, no images, files or weights, no place."""
    from routespace.errors import SpecError
    from routespace.files import require_place
    from routespace.train.named_files import require_trial_files

    if csv is not None:
        require_place(csv)
    table = recipe.require_search().latency_table
    if table is not None and not Path(table).expanduser().is_file():
        raise SpecError(f"search.latency_table: {table}: no such file; give one that `routespace profile` wrote")
    _require_effect(recipe, asked)
    require_trial_files(recipe)


def _told_of(seen: Recipe | None) -> tuple[str, ...]:
    """A line on the classes and images that all trials see."""
    if seen is None:
        return ()
    from routespace.train.data.source import make_source

    return (make_source(seen).summary.text,)


def conclude(record: StudyRecord, folder: Path, csv: Path | None) -> None:
    """Print and draw the front, write the table, and say how to take a trial of the front."""
    from routespace.cli.printing import csv_bytes
    from routespace.cli.study_view import FRONT_FILE, draw_study, show_study, study_csv
    from routespace.errors import command_line
    from routespace.files import write_bytes

    if csv is not None:
        write_bytes(csv, csv_bytes(study_csv(record)))
    show_study(record)
    picture = draw_study(record, folder / FRONT_FILE)
    if picture is not None:
        print(f"\nfront drawn in {picture}")
    finished = [trial.number for trial in record.best if trial.state == "finished"]
    if finished:
        print(f"take one: {command_line('extract', folder, '--trial', finished[0])} -o DIR")
