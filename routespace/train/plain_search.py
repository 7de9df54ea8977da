"""The plain network to compare with: splits, widths and image sizes tried by short trainings, whose time is told.

found = best_plain(recipe, macs=3_000_000)
found.recipe, found.seconds, found.tried
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from routespace.train.plain import PlainShape, plain_recipes
from routespace.train.progress import Progress
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import train_recipe

KEPT_FRAC = 0.5  # of the candidates, after each round
LONGER = 2  # times as many epochs in the next round


@dataclass(frozen=True)
class PlainSearch:
    """What a search for the best plain network found.

    Attributes:
        recipe: of the best, to be trained for as long as the given one says.
        shape: its blocks and image size.
        tried: shape → the task's metric on validation, in the longest training that they had.
        seconds: of all trainings, validation included.
    """

    recipe: Recipe
    shape: PlainShape
    tried: Mapping[PlainShape, float]
    seconds: float


def best_plain(
    recipe: Recipe, macs: float, *, epochs: int = 1, progress: Callable[[Progress], None] | None = None
) -> PlainSearch:
    """Train plain networks of the same MACs for a while, the better half of them for longer, until one is left.

    Args:
        recipe: data, training and grid to keep.
        macs: of one image.
        epochs: of the first round; each further one has twice as many, and begins anew.
        progress: as in `train_recipe`.

    Raises:
        BudgetError: no plain network is that small.
        TrainingStoppedError: a signal came.
        RoutespaceError: as `train_recipe`.
    """
    left = plain_recipes(recipe, macs)
    sign = 1 if recipe.task.metric.direction == "minimise" else -1
    tried: dict[PlainShape, float] = {}
    seconds = 0.0
    while len(left) > 1:
        scores: dict[PlainShape, float] = {}
        for shape, plain in left.items():
            with tempfile.TemporaryDirectory(prefix="routespace-") as place:
                found = train_recipe(_short(plain, epochs), Path(place) / "run", progress=progress).metrics
            scores[shape] = tried[shape] = found[found["metric"]]
            seconds += found["seconds"]
        order = [shape for _, shape in sorted((sign * score, shape) for shape, score in scores.items())]
        left = {shape: left[shape] for shape in order[: max(1, int(KEPT_FRAC * len(order)))]}
        epochs *= LONGER
    (shape,) = left
    return PlainSearch(left[shape], shape, tried, seconds)


def _short(plain: Recipe, epochs: int) -> Recipe:
    """The recipe with so many epochs in place of what it says, each of its phases with at most as many."""
    train = plain.train
    phases = [phase.model_dump(mode="json") for phase in train.phases]
    for phase in phases:
        phase |= {"epochs": min(phase["epochs"] or epochs, epochs), "seconds": None}
        if phase["warmup_epochs"] is not None:
            phase["warmup_epochs"] = min(phase["warmup_epochs"], phase["epochs"] / 2)
    warmup = min(train.warmup_epochs, epochs / 2)
    return plain.override({"train.epochs": epochs, "train.phases": phases, "train.warmup_epochs": warmup})
