"""Latency in a study: its table, and what a trial's network takes by it, before it is trained and after.

study_table(recipe)                                  the table that a recipe's search names, or None
planned_ms(table, recipe, architecture, macs=…)      before: each gate lets the same share through
used_ms(table, net, folder)                          after: by the usage that was measured on validation
timed_ms(recipe, result)                             without a table: how long the network really takes

Milliseconds of one image, in a forward pass of the table's batch. They are exact sums for a static network. Of a
routed one nothing but its budget is known beforehand, so the plan spreads that evenly.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from routespace import file_names
from routespace.errors import SpecError, warn
from routespace.files import read_json
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.usage import EdgeUsage, Usage, usage_from_json
from routespace.train.recipe.recipe import Recipe

if TYPE_CHECKING:
    from routespace.deploy.latency.table import LatencyTable
    from routespace.nn.task_net import TaskNet
    from routespace.train.run import RunResult

TIMED_IMAGES = 8  # of the validation split: a routed network takes its time by the image


def study_table(recipe: Recipe) -> LatencyTable | None:
    """The latency table that a recipe's search names, or None.

    Warns once (UserWarning) where the trials have gates that the table does not know.

    Raises:
        SpecError: it cannot be read, predicts nothing that is wanted, or cannot fit because grids are searched; or
            there is a limit of latency and none to check it with.
        GridError: it is of another grid than the trials'.
    """
    search = recipe.require_search()
    limit = search.limits.get("latency_ms")
    if search.latency_table is None:
        if limit is None:
            return None
        raise missing_table(limit)
    from routespace.deploy.latency.table import load_table  # torch: not needed to look at a study

    if limit is None and "latency_ms" not in (search.objectives or ()):
        raise SpecError(
            "search.latency_table: nothing asks for it; add latency_ms to search.objectives or to search.limits"
        )
    grids = [field for field in search.space if field.split(".")[0] == "grid"]
    if grids:
        raise SpecError(
            f"search.latency_table: it is of one grid, but search.space varies {grids[0]}; leave out one of them"
        )
    trials = recipe.override(search.overrides)
    table = load_table(Path(search.latency_table).expanduser(), grid=RoutingGrid(trials.grid))
    problem = _gate_problem(table, trials, search.space)
    if problem:
        warn(problem)
    return table


def _gate_problem(table: LatencyTable, trials: Recipe, varied: Collection[str]) -> str | None:
    """What the table cannot tell of the trials' gates, in one line."""
    from routespace.deploy.latency.table import TIMED, gate_problem

    if not trials.is_gated and "routing" not in varied:
        return None
    several = [field for field in varied if field in {f"gates.{name}" for name in TIMED}]
    if several and table.gates is not None:
        return f"search.latency_table: its gates are of one kind, but search.space varies {several[0]}"
    return gate_problem(table, trials.gates)


def missing_table(limit: float) -> SpecError:
    """What to say of a limit in milliseconds that nothing can check."""
    return SpecError(
        f"search.limits.latency_ms: {limit:g} ms is checked before training, by a table, and there is none; "
        f"measure one with `routespace profile` and give it as search.latency_table, or with --latency"
    )


def planned_ms(table: LatencyTable, recipe: Recipe, architecture: Architecture, *, macs: int) -> float:
    """Milliseconds of one image through a network that is still to be trained.

    Args:
        table: of the architecture's grid.
        recipe: the trial's own.
        architecture: what it trains.
        macs: what it aims at for one image.

    Raises:
        GridError: the table is of another grid.
    """
    from routespace.deploy.latency.table import sum_ms

    return sum_ms(table, architecture, planned_usage(architecture, recipe.gates, macs=macs)) / table.batch


def planned_usage(architecture: Architecture, gates: GateSpec, *, macs: int) -> Usage:
    """Usage of an architecture whose gates let the same share through: that with which an image takes `macs`."""

    def cost(share: float) -> float:
        usage = even_usage(architecture, share, gates)
        return float(architecture_cost(architecture, gates=gates, usage=usage).macs)

    least, most = cost(0.0), cost(1.0)
    share = 1.0 if most <= least else min(1.0, max(0.0, (macs - least) / (most - least)))
    return even_usage(architecture, share, gates)


def even_usage(architecture: Architecture, share: float, gates: GateSpec) -> Usage:
    """Usage of an architecture whose gates let the same share through, so that the rest gets that share too.

    What is open and reached over open edges and rows alone computes everything. A row that decides by token or
    window keeps its share of every image; all others keep their share of images whole.
    """
    by_token = gates.rows in ("token", "window")
    everywhere, usage = {architecture.grid.stem}, {}
    for name, state in architecture.edges.items():  # in the order of execution
        edge = architecture.grid.edges[name]
        passes = state == "open" or edge.kind != "patch_embed"  # a row is passed through, computed or not
        if passes and edge.source in everywhere:
            everywhere.add(edge.target)
        if state == "gated" or edge.source not in everywhere:
            each = by_token and edge.kind == "transformer" and edge.source in everywhere
            path = gates.skipped != "identity" and edge.kind == "transformer" and state == "gated"
            skipped = 1 - share if path and edge.source in everywhere else 0
            usage[name] = EdgeUsage(tokens=share, images=1.0 if each else share, skipped=skipped)
    return usage


def read_usage(folder: Path, grid: RoutingGrid) -> Usage:
    """What the run of `folder` measured on validation."""
    return usage_from_json(read_json(folder / file_names.USAGE, wanted="the folder of a finished run"), grid)


def used_ms(table: LatencyTable, net: TaskNet, folder: Path) -> float:
    """Milliseconds of one image, by the share of each edge that ran on validation in the run of `folder`."""
    from routespace.deploy.latency.table import sum_ms

    return sum_ms(table, net.architecture, read_usage(folder, net.architecture.grid)) / table.batch


def timed_ms(recipe: Recipe, result: RunResult) -> float:
    """Milliseconds of one validation image, on the device that trained the network."""
    import torch

    from routespace.search.timing import image_ms
    from routespace.train.data.loaders import make_loaders

    images = (image for batch, _ in make_loaders(recipe).val for image in torch.split(batch, 1))
    some = list(itertools.islice(images, TIMED_IMAGES))
    return image_ms(result.net, some, device=str(result.metrics["device"]))
