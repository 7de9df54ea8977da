"""What is measured of trained lines, one at a time on a quiet machine: inference, and a step of training."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from evidence_lines.lines import Setting, network, recipe_of, trained_recipe
from evidence_lines.oracle import held_out
from routespace.nn.running import now
from routespace.nn.task_net import TaskNet
from routespace.train.controls import oracle_routes
from routespace.train.data.loaders import make_loaders
from routespace.train.progress import Progress
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import train_recipe

TIMED_ROUNDS, WARM_UP, TIMED_IMAGES = 9, 2, 32
LEAST_STEPS = 4
PACE_WARM_UP, PACE_STEPS = 16, 48  # numbers are read from a GPU every 16th step


class _EnoughError(Exception):
    """A training has been watched for long enough."""


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def speed_of(setting: Setting, row: dict[str, Any]) -> float:
    """Time of the dense network over that of a line's, medians of both in turns."""
    device = torch.device(setting.arena.device)
    net, whole = network(setting, row).to(device), dense_net(setting).to(device)
    images = next(iter(make_loaders(setting.plain, kind=setting.loaders).val))[0][:TIMED_IMAGES].to(device)
    own, given = images, {}
    if row["line"] == "oracle":
        own, _, objects = next(held_out(setting.recipe, "val", device))
        own, objects = own[:TIMED_IMAGES], objects[:TIMED_IMAGES]
        given = {"routes": oracle_routes(net, own, objects, around_px=row["around_px"])}
    elif recipe_of(setting, row).grid.image_size != setting.plain.grid.image_size:
        own = next(iter(make_loaders(recipe_of(setting, row), kind=setting.loaders).val))[0][:TIMED_IMAGES].to(
            device
        )
    taken: dict[str, list[float]] = {"dense": [], "line": []}
    with one_thread():
        for turn in range(-WARM_UP, TIMED_ROUNDS):
            for name, model, fed, options in (("dense", whole, images, {}), ("line", net, own, given)):
                start = now(device)
                model.decide(execution="auto")(fed, **options)
                if turn >= 0:
                    taken[name].append(now(device) - start)
    return statistics.median(taken["dense"]) / statistics.median(taken["line"])


def dense_net(setting: Setting) -> TaskNet:
    """The dense network of a seed; fresh where it was not trained: the time is the same."""
    first = Setting(setting.arena, setting.seed, 1.0, setting.out)
    if (first.folder("dense") / "net").exists():
        return network(first, {"line": "dense"})
    return TaskNet.classifier(setting.plain.architecture()).eval()


def step_ms(setting: Setting, line: str) -> float | None:
    """Milliseconds of a training step of a line's last phase; None for lines with a loop of their own."""
    recipe = trained_recipe(setting, line)
    return None if recipe is None else pace(setting, recipe, steps=PACE_STEPS)


def pace(setting: Setting, recipe: Recipe, *, steps: int = 1 << 20, seconds: float = float("inf")) -> float:
    """Milliseconds of a step: the mean of so many, or of the later half of those in so many seconds."""
    shown: list[tuple[int, float]] = []

    def watch(news: Progress) -> None:
        shown.append((news.step, time.perf_counter()))
        long = len(shown) >= LEAST_STEPS and shown[-1][1] - shown[0][1] > seconds
        if news.step >= PACE_WARM_UP + steps or long:
            raise _EnoughError

    size = recipe.train.batch * min(1 << 14, PACE_WARM_UP + steps + 1)
    # What gates are taught in other phases is no matter here, and most steps come after the shares have settled.
    alone = {"train.phases": [], "gates.teach": "none", "budget.open_frac": 0.0, "budget.settle_frac": 0.0}
    short = recipe.override(alone | {"train.epochs": 1, "data.train_size": size})
    with tempfile.TemporaryDirectory() as place, suppress(_EnoughError):
        train_recipe(short, Path(place) / "run", progress=watch, loaders=setting.loaders)
    first = PACE_WARM_UP if len(shown) > PACE_WARM_UP + steps // 2 else len(shown) // 2
    (before, begin), (last, end) = shown[first - 1], shown[-1]
    return 1e3 * (end - begin) / (last - before)


def paces(setting: Setting, seconds: float) -> float:
    """The same of the routed line, for trainings side by side."""
    return pace(setting, setting.recipe, seconds=seconds)
