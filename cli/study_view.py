"""A study for people: its trials while they run, and what came out as table and picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from routespace.cli.watch import Watcher
    from routespace.search import StudyProgress, StudyRecord, TrialRecord

FRONT_FILE = "front.png"


class TrialWatch:
    """Tells when a trial starts and how it ended, and hands what its training tells to a watcher."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.started: int | None = None

    def __call__(self, news: StudyProgress) -> None:
        """Print what is new."""
        if news.trial is not None:
            self.watcher.say(trial_line(news, news.trial))
            return
        if news.number != self.started:
            self.started = news.number
            self.watcher.begin(f"trial {news.number} ", None)
            self.watcher.say(f"trial {news.number} [{news.ended + 1}/{news.trials}] starts: {_changes(news)}")
        if news.training is not None:
            self.watcher(news.training)


def trial_line(news: StudyProgress, trial: TrialRecord) -> str:
    """One line for a trial that ended."""
    values = (trial.values or {}).items()
    found = trial.reason or ", ".join(f"{name} {with_unit(name, value)}" for name, value in values)
    missed = "" if trial.off_budget is None else f", budget missed by {signed(trial.off_budget)}"
    took = f" ({trial.seconds:.0f} s)" if trial.seconds is not None else ""
    head = f"trial {trial.number} [{news.ended}/{news.trials}] {trial.state}"
    return f"{head}: {found}{missed}{took}  {_changes(news)}"


def _changes(news: StudyProgress) -> str:
    return ", ".join(f"{field}={four_digits(value)}" for field, value in news.changes.items())


def with_unit(name: str, value: float) -> str:
    """The value of an objective, with its unit."""
    from routespace.cli.render import amount, percent
    from routespace.grid.resources import RESOURCES
    from routespace.search.objectives import objective

    if name in RESOURCES:
        return amount(name, value)
    unit = objective(name).unit
    return percent(value) if unit == "%" else f"{value:.4g} {unit}".rstrip()


def signed(share: float) -> str:
    """By which share something is too much, or too little."""
    return f"{'+' if share > 0 else '−'}{100 * abs(share):.0f} %"


def four_digits(value: object) -> str:
    """A field's value, floats with four digits."""
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def show_study(record: StudyRecord) -> None:
    """Print how many trials there were, and the Pareto front or why there is none."""
    counts = {state: record.count(state) for state in ("finished", "pruned", "failed", "running", "waiting")}
    print(f"\n{record.name}: " + (", ".join(f"{n} {state}" for state, n in counts.items() if n) or "no trials"))
    if counts["failed"]:
        print("the same command tries the failed ones again")
    best = record.best
    if best and best[0].state == "finished":
        if not best[0].feasible:
            print(f"no trial keeps the limits; the closest one passes {_passed(best[0])}:")
        title = "Pareto front" if len(record.objectives) > 1 else "best trial"
        _show_table(record, title if best[0].feasible else None)
    elif best:
        closest = f"trial {best[0].number} comes closest and passes {_passed(best[0])}"
        print(f"no front: no trial keeps the limits, so none was trained; {closest}")
    else:
        reasons = [trial.reason for trial in record.trials if trial.reason]
        print("no front: no trial has finished" + (f"; the last one: {reasons[-1]}" if reasons else ""))


def _passed(trial: TrialRecord) -> str:
    return ", ".join(f"{name} by {100 * share:.3g} %" for name, share in trial.violations.items())


def _show_table(record: StudyRecord, title: str | None) -> None:
    from routespace.cli.render import table

    names, best = record.objectives, record.best
    fields = sorted({field for trial in best for field in trial.changes})
    missed = any(trial.off_budget is not None for trial in best)

    def row(trial: TrialRecord) -> tuple[str, ...]:
        assert trial.values is not None
        values = [with_unit(name, trial.values[name]) for name in names]
        budget = ["met" if trial.off_budget is None else signed(trial.off_budget)] if missed else []
        return str(trial.number), *values, *budget, *(four_digits(trial.changes.get(field)) for field in fields)

    columns = ("trial", *names, *(["budget"] if missed else []), *fields)
    table(columns, [row(trial) for trial in best], title=title)


def study_csv(record: StudyRecord) -> str:
    """A table with a line for each trial; lists as JSON, and nothing for what a trial does not have."""
    from routespace.cli.printing import csv_text

    def cell(value: object) -> str:
        return "" if value is None else json.dumps(value) if isinstance(value, list | tuple) else str(value)

    rows = record.rows()
    names = list(rows[0]) if rows else ["number", "state"]
    return csv_text([names, *([cell(value) for value in row.values()] for row in rows)])


def draw_study(record: StudyRecord, path: Path) -> Path | None:
    """Draw all finished trials and the front: the task's metric over the first other objective.

    None where there is nothing to draw: nothing finished, or only one of the two is an objective.
    """
    from routespace.draw.front import Axis, Point, draw_front
    from routespace.search.objectives import objective

    metric = record.recipe.task.metric
    costs = [name for name in record.objectives if objective(name).direction == "minimize" and name != metric.name]
    finished = [trial for trial in record.trials if trial.values is not None and trial.duplicate_of is None]
    if not costs or metric.name not in record.objectives or metric.direction == "minimise" or not finished:
        return None
    points = [
        Point(_label(trial), trial.values[costs[0]], trial.values[metric.name])
        for trial in finished
        if trial.values is not None
    ]
    return draw_front(
        points,
        path=path,
        title=f"{record.name}: {metric.name} on validation",
        cost=Axis(costs[0], objective(costs[0]).unit),
        score=Axis(metric.name, metric.unit),
    )


def _label(trial: TrialRecord) -> str:
    missed = "" if trial.off_budget is None else f" (budget {signed(trial.off_budget)})"
    return f"trial {trial.number}{missed}"
