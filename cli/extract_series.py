"""What `routespace extract` shows of a series: a heading for each network, and a table of all at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from routespace.cli.extract_steps import ShownExtraction
from routespace.cli.render import amount, table
from routespace.cli.watch import clock

if TYPE_CHECKING:
    from routespace.train.tasks.base import Metric
    from routespace.workflow.artifacts import Artifact
    from routespace.workflow.series import Series
    from routespace.workflow.wishes import Wishes


class ShownSeries(ShownExtraction):
    """Prints the steps of each network's extraction."""

    def member(self, name: str, limits: Mapping[str, float]) -> None:
        """A heading."""
        print(f"{name}: {', '.join(f'at most {amount(what, most)}' for what, most in limits.items())}\n")


def taken_series(found: Artifact, folder: Path, budgets: Mapping[str, float], wishes: Wishes) -> Series:
    """The series, whose steps are shown."""
    from routespace.train.tasks.kinds import task_of_head
    from routespace.workflow.series import extract_series_as_wished

    metric = task_of_head(found.net.head, found.net.spec).metric
    series = extract_series_as_wished(found, folder, budgets, wishes, ShownSeries(metric))
    show_series(series, metric)
    return series


def show_series(series: Series, metric: Metric) -> None:
    """Print a line for each network."""
    rows = []
    for row in series.rows():
        height, width = row["image_size"]
        scores = (None if row[name] is None else metric.text(row[name]) for name in ("cut", "score"))
        numbers = amount("macs", row["macs"]), amount("params", row["params"]), f"{height}x{width} px"
        rows.append([row["name"], *numbers, *scores, row["epochs"], clock(row["seconds"])])
    cut, tuned = f"{metric.name} as cut", f"{metric.name} on validation"
    table(["network", "MACs", "parameters", "images", cut, tuned, "epochs", "time"], rows)
