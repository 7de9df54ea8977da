"""One static network: cut from a larger one that was trained first, or trained by itself for as long.

    python benchmarks/alone.py [--seed 0] [--ratios .3] [--epochs 18] [--finetune 12] [--out DIR]

The task is that of `series.py`, whose largest plain network is trained first. A part is cut from it as by
`routespace extract RUN --ratio .3 --finetune 12 --teacher none --image-size 64,56,48,40,32`. All processor seconds
of both, with sizes and parts that were tried, are what each rival may take for its steps: a narrower network of
these MACs, and the very part that was cut, from fresh weights. Validation chose; the test split is evaluated once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from record import record
from sandwich import PLAIN, timed, train
from series import SIZES, scores

from routespace.memory import keep_freed_memory
from routespace.recipes import load_recipe
from routespace.train.plain import CLOSE_FRAC, plain_recipe
from routespace.train.recipe.recipe import Recipe
from routespace.workflow.artifacts import load_artifact
from routespace.workflow.extraction import extract_bundle
from routespace.workflow.fine_tuning import FineTuning

LARGEST = 0.85  # of the MACs of the recipe's plain network


def of_ratio(recipe: Recipe, ratio: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """The cut network and its rivals of one share of the MACs."""
    macs, seed, out = ratio * recipe.base_macs(), recipe.seed, arguments.out
    folder, place = out / f"plain_{LARGEST}_{seed}", out / f"cut_{ratio}_{arguments.finetune}_{seed}"
    seconds = {"largest": train(plain_recipe(recipe, LARGEST * recipe.base_macs()), folder)}
    source = load_artifact(folder)
    tuning, most = FineTuning(arguments.finetune, "none"), (1 + CLOSE_FRAC) * macs
    seconds["cut"] = timed(
        place, lambda: extract_bundle(source, place, macs=most, by="candidates", image_size=SIZES, tuning=tuning)
    )
    cut, total = load_artifact(place), sum(seconds.values())
    found: dict[str, Any] = {"seed": seed, "seconds": seconds, "cut": scores(cut)}
    own = cut.require_recipe().override({"train.epochs": recipe.train.epochs, "train.lr": recipe.train.lr})
    given = {"train.seconds": round(total, 1), "train.clock": "processor"}
    for name, rival in (("narrower", plain_recipe(recipe, macs)), ("by itself", own)):
        place = out / f"{name.replace(' ', '_')}_{ratio}_{arguments.finetune}_{seed}"
        train(rival.override(given), place)
        told = json.loads((place / "result.json").read_text())
        found[name] = scores(load_artifact(place)) | {key: told[key] for key in ("steps", "step_seconds")}
    for name in ("cut", "narrower", "by itself"):
        print(f"{ratio} {name}: {found[name]}", flush=True)
    print(f"{ratio} seconds {seconds}", flush=True)
    return found


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3])
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--finetune", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("runs/alone"))
    arguments = parser.parse_args()
    changes = [f"seed={arguments.seed}", f"train.epochs={arguments.epochs}"]
    recipe = load_recipe("digits_tiny", [*changes, "data.train_size=5000", "data.test_size=3000"]).override(PLAIN)
    results = {ratio: of_ratio(recipe, ratio, arguments) for ratio in arguments.ratios}
    record(arguments.out / "alone_cpu.json", "cpu", {"what": "alone", "results": results})


if __name__ == "__main__":
    main()
