"""Does a sandwich training rank subnets as trainings of their own do? Kendall's tau over 20 subnets.

    python benchmarks/ranking.py [--seed 0] [--subnets 20] [--epochs 6] [--trainings 2] [--rehearse] [--out DIR]

The supernet is that of `sandwich.py`. Subnets are drawn so that their MACs are evenly spaced, from small to large
ones. Parts of the same blocks in other layers are one network when they are trained alone, so they count as one
subnet: the best of them by inherited accuracy, as a search would take it. Each has two accuracies on the same
validation scenes: inherited, by the supernet's weights as they are, and alone, after a training of its own from
fresh weights, of as many epochs as the supernet had; with `--trainings 2` that is the mean of two seeds. Kendall's
tau is 1 where both rank all pairs alike, and 0 where they have nothing to do with each other. Larger networks are
mostly better, so the MACs alone rank well, too. Their tau is told beside it, and so are the tau of pairs whose
MACs lie within a tenth of each other and that between two trainings alone, which no ranking can be asked to
exceed. Validation chose nothing here. What is in the folder is not trained again.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from record import record
from sandwich import SUPERNET, train
from scipy.stats import kendalltau

from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.sample import sample_static
from routespace.memory import keep_freed_memory
from routespace.nn.task_net import TaskNet
from routespace.recipes import load_recipe
from routespace.train.candidates import evaluate_candidates
from routespace.train.data.loaders import make_loaders
from routespace.train.evaluate import evaluate
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import train_recipe
from routespace.workflow.artifacts import load_run

DRAWN = 400  # parts to choose from
NEAR_FRAC = 0.1  # of the MACs: how far pairs of nearly equal size may lie apart
REHEARSAL = ["data.train_size=256", "data.val_size=100", "grid.image_size=32", "data.digit_px=[16, 30]"]


def alike(part: Architecture) -> tuple[tuple[str, int], ...]:
    """The blocks of a part, whatever the layers are in which they lie: of equal ones fresh networks are one."""
    edges = [part.grid.edges[name] for name in part.open_edges]
    on_its_way = sorted(edges, key=lambda edge: (edge.rate, edge.layer, edge.kind == "patch_embed"))
    return tuple((edge.kind, edge.rate) for edge in on_its_way if edge.kind != "identity")


def subnets(space: Architecture, count: int, window: tuple[float, float], seed: int) -> list[list[Architecture]]:
    """Static parts that differ, those nearest to evenly spaced MACs in the window (shares of the most).

    Each is given as all drawn parts of the same blocks.
    """
    most = architecture_cost(space.opened()).macs
    low, high = (share * most for share in window)
    left: dict[Any, list[Architecture]] = {}
    for part in dict.fromkeys(sample_static(space, DRAWN, low_macs=low, high_macs=high, seed=seed)):
        left.setdefault(alike(part), []).append(part)
    found: list[list[Architecture]] = []
    for wanted in np.linspace(low, high, count):
        near = min(left, key=lambda blocks: abs(architecture_cost(left[blocks][0]).macs - wanted))
        found.append(left.pop(near))
    return sorted(found, key=lambda parts: architecture_cost(parts[0]).macs)


def alone(recipe: Recipe, part: Architecture, folder: Path) -> float:
    """Validation accuracy of a part that is trained from fresh weights of the recipe's seed."""
    if not (folder / "result.json").exists():
        torch.manual_seed(recipe.seed)
        fresh = TaskNet.classifier(part)
        resume = (folder / "recipe.yaml").exists()
        train_recipe(recipe, folder, init=fresh, asked=frozenset(), resume=resume)
    return float(load_run(folder).scores[-1].value)


