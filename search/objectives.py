"""What a study can ask for: one table, name → direction, unit, and where the number comes from.

A new objective is one more line here. Beside the table, the metric of the recipe's task is an objective under its
own name: `accuracy` for classification.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from routespace.errors import SpecError
from routespace.search.latency import timed_ms, used_ms
from routespace.train.recipe.recipe import Recipe

if TYPE_CHECKING:
    from routespace.deploy.latency.table import LatencyTable
    from routespace.train.run import RunResult

Direction = Literal["maximize", "minimize"]  # Optuna's words


@dataclass(frozen=True)
class TrainedRun:
    """A trial that was trained, for whoever measures it.

    Attributes:
        recipe: its own.
        result: its run; the network is on the CPU.
        table: predicts times, if the study has one.
    """

    recipe: Recipe
    result: RunResult
    table: LatencyTable | None


@dataclass(frozen=True)
class SearchObjective:
    """A number that a study makes as good as it can.

    Attributes:
        direction: whether more or less of it is better.
        unit: `share` (0…1), `MACs`, `parameters`, `ms`, or empty for a bare number.
        source: the key in a run's result.json, or a function that measures a trained run.
    """

    direction: Direction
    unit: str
    source: str | Callable[[TrainedRun], float]


def _latency_ms(run: TrainedRun) -> float:
    """Milliseconds of one validation image: by the table and the measured usage, or timed."""
    if run.table is not None:
        return used_ms(run.table, run.result.net, run.result.folder)
    return timed_ms(run.recipe, run.result)


OBJECTIVES: Mapping[str, SearchObjective] = {
    "loss": SearchObjective("minimize", "", "loss"),
    "macs": SearchObjective("minimize", "MACs", "counted_macs"),
    "params": SearchObjective("minimize", "parameters", "params"),
    "latency_ms": SearchObjective("minimize", "ms", _latency_ms),
}
_TASK_METRICS = {"classify": ("accuracy", SearchObjective("maximize", "share", "accuracy"))}


def objective(name: str) -> SearchObjective:
    """The objective of that name, whatever the task.

    Raises:
        SpecError: there is none.
    """
    known = dict(_TASK_METRICS.values()) | dict(OBJECTIVES)
    if name not in known:
        raise SpecError(f"search.objectives: {name!r:.60} is not known; allowed: {', '.join(known)}")
    return known[name]


def objectives_of(recipe: Recipe) -> tuple[str, ...]:
    """Names of what a recipe's study wants; without any it is the task's metric against the MACs.

    Raises:
        SpecError: no such objective, or another task's metric.
    """
    metric, _ = _TASK_METRICS[recipe.task]
    allowed = [metric, *OBJECTIVES]
    wanted = (recipe.search.objectives if recipe.search else None) or (metric, "macs")
    for name in wanted:
        if name not in allowed:
            raise SpecError(
                f"search.objectives: {name!r:.60} is not measured for task {recipe.task!r}; "
                f"allowed: {', '.join(allowed)}"
            )
    return tuple(wanted)


def directions(objectives: Sequence[str]) -> list[Direction]:
    """Optuna's direction of each objective."""
    return [objective(name).direction for name in objectives]


def measured(run: TrainedRun, objectives: Sequence[str]) -> dict[str, float]:
    """The objectives of a trained run, and whatever else its result tells in numbers.

    A wanted number that the result lacks, or that is not finite there, is NaN.
    """
    result = run.result.metrics
    found = {name: float(value) for name, value in result.items() if _is_number(value)}
    metric, _ = _TASK_METRICS[run.recipe.task]
    for name in dict.fromkeys([*objectives, metric, *OBJECTIVES]):
        source = objective(name).source
        if callable(source):
            if name in objectives or run.table is not None:  # else it would be timed, which takes its time
                found[name] = source(run)
        elif _is_number(result.get(source)):
            found[name] = float(result[source])
        elif name in objectives:
            found[name] = math.nan
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
