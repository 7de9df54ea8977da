"""The routed backbone under the heads of dense tasks, next to plain backbones of the same MACs and schedule.

    python benchmarks/tasks.py [--tasks detect semantic] [--seeds 0 1 2] [--only routed smaller] [--out DIR]
    python benchmarks/tasks.py --rehearse                       every task and line, tiny, in a minute or two
    python benchmarks/tasks.py --large [--px 640]               real speed at the size of photographs, untrained

Each task is that of its recipe: digits_detect, digits_instance, digits_semantic. The lines:

    routed      the recipe as it is
    narrower    its staircase with widths that take the routed backbone's MACs
    smaller     its own staircase on smaller images, within a tenth of these MACs
    smaller+    the same with 1.8 times the steps of the last phase
    dense       its own blocks on all tokens: what is to be saved, no rival

Everybody starts on the recipe's small canvas and takes the same number of steps, but for `smaller+`. MACs are
those of the backbone, and of the whole network in brackets. `time` is that of a batch of validation images over
the dense line's, medians of both in turns, one thread; the head is in it. The metric is on validation scenes;
the test split is never read.

Then, for the routed network, the paper's claim is put to the test: the share of tokens that each rate computes of
the largest, middle and smallest third of the objects, and of what is no object; and how well the map finds them.
Finished runs are read, not trained again.

`--large` times RetinaNet over B1 with half of the tokens of each row computed, chosen by a coin, against all
of them: one image, one thread, in turns; the backbone alone, and with the head, which gates cannot make cheaper.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from record import record

from routespace.files import read_json, write_json
from routespace.grid.leading import gated_rows
from routespace.memory import keep_freed_memory
from routespace.nn.route_net import RouteNet
from routespace.nn.running import now
from routespace.nn.task_net import TaskNet, network_cost
from routespace.nn.usage import UsageMeter
from routespace.nn.weights import load_net
from routespace.recipes import load_recipe
from routespace.train.controls import object_auc, scenes_with_objects, touched_tokens
from routespace.train.data.loaders import make_loaders
from routespace.train.data.rendered import RenderedSource
from routespace.train.data.source import make_source
from routespace.train.macs import counted_macs
from routespace.train.plain import plain_recipe, smaller_recipe
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import train_recipe
from routespace.train.run_folder import RunFolder

TASKS = ("detect", "instance", "semantic")
LINES = ("routed", "narrower", "smaller", "smaller+", "dense")
LONGER = 1.8  # times the steps of the last phase
ROUNDS, TIMED_IMAGES, LOOKED_AT = 9, 32, 200
LARGE_ROUNDS = 9
THIRDS = ("smallest third", "middle third", "largest third")
REHEARSAL = {"data.train_size": 64, "data.val_size": 32, "train.epochs": 1}


def recipe_of(task: str, line: str, seed: int, *, tiny: bool) -> Recipe:
    """A line's recipe."""
    own = load_recipe(f"digits_{task}").override({"seed": seed})
    if tiny:
        phases = [phase.model_dump(mode="json") for phase in own.train.phases]
        short = [phase | {"epochs": 1, "data": phase["data"] | {"train_size": 64}} for phase in phases]
        own = own.override(REHEARSAL | {"train.phases": short})
    macs = own.budget_macs()
    assert macs is not None
    if line == "routed":
        return own
    if line == "dense":
        plain = {"routing": "static", "gates": {}, "budget.ratio": None}
        return own.override({"name": f"{own.name}_dense", **plain})
    if line == "narrower":
        return plain_recipe(own, macs)
    smaller = smaller_recipe(own, macs)
    count = smaller.data.train_size  # type: ignore[union-attr]  # rendered kinds have it
    return smaller if line == "smaller" else smaller.override({"data.train_size": round(LONGER * count)})


