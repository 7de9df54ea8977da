"""One taught map against plain networks of the same MACs, on scenes with one small digit.

    python benchmarks/map.py [--seeds 0 1] [--only routed shallower] [--out DIR]

Everybody starts on a small canvas with large digits (phase A: 64 px, digits of 16 to 56 px), where a tiny network
learns within a minute, and goes on to 96 px with digits of 14 to 44 px (phase B): the phases of the recipe
`digits_map`. The routed network has its gates, and one block a rate.
`own` is the same with the gates of `digits_routed`: one of its own for each row, and a loss for the budget.
The plain networks take about as many MACs, but for the last:

    shallower   one block a rate, narrower
    narrower    (1, 2, 2, 1) blocks, narrower still
    smaller     the routed network's own blocks on images of 72 px (more MACs than the others)
    dense       the routed network's own blocks on all tokens: what is to be saved, no rival

`shallower+` and `smaller+` are trained for more steps, so that phase B takes about as long as the routed one's.
`auc` says how well the map tells tokens that touch the digit's box from others (rate 4, 200 validation scenes).
Printed: MACs, steps, processor seconds of phase B's training steps (this process's, all threads; run it with one),
and the accuracy on validation images. The test split is not looked at. Finished runs are read, not trained again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from evidence_lines.clock import Clock

from routespace import TaskNet, file_names
from routespace.files import read_json, write_json
from routespace.grid.leading import leading_row
from routespace.memory import keep_freed_memory
from routespace.nn.weights import load_net
from routespace.recipes import load_recipe
from routespace.train.controls import knows_objects, object_auc, scenes_with_objects
from routespace.train.data.source import make_source
from routespace.train.recipe.data import DigitsSpec
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import train_recipe
from routespace.train.run_folder import RunFolder

AUC_SCENES = 200
PLAIN = {"routing": "static", "gates": {}, "budget": {"ratio": None}}
OWN = {  # the gates of the recipe digits_routed
    "gates": {"openness": 0.97, "noise": 0.3, "final_noise": 0.0},
    "budget": {"ratio": 0.54, "control": 0.5, "schedule": "linear", "open_frac": 0.2, "warmup_frac": 0.2},
    "budget.settle_frac": 0.6,
    "train.gate_lr": 1e-3,
}
SHALLOW = {"grid.widths": [5, 10, 24, 36]}
DEEP = {"grid.layers": 6, "split": [1, 2, 2, 1], "grid.widths": [4, 8, 20, 30]}
SMALL = {"grid.image_size": 72, "data.digit_px": [10, 33]}
NETWORKS: Mapping[str, tuple[Mapping[str, Any], float]] = {  # name: changes, steps of phase B
    "routed": ({}, 1.0),
    "own": (OWN, 1.0),
    "shallower": (PLAIN | SHALLOW, 1.0),
    "shallower+": (PLAIN | SHALLOW, 1.4),
    "smaller": (PLAIN | SMALL, 1.0),
    "smaller+": (PLAIN | SMALL, 1.6),
    "narrower": (PLAIN | DEEP, 1.0),
    "dense": (PLAIN, 1.0),
}


def finished(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The results of the run in `folder`, which is trained if need be, with the seconds of its steps.

    `start_s` and `cpu_s` are those of its first and its last phase, `start` what the first had reached.
    """
    told = folder.with_suffix(".json")
    if told.exists():
        found: dict[str, Any] = read_json(told, wanted="what this script wrote")
        return found
    clock = Clock("cpu")
    result = train_recipe(recipe, folder, resume=(folder / file_names.RECIPE).exists(), progress=clock).metrics
    begun = [line["accuracy"] for line in RunFolder(folder).read_metrics() if line["phase"] == 1]
    times = {"start_s": clock.seconds.get(1, 0.0), "cpu_s": clock.seconds.get(len(result["phases"]), 0.0)}
    result = {**result, **times, "start": begun[-1]}
    write_json(told, result)
    return result


def one(name: str, seed: int, out: Path) -> dict[str, Any]:
    """Train one network in both phases."""
    changes, steps = NETWORKS[name]
    recipe = load_recipe("digits_map")
    assert isinstance(recipe.data, DigitsSpec)
    size = round(recipe.data.train_size * steps)
    folder = out / f"{name}_{seed}"
    result = finished(recipe.override({**changes, "data.train_size": size, "seed": seed}), folder)
    return {
        "network": name,
        "seed": seed,
        "macs": result["counted_macs"],
        "steps": recipe.train.epochs * (size // recipe.train.batch),
        "start_s": result["start_s"],
        "cpu_s": result["cpu_s"],
        "start": result["start"],
        "accuracy": result["accuracy"],
        "auc": map_auc(load_net(folder / "net"), recipe) if name == "routed" else None,
    }


def map_auc(net: TaskNet, recipe: Recipe) -> float:
    """Area under the curve of the map against the tokens that touch the digit's box and two pixels around it."""
    source, leader = make_source(recipe), leading_row(net.architecture)
    assert knows_objects(source)
    assert leader is not None
    return object_auc(net.eval(), scenes_with_objects(source, "val", AUC_SCENES))[leader]


def show(rows: list[dict[str, Any]]) -> None:
    """The table, and means over seeds."""
    print(f"{'network':<12} seed  MMACs  steps  A s  B s  start  accuracy    auc")
    for row in rows:
        print(
            f"{row['network']:<12} {row['seed']:4} {row['macs'] / 1e6:6.3f} {row['steps']:6} "
            f"{row['start_s']:4.0f} {row['cpu_s']:4.0f}  {row['start']:.3f}     {row['accuracy']:.3f}"
            + (f"  {row['auc']:.3f}" if row["auc"] else "")
        )
    for name in dict.fromkeys(row["network"] for row in rows):
        print(f"{name:<12} mean {mean(row['accuracy'] for row in rows if row['network'] == name):.3f}")


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=Path("runs/map"))
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for name in arguments.only:
            rows.append(one(name, seed, arguments.out))
            show(rows)
            write_json(arguments.out / "table.json", rows)


if __name__ == "__main__":
    main()
