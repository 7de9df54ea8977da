"""Routed networks on digits at three budgets, next to plain networks of the same MACs.

    python benchmarks/digits_routed.py [--ratios .3 .5 .7] [--seeds 0 1 2] [--set train.epochs=8] [--out DIR]

For every ratio and seed the recipe `digits_routed` is trained; then a plain PVTv2-style staircase of the MACs that
the routed one was given, with the same training. Printed: the MACs reached against the target, on the validation
and on the test split; expected against counted MACs; how much faster the routed network is than all of it,
measured (interleaved, one thread, a batch of 64; eager, and both with compiled blocks) and counted; the accuracies
on the test split. A finished run is read, not trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from routespace import file_names
from routespace.files import write_json
from routespace.memory import keep_freed_memory
from routespace.recipes import load_recipe
from routespace.train.data.loaders import make_loaders
from routespace.train.plain import plain_recipe
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import RunResult, train_recipe
from routespace.workflow.evaluation import evaluate_network
from routespace.workflow.timing import routed_times

COLUMNS = ("ratio", "seed", "val", "test", "expected", "eager", "compiled", "counted", "routed", "plain")


def finished(recipe: Recipe, folder: Path) -> RunResult:
    """The run in `folder`: trained, resumed, or read when it is finished."""
    return train_recipe(recipe, folder, resume=(folder / file_names.RECIPE).exists())


def one(recipe: Recipe, ratio: float, seed: int, out: Path) -> dict[str, Any]:
    """Train and measure one pair."""
    routed_recipe = recipe.override({"budget.ratio": ratio, "seed": seed})
    target = routed_recipe.budget_macs()
    assert target is not None
    routed = finished(routed_recipe, out / f"routed_{ratio}_{seed}")
    plain = finished(plain_recipe(routed_recipe, target), out / f"plain_{ratio}_{seed}")
    loaders = make_loaders(routed_recipe)
    report = evaluate_network(routed.net, loaders, speed=False)
    images = next(iter(loaders.test))[0]
    times = {compiled: routed_times(routed.net, images, compiled=compiled) for compiled in (False, True)}
    return {
        "ratio": ratio,
        "seed": seed,
        "val": routed.metrics["counted_macs"] / target - 1,
        "test": report["counted_macs"] / target - 1,
        "expected": routed.metrics["expected_macs"] / routed.metrics["counted_macs"] - 1,
        "eager": times[False]["dense"] / times[False]["routed"],
        "compiled": times[True]["dense"] / times[True]["routed"],
        "counted": report["macs"] / report["counted_macs"],
        "routed": report["accuracy"],
        "plain": evaluate_network(plain.net, loaders)["accuracy"],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The table, and means over seeds."""
    print(" ".join(f"{name:>9}" for name in COLUMNS))
    for row in rows:
        print(
            " ".join(f"{row[name]:9.3f}" if isinstance(row[name], float) else f"{row[name]:9}" for name in COLUMNS)
        )
    for ratio in sorted({row["ratio"] for row in rows}):
        group = [row for row in rows if row["ratio"] == ratio]
        spread = stdev if len(group) > 1 else lambda _: 0.0
        routed, plain = ([row[name] for row in group] for name in ("routed", "plain"))
        print(
            f"ratio {ratio}: routed {mean(routed):.3f} ± {spread(routed):.3f}, plain {mean(plain):.3f} ± "
            f"{spread(plain):.3f}, worst distance from the target {max(abs(row['val']) for row in group):.3f} on "
            f"validation, {max(abs(row['test']) for row in group):.3f} on test"
        )


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], help="a recipe field, such as train.epochs=8")
    parser.add_argument("--out", type=Path, default=Path("runs/digits_routed"))
    arguments = parser.parse_args()
    recipe = load_recipe("digits_routed", arguments.set)
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for ratio in arguments.ratios:
            rows.append(one(recipe, ratio, seed, arguments.out))
            show(rows)
            write_json(arguments.out / "table.json", rows)


if __name__ == "__main__":
    main()
