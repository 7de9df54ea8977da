"""What a study can ask for: one table, name → direction, unit, and where the number comes from.

Every resource (grid/resources.py) is an objective, and so is the metric of the recipe's task under its own name:
`accuracy` for classification. Another one is one more line of `OBJECTIVES`.

Any other number that an evaluation gives is named together with its direction: `maximize balanced_accuracy`, or
`minimize energy_mj` of an evaluator of one's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from routespace.errors import SpecError
from routespace.grid.resources import RESOURCES
from routespace.search.latency import read_usage, timed_ms, used_ms
from routespace.train.recipe.recipe import Recipe
from routespace.train.tasks.base import Metric
from routespace.train.tasks.kinds import TASKS

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
        unit: `%` for a share 0…1 that is shown as a percentage, else what follows the number.
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


def _resource(name: str) -> Callable[[TrainedRun], float]:
    """What one validation image takes of a resource, by the measured usage."""

    def amount(run: TrainedRun) -> float:
        from routespace.nn.cost import network_cost

        net = run.result.net
        usage = read_usage(run.result.folder, net.architecture.grid)
        return float(network_cost(net, usage=usage).totals[name])

    return amount


# Of some resources the run's own result tells more than prices do: MACs of images as large as they were.
_MEASURED: Mapping[str, str | Callable[[TrainedRun], float]] = {
    "macs": "counted_macs",
    "params": "params",
    "latency_ms": _latency_ms,
}

OBJECTIVES: Mapping[str, SearchObjective] = {
    **{
        name: SearchObjective(resource.direction, resource.unit, _MEASURED.get(name) or _resource(name))
        for name, resource in RESOURCES.items()
    },
    "loss": SearchObjective("minimize", "", "loss"),
}


def _of_metric(metric: Metric) -> SearchObjective:
    direction: Direction = "maximize" if metric.direction == "maximise" else "minimize"
    return SearchObjective(direction, metric.unit, metric.name)


_DIRECTED: Mapping[str, Direction] = {
    "maximize": "maximize",
    "maximise": "maximize",
    "minimize": "minimize",
    "minimise": "minimize",
}


def _directed(name: str) -> SearchObjective | None:
    """What `minimize NAME` asks for; None for a name without its direction."""
    word, _, measured_as = name.partition(" ")
    if word not in _DIRECTED or not measured_as.isidentifier():
        return None
    return SearchObjective(_DIRECTED[word], "", measured_as)


def objective(name: str) -> SearchObjective:
    """The objective of that name: a task's metric, one of the table, or any number, as in `minimize NAME`.

    Raises:
        SpecError: there is none.
    """
    metrics = {spec.metric.name: _of_metric(spec.metric) for spec in TASKS.values()}
    known = metrics | dict(OBJECTIVES)
    found = known.get(name) or _directed(name)
    if found is None:
        raise SpecError(f"search.objectives: {name!r:.60} is not known; allowed: {', '.join(known)}")
    return found


def with_objectives(metrics: Mapping[str, float], objectives: Sequence[str]) -> dict[str, float]:
    """Metrics, and under the name of each objective what it asks for, as far as they have it."""
    found = dict(metrics)
    for name in objectives:
        source = objective(name).source
        if name not in found and isinstance(source, str) and source in found:
            found[name] = found[source]
    return found


def objectives_of(recipe: Recipe) -> tuple[str, ...]:
    """Names of what a recipe's study wants; without any it is the task's metric against the MACs.

    Raises:
        SpecError: no such objective, or another task's metric.
    """
    allowed = [recipe.task.metric.name, *OBJECTIVES]
    wanted = (recipe.search.objectives if recipe.search else None) or (allowed[0], "macs")
    for name in wanted:
        directed = _directed(name)
        if directed is not None and directed.source in allowed:
            raise SpecError(f"search.objectives: {name!r:.60}: its direction is known; give {directed.source}")
        if name not in allowed and directed is None:
            raise SpecError(
                f"search.objectives: {name!r:.60} is not measured for task {recipe.task.kind!r}; "
                f"allowed: {', '.join(allowed)}, and any other number with its direction, as in 'minimize NAME'"
            )
    return tuple(wanted)


def directions(objectives: Sequence[str]) -> list[Direction]:
    """Optuna's direction of each objective."""
    return [objective(name).direction for name in objectives]


def measured(run: TrainedRun, objectives: Sequence[str]) -> dict[str, float]:
    """The objectives of a trained run, and whatever else its result tells in numbers.

    A wanted number that is not finite is NaN. One that the result lacks, of those that are named with their
    direction, is left out.
    """
    result = run.result.metrics
    found = {name: float(value) for name, value in result.items() if _is_number(value)}
    for name in dict.fromkeys([*objectives, *OBJECTIVES]):
        source = objective(name).source
        if callable(source):
            if name != "latency_ms" or run.table is not None or name in objectives:  # timing takes its time
                found[name] = source(run)
        elif _is_number(result.get(source)):
            found[name] = float(result[source])
        elif name in objectives and (source in result or _directed(name) is None):
            found[name] = math.nan
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
