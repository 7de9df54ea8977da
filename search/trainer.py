"""What trains one trial: the Trainer protocol, and `train_trial`, the real one; and the table of its times."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from routespace.errors import SpecError
from routespace.grid.graph import RoutingGrid
from routespace.grid.usage import usage_from_json
from routespace.search.space import require_search
from routespace.train.recipe import Recipe
from routespace.train.stopping import TrainingStoppedError

if TYPE_CHECKING:
    from routespace.deploy.latency import LatencyTable
    from routespace.nn.route_net import RouteNet

LATENCY_IMAGES = 8  # of the validation split: a routed network takes its time by the image
LATENCY_S = 0.2  # of measuring each
KEPT = ("accuracy", "loss", "params", "expected_macs", "counted_macs", "images_per_s", "seconds")


class Trainer(Protocol):
    """Trains one recipe."""

    def __call__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        objectives: Sequence[str],
        resume: bool,
        progress: Callable[[Any], None] | None,
    ) -> Mapping[str, float]:
        """Train in `folder` and return metrics: the objectives by their names, and more if there are.

        resume: the folder may hold an interrupted run of the same recipe.
        """
        ...


def train_trial(
    recipe: Recipe,
    folder: Path,
    *,
    objectives: Sequence[str],
    resume: bool,
    progress: Callable[[Any], None] | None,
    table: LatencyTable | None = None,
) -> dict[str, float]:
    """Train with `routespace.train`; accuracy and MACs are those of the validation split, never of the test's.

    `table` predicts `latency_ms` from the usage on validation; without it the network is timed.

    Raises:
        KeyboardInterrupt: a signal stopped it; its checkpoint is saved.
        RoutespaceError: as `routespace.train.run.train`.
    """
    from routespace.train.run import train  # torch: not needed to look at a study

    go_on = resume and _same_run(folder, recipe)
    if resume and not go_on:  # killed before it began, or moved to a machine with other paths
        shutil.rmtree(folder)
    try:
        result = train(recipe, folder, resume=go_on, progress=progress)
    except TrainingStoppedError as error:
        raise KeyboardInterrupt(str(error)) from error
    found = {name: float(result.metrics[name]) for name in KEPT if result.metrics[name] is not None}
    found["macs"] = found["counted_macs"]
    if "latency_ms" in objectives:
        timed = _latency_ms(result.net, recipe) if table is None else _predicted_ms(result.net, folder, table)
        found["latency_ms"] = timed
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # thrice the network, for each trial
    return found


def study_table(recipe: Recipe) -> LatencyTable | None:
    """The latency table that a recipe's search names, or None.

    Raises:
        SpecError: it cannot be read, predicts nothing that is wanted, or cannot fit because grids are searched.
        GridError: it is of another grid than the trials'.
    """
    search = require_search(recipe)
    if search.latency_table is None:
        return None
    from routespace.deploy.latency import load_table

    if "latency_ms" not in search.objectives:
        raise SpecError("search.latency_table: no objective asks for it; add latency_ms to search.objectives")
    grids = [field for field in search.space if field.split(".")[0] == "grid"]
    if grids:
        raise SpecError(
            f"search.latency_table: it is of one grid, but search.space varies {grids[0]}; leave out one of them"
        )
    return load_table(search.latency_table, grid=RoutingGrid(recipe.override(search.overrides).grid))


def _predicted_ms(net: RouteNet, folder: Path, table: LatencyTable) -> float:
    """Milliseconds of one image in the table's batch, by the share of each edge that ran on validation."""
    from routespace.deploy.latency import predict
    from routespace.nn.weights import read_json

    usage = usage_from_json(read_json(folder / "usage.json"), net.architecture.grid)
    return predict(table, net.architecture, usage) / table.batch


def _same_run(folder: Path, recipe: Recipe) -> bool:
    try:
        return Recipe.from_yaml((folder / "recipe.yaml").read_text(encoding="utf-8")) == recipe
    except (OSError, UnicodeDecodeError, SpecError):
        return False


def _latency_ms(net: RouteNet, recipe: Recipe) -> float:
    """Milliseconds of one image through the network on this machine's processor: the median over images."""
    import torch
    from torch.utils.benchmark import Timer

    from routespace.train.data import make_loaders

    images = (image for batch, _ in make_loaders(recipe).val for image in batch.split(1))
    with torch.inference_mode():
        times = [
            Timer("net(image)", globals={"net": net, "image": image}, num_threads=torch.get_num_threads())
            .blocked_autorange(min_run_time=LATENCY_S)
            .median
            for image in itertools.islice(images, LATENCY_IMAGES)
        ]
    return 1e3 * float(torch.tensor(times).median())
