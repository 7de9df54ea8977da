"""Six networks from one sandwich training, next to six plain networks of the same MACs that are trained apart.

    python benchmarks/sandwich.py [--seeds 0 1] [--epochs 6] [--ratios .3 .4 .5 .6 .7 .85] [--out DIR]

The task is that of the recipe `digits_tiny`; ratios are shares of the MACs of its plain network. The supernet is
a deeper, narrower staircase of 0.85 of these MACs, whose rows can be passed. For each ratio the best of its parts
within the MACs is taken by validation accuracy, without any further training; with `--finetune EPOCHS` it is also
trained on, taught by the supernet. The plain networks are those of `plain_recipe`, of as many epochs. Time
is processor time of the whole process, data included. The table's accuracies are of the test split, which chose
nothing. What is in the folder is not trained again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from routespace.deploy.extract import extract
from routespace.errors import BudgetError
from routespace.files import write_json
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.sample import sample_static
from routespace.memory import keep_freed_memory
from routespace.recipes import load_recipe
from routespace.train.candidates import evaluate_candidates
from routespace.train.data.loaders import make_loaders
from routespace.train.evaluate import evaluate
from routespace.train.plain import plain_recipe
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import train_recipe
from routespace.workflow.artifacts import load_run

SUPERNET = {
    "name": "digits_sandwich",
    "routing": "depth",
    "grid.layers": 6,
    "grid.embed_layers": "all",
    "grid.widths": [12, 24, 48, 72],
    "train.start": "open",
    "train.mode": "sandwich",
    "train.sandwich_parts": 1,
    "train.sandwich_window": [0.3, 1.0],
}
PLAIN = {"train.start": "open", "budget.open_frac": 0.0}
CANDIDATES = 48  # parts tried for each ratio


def timed(folder: Path, work: Callable[[], Any]) -> float:
    """Processor seconds of a run, kept beside it."""
    path = folder.parent / f"{folder.name}.seconds"
    if path.exists():
        return float(json.loads(path.read_text()))
    start = time.process_time()
    work()
    write_json(path, time.process_time() - start)
    return float(json.loads(path.read_text()))


def train(recipe: Recipe, folder: Path) -> float:
    """Train, unless that is done; processor seconds."""
    return timed(folder, lambda: train_recipe(recipe, folder))


def parts_within(net: Any, macs: float) -> list[Architecture]:
    """Static parts that take at most `macs`, most of them nearly that."""
    found, low = list[Architecture](), 0.9
    while len(found) < CANDIDATES and low >= 0:
        with contextlib.suppress(BudgetError):
            found += sample_static(net.architecture, 4 * CANDIDATES, low_macs=low * macs, high_macs=macs, seed=0)
        found, low = list(dict.fromkeys(found)), round(low - 0.3, 1)
    return random.Random(0).sample(found, min(CANDIDATES, len(found)))


def one_seed(recipe: Recipe, ratios: list[float], out: Path, *, finetune: int) -> dict[str, Any]:
    """Train everything of a seed, and measure."""
    base, loaders = recipe.base_macs(), make_loaders(recipe)
    folder = out / f"supernet_{recipe.seed}"
    super_s = train(recipe.override(SUPERNET), folder)
    net = load_run(folder).net
    rows, start = [], time.process_time()
    for ratio in ratios:
        parts = parts_within(net, ratio * base)
        scores = evaluate_candidates(net, parts, loaders.val)
        best = max(range(len(parts)), key=lambda place: scores[place]["accuracy"])
        rows.append({"ratio": ratio, "part": parts[best], "val": scores[best]["accuracy"]})
    choosing_s = time.process_time() - start
    plain_s = tuned_s = 0.0
    for row in rows:
        part, ratio = row.pop("part"), row["ratio"]
        small = extract(net, part)
        row["part_ratio"] = architecture_cost(part).macs / base
        row["part"] = evaluate(small, loaders.test)["accuracy"]
        place = out / f"plain_{ratio}_{recipe.seed}"
        plain_s += train(plain_recipe(recipe.override(PLAIN), ratio * base), place)
        row["plain"] = evaluate(load_run(place).net, loaders.test)["accuracy"]
        if finetune:
            tuned = out / f"tuned_{ratio}_{recipe.seed}"
            tuning = {"train.epochs": finetune, "train.warmup_epochs": 0.1, "train.mode": "plain"}
            changes = SUPERNET | tuning | {"train.teacher": str(folder)}
            tune = recipe.override(changes)
            tuned_s += timed(tuned, lambda: train_recipe(tune, tuned, init=small, asked=frozenset()))  # noqa: B023
            row["tuned"] = evaluate(load_run(tuned).net, loaders.test)["accuracy"]
    seconds = {"supernet": super_s, "choosing": choosing_s, "tuning": tuned_s, "plain": plain_s}
    return {"seed": recipe.seed, "rows": rows, "seconds": seconds}


def show(found: dict[str, Any]) -> None:
    """A seed's table."""
    names = ("ratio", "part_ratio", "val", "part", "tuned", "plain")
    print(f"seed {found['seed']}\n" + " ".join(f"{name:>10}" for name in names))
    for row in found["rows"]:
        print(" ".join(f"{row.get(name, math.nan):10.3f}" for name in names))
    columns = [mean(row.get(name, math.nan) for row in found["rows"]) for name in names]
    print(" ".join(f"{value:10.3f}" for value in columns) + "   mean")
    print("processor seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in found["seconds"].items()))


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--finetune", type=int, default=0)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.4, 0.5, 0.6, 0.7, 0.85])
    parser.add_argument("--set", action="append", default=[], help="a recipe field, such as data.train_size=3000")
    parser.add_argument("--out", type=Path, default=Path("runs/sandwich"))
    arguments = parser.parse_args()
    results = []
    for seed in arguments.seeds:
        recipe = load_recipe("digits_tiny", [f"seed={seed}", f"train.epochs={arguments.epochs}", *arguments.set])
        found = one_seed(recipe, arguments.ratios, arguments.out, finetune=arguments.finetune)
        results.append(found)
        show(found)
        write_json(arguments.out / "table.json", results)


if __name__ == "__main__":
    main()