def near_tau(macs: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, int]:
    """Tau over the pairs whose MACs lie near each other, and how many there are."""
    signs = [
        np.sign(first[a] - first[b]) * np.sign(second[a] - second[b])
        for a, b in itertools.combinations(range(len(macs)), 2)
        if abs(macs[a] - macs[b]) <= NEAR_FRAC * max(macs[a], macs[b])
    ]
    return (float(np.mean(signs)) if signs else float("nan")), len(signs)


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the supernet and its subnets, and compare."""
    changes = [f"seed={arguments.seed}", f"train.epochs={arguments.epochs}", *arguments.set]
    recipe = load_recipe("digits_tiny", changes)
    folder = arguments.out / f"supernet_{arguments.seed}"
    super_s = train(recipe.override(SUPERNET), folder)
    net, loaders = load_run(folder).net, make_loaders(recipe)
    window = recipe.override(SUPERNET).train.sandwich_window
    drawn = subnets(net.architecture, arguments.subnets, window, arguments.seed)
    rows = iter(evaluate_candidates(net, [part for parts in drawn for part in parts], loaders.val))
    found = [max((next(rows) for _ in parts), key=lambda row: row["accuracy"]) for parts in drawn]
    inherited = np.array([row["accuracy"] for row in found])
    plain = recipe.override(SUPERNET | {"train.mode": "plain"})
    scores: list[list[float]] = [[] for _ in drawn]
    for training in range(arguments.trainings):
        seeded = plain.override({"seed": arguments.seed + training})
        for number, parts in enumerate(drawn):
            place = arguments.out / f"alone_{arguments.seed + training}_{number}"
            scores[number].append(alone(seeded, parts[0], place))
            print(
                f"{number + 1:3}: {architecture_cost(parts[0]).macs / 1e6:.3f} MMACs, inherited "
                f"{inherited[number]:.3f}, alone {scores[number][-1]:.3f}",
                flush=True,
            )
    macs = np.array([float(architecture_cost(parts[0]).macs) for parts in drawn])
    stood = np.array([mean(all_of_it) for all_of_it in scores])
    near, pairs = near_tau(macs, inherited, stood)
    return {
        "what": "ranking",
        "seed": arguments.seed,
        "epochs": arguments.epochs,
        "rows": [
            {"macs": m, "inherited": i, "alone": a, "trainings": each}
            for m, i, a, each in zip(macs, inherited, stood, scores, strict=True)
        ],
        "tau_of_trainings": [float(kendalltau(inherited, each).statistic) for each in zip(*scores, strict=True)],
        "tau_between_trainings": [
            float(kendalltau(*pair).statistic) for pair in itertools.combinations(zip(*scores, strict=True), 2)
        ],
        "whole": evaluate(net.restrict(net.architecture.opened()), loaders.val)["accuracy"],
        "supernet_s": super_s,
        "tau": float(kendalltau(inherited, stood).statistic),
        "tau_of_loss": float(kendalltau([-row["loss"] for row in found], stood).statistic),
        "tau_of_macs": float(kendalltau(macs, stood).statistic),
        "tau_near": near,
        "near_pairs": pairs,
    }


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--subnets", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--trainings", type=int, default=1, help="of each subnet alone, with different seeds")
    parser.add_argument("--set", action="append", default=[], help="a recipe field, such as data.train_size=3000")
    parser.add_argument("--rehearse", action="store_true", help="everything small, in half a minute")
    parser.add_argument("--out", type=Path, default=Path("runs/ranking"))
    arguments = parser.parse_args()
    if arguments.rehearse:
        arguments.subnets, arguments.epochs, arguments.set = 5, 1, REHEARSAL
    found = measured(arguments)
    print(
        f"Kendall's tau over {len(found['rows'])} subnets: {found['tau']:.2f}; by inherited loss "
        f"{found['tau_of_loss']:.2f}; of the MACs alone {found['tau_of_macs']:.2f}; "
        f"of {found['near_pairs']} pairs of nearly equal MACs {found['tau_near']:.2f}"
    )
    for tau in found["tau_between_trainings"]:
        print(f"between two trainings alone: {tau:.2f}")
    record(arguments.out / "ranking_cpu.json", "cpu", found)


if __name__ == "__main__":
    main()
