"""Does the part that is best as it was cut become the best one? Each image size of a series' first cut, trained.

    python benchmarks/sizes.py [--seed 1] [--epochs 18] [--finetune 5] [--ratio 0.7] [--out DIR]

The network to cut from is that of `series.py`: the largest plain one, by the recipe `digits_tiny`. For each image
size the best part within the MACs is found by its accuracy on validation, and trained for all epochs of a
fine-tuning; told are its accuracies as it was cut and after each epoch, on the validation images. The test split
is not touched. What is in the folder is not trained again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from record import record
from sandwich import PLAIN, timed, train

from routespace.deploy.extract import extract
from routespace.errors import BudgetError
from routespace.memory import keep_freed_memory
from routespace.recipes import load_recipe
from routespace.train.macs import counted_macs
from routespace.train.plain import CLOSE_FRAC, plain_recipe
from routespace.train.run import train_recipe
from routespace.workflow.artifacts import Artifact, load_artifact
from routespace.workflow.choosing import choose_best
from routespace.workflow.cutting import left_over
from routespace.workflow.fine_tuning import FineTuning, fine_tuned_recipe

LARGEST = 0.85  # of the MACs of the recipe's plain network


def at_size(left: Artifact, size: int, macs: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """The best part at one size, before, while and after it is trained."""
    there = left.resized(size)
    best = choose_best(there, {"macs": macs})
    small = extract(there.net, best.architecture).eval()
    folder = arguments.out / f"size_{arguments.ratio}_{size}_{arguments.finetune}_{arguments.seed}"
    recipe = fine_tuned_recipe(there, FineTuning(arguments.finetune, "none"))
    seconds = timed(folder, lambda: train_recipe(recipe, folder, init=small, asked=frozenset()))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    blocks = sum("transformer" in name for name in best.architecture.edges)
    own = {"px": size, "macs": counted_macs(small, {}), "blocks": blocks, "seconds": seconds}
    return own | {"cut": best.score, "epochs": [line["accuracy"] for line in lines]}


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--finetune", type=int, default=5)
    parser.add_argument("--ratio", type=float, default=0.7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 56, 52, 48])
    parser.add_argument("--out", type=Path, default=Path("runs/sizes"))
    arguments = parser.parse_args()
    changes = [f"seed={arguments.seed}", f"train.epochs={arguments.epochs}"]
    recipe = load_recipe("digits_tiny", [*changes, "data.train_size=5000", "data.test_size=3000"])
    base, folder = recipe.base_macs(), arguments.out / f"plain_{LARGEST}_{arguments.seed}"
    train(plain_recipe(recipe.override(PLAIN), LARGEST * base), folder)
    source = load_artifact(folder)
    left, rows = left_over(source, source.net, source.net.architecture), []
    for size in arguments.sizes:
        try:
            rows.append(at_size(left, size, (1 + CLOSE_FRAC) * arguments.ratio * base, arguments))
        except BudgetError as error:
            print(f"{size} px: {error}")
            continue
        row = rows[-1]
        scores = ", ".join(f"{score:.3f}" for score in row["epochs"])
        share = row["macs"] / base
        print(f"{size} px, {share:.3f}, {row['blocks']} blocks: as cut {row['cut']:.3f}; {scores}", flush=True)
    found = {"seed": arguments.seed, "ratio": arguments.ratio, "base_macs": base, "sizes": rows}
    record(arguments.out / "sizes_cpu.json", "cpu", {"what": "sizes", **found})


if __name__ == "__main__":
    main()