def trained(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Results of a run, which is trained, or goes on, if need be."""
    run = RunFolder(folder)
    if not run.is_finished:
        train_recipe(recipe, folder, resume=run.is_run)
    return run.read_result()


def one(task: str, line: str, seed: int, *, out: Path, tiny: bool) -> dict[str, Any]:
    """A row of the table."""
    folder = out / f"{task}_{line}_{seed}"
    recipe, told = recipe_of(task, line, seed, tiny=tiny), folder.with_suffix(".json")
    result = trained(recipe, folder)
    if told.exists():
        row: dict[str, Any] = read_json(told, wanted="what this script wrote")
        return row
    trained(recipe_of(task, "dense", seed, tiny=tiny), out / f"{task}_dense_{seed}")
    net = load_net(folder / "net")
    row = {
        "task": task,
        "line": line,
        "seed": seed,
        "metric": result["metric"],
        "score": result[result["metric"]],
        "macs": result["counted_macs"],
        "whole_macs": result["counted_macs"] + network_cost(net).head.macs,
        "image_px": recipe.grid.image_size[0],
        "seconds": result["seconds"],
        "time": time_of(
            net, load_net(out / f"{task}_dense_{seed}" / "net"), recipe, task=task, seed=seed, tiny=tiny
        ),
        **(looked_at(net, recipe) if line == "routed" else {}),
    }
    write_json(told, row)
    return row


@torch.inference_mode()
def time_of(net: TaskNet, dense: TaskNet, recipe: Recipe, *, task: str, seed: int, tiny: bool) -> float:
    """Time of a network over the dense line's, each on its own validation images."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = recipe_of(task, "dense", seed, tiny=tiny)
    pairs = [(some.eval(), images_of(made)) for some, made in ((net, recipe), (dense, whole))]
    taken: list[list[float]] = [[], []]
    for _ in range(ROUNDS + 1):
        for times, (some, images) in zip(taken, pairs, strict=True):
            start = now(images.device)
            some(images)
            times.append(now(images.device) - start)
    torch.set_num_threads(threads)
    own, theirs = (median(times[1:]) for times in taken)
    return own / theirs


def images_of(recipe: Recipe) -> torch.Tensor:
    """A batch of validation images."""
    return next(iter(make_loaders(recipe).val)).images[:TIMED_IMAGES]


def looked_at(net: TaskNet, recipe: Recipe) -> dict[str, Any]:
    """Where a routed network looks: AUC of its map, and the share of tokens of each rate by the objects' size."""
    source = make_source(recipe)
    assert isinstance(source, RenderedSource)
    count = min(LOOKED_AT, recipe.data.val_size)  # type: ignore[union-attr]  # rendered kinds have it
    scenes = list(scenes_with_objects(source, "val", count))
    auc = object_auc(net, scenes)
    return {"auc": auc, "usage_by_size": usage_by_size(net, scenes)}


@torch.no_grad()
def usage_by_size(net: TaskNet, scenes: list[tuple[torch.Tensor, list[Any]]]) -> dict[str, dict[str, float]]:
    """Rate → share of tokens computed of small, middle and large objects, and of what is none of them."""
    sides = torch.cat([longer_sides(known) for _, objects in scenes for known in objects]).sort().values
    bounds = sides[[len(sides) // 3, 2 * len(sides) // 3]]
    sums: dict[tuple[int, str], list[float]] = {}
    rows, size = gated_rows(net.architecture), net.spec.image_size
    for images, objects in scenes:
        routes = net.eval()(images).routes
        for row in rows:
            kept = routes[row.name].kept.float().expand(len(images), -1)
            for tokens, known in zip(kept, objects, strict=True):
                touched = torch.zeros(len(tokens), dtype=torch.bool)
                for n, side in enumerate(longer_sides(known)):
                    its = touched_tokens({"boxes": known["boxes"][n : n + 1]}, size, row.rate, around_px=0)
                    sums.setdefault((row.rate, THIRDS[int((side > bounds).sum())]), []).append(
                        float(tokens[its].mean())
                    )
                    touched |= its
                sums.setdefault((row.rate, "no object"), []).append(float(tokens[~touched].mean()))
    rates = sorted({rate for rate, _ in sums})
    return {str(rate): {what: mean(sums[rate, what]) for what in (*THIRDS, "no object")} for rate in rates}


def longer_sides(known: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(M,) pixels."""
    boxes = known["boxes"]
    return (boxes[:, 2:] - boxes[:, :2]).max(1).values


@torch.inference_mode()
def large(px: int, keep: float = 0.5) -> dict[str, float]:
    """Times of a routed network over those of all tokens, and the same by MACs."""
    torch.set_num_threads(1)
    wanted = {"grid.preset": "dit_b1", "grid.image_size": px, "routing": "depth"}
    recipe = load_recipe("dit_b2_coco_retinanet_1x").override(wanted)
    gates = recipe.gates.model_copy(update={"selection": "random", "keep": keep})
    net = TaskNet(
        RouteNet(recipe.architecture(), gates, execution="packed"), recipe.task.make(recipe.grid).head(recipe.grid)
    )
    net.eval()
    images, whole = torch.randn(1, 3, px, px), net.architecture.opened()
    meter = UsageMeter()
    meter.update(net(images).routes, 1)
    taken: dict[str, list[float]] = {}
    for _ in range(LARGE_ROUNDS + 1):
        for name, held, module in (
            ("backbone", None, net.backbone),
            ("backbone, all", whole, net.backbone),
            ("network", None, net),
            ("network, all", whole, net),
        ):
            with net.deciding_as(held=held, execution="dense" if held else "packed"):
                start = now(images.device)
                module(images)
                taken.setdefault(name, []).append(now(images.device) - start)
    times = {name: median(some[1:]) for name, some in taken.items()}
    return {
        "px": px,
        "keep": keep,
        "macs": counted_macs(net, meter.usage()) / counted_macs(net, {}),
        "backbone": times["backbone"] / times["backbone, all"],
        "network": times["network"] / times["network, all"],
        **{f"{name} ms": 1e3 * seconds for name, seconds in times.items()},
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The tables."""
    print(f"\n{'task':<9} {'line':<9} seed  px   MMACs (whole)   time   metric")
    for row in rows:
        print(
            f"{row['task']:<9} {row['line']:<9} {row['seed']:4} {row['image_px']:4} {row['macs'] / 1e6:7.2f} "
            f"({row['whole_macs'] / 1e6:6.1f})  {row['time']:5.2f}   {row['metric']} {100 * row['score']:.1f} %"
        )
    for row in rows:
        if "auc" in row:
            print(
                f"\n{row['task']}, seed {row['seed']}: AUC of each row against the objects' boxes: "
                + ", ".join(f"{name} {auc:.3f}" for name, auc in row["auc"].items())
            )
            for rate, shares in row["usage_by_size"].items():
                print(f"  rate {rate:>2}: " + ", ".join(f"{what} {share:.2f}" for what, share in shares.items()))


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--px", type=int, default=640)
    parser.add_argument("--out", type=Path, default=Path("runs/tasks"))
    arguments = parser.parse_args()
    out = arguments.out / "rehearsal" if arguments.rehearse else arguments.out
    if arguments.large:
        found = large(arguments.px)
        print("\n".join(f"{name:<18} {value:.3f}" for name, value in found.items()))
        record(arguments.out / "tasks_large_cpu.json", "cpu", {"what": "tasks_large", **found})
        return
    rows: list[dict[str, Any]] = []
    for task in arguments.tasks:
        for seed in arguments.seeds:
            for line in arguments.only:
                rows.append(one(task, line, seed, out=out, tiny=arguments.rehearse))
                show(rows)
                record(out / "tasks_cpu.json", "cpu", {"what": "tasks", "rows": rows})


if __name__ == "__main__":
    main()
