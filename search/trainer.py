"""What trains one trial: the Trainer protocol, and `train_trial`, the real one."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from routespace.errors import SpecError
from routespace.search.latency import used_ms
from routespace.train.recipe.recipe import Recipe
from routespace.train.stopping import TrainingStoppedError

if TYPE_CHECKING:
    from routespace.deploy.latency.table import LatencyTable
    from routespace.nn.task_net import TaskNet

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

    `table` predicts `latency_ms` from the usage on validation; without it the network is timed, if that is an
    objective.

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
    if table is not None:
        found["latency_ms"] = used_ms(table, result.net, folder)
    elif "latency_ms" in objectives:
        found["latency_ms"] = _latency_ms(result.net, recipe)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # thrice the network, for each trial
    return found


def _same_run(folder: Path, recipe: Recipe) -> bool:
    try:
        return Recipe.from_yaml((folder / "recipe.yaml").read_text(encoding="utf-8")) == recipe
    except (OSError, UnicodeDecodeError, SpecError):
        return False


def _latency_ms(net: TaskNet, recipe: Recipe) -> float:
    """Milliseconds of one image through the network on this machine's processor: the median over images."""
    import torch
    from torch.utils.benchmark import Timer

    from routespace.train.data.loaders import make_loaders

    images = (image for batch, _ in make_loaders(recipe).val for image in torch.split(batch, 1))
    with torch.inference_mode():
        times = [
            Timer("net(image)", globals={"net": net, "image": image}, num_threads=torch.get_num_threads())
            .blocked_autorange(min_run_time=LATENCY_S)
            .median
            for image in itertools.islice(images, LATENCY_IMAGES)
        ]
    return 1e3 * float(torch.tensor(times).median())
