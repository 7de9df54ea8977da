"""One taught map on photographs: against plain networks of the same MACs, and against gates that know the boxes.

    python benchmarks/data_stamps.py runs/stamps_data
    python benchmarks/map_stamps.py runs/stamps_data [--seeds 0] [--only routed oracle] [--out DIR]

As `map.py`, with photographic cut-outs on photographs in place of digits: one object a scene, of 20 to 60 px on
64 px in phase A, of 18 to 52 px on 96 px in phase B; validation has the same cut-outs on other photographs. All
networks take the same number of steps in both phases.

    routed      the gates of the recipe `digits_map`
    scout       the same, but a scout makes the map: four blocks on squares of 4×4 tokens
    linear      as routed, with a cheap path for skipped tokens (`gates.skipped`), of as many MACs in all
    mlp         likewise, with two layers in the path
    both        `scout` and `linear` together
    oracle      the routed network without gates of its own: a token is computed where it touches the object's box
                or two pixels around it. That also tells where the object is: a ceiling, no rival. It costs nothing
    random      the routed network with a coin for each token, of as many MACs; nothing is learned of where to look
    attention   likewise, with the tokens that the mean token attends to most
    shallower   one block a rate, narrower
    smaller     the routed network's own blocks on images of 72 px (more MACs than the others)
    dense       the routed network's own blocks on all tokens: what is to be saved

`auc` says how well the map tells the oracle's tokens from the others at rate 4, `fitted` how well a linear gate of
the same inputs would do that was fitted to training boxes (not with a scout). Seconds are processor seconds of
phase B's training steps, with the composing of scenes; run it with one thread. Accuracies are on validation
scenes; the test split is not looked at. Finished runs are read, not trained again. All of it is in
OUT/map_stamps_cpu.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from map import finished, show
from record import record
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from routespace import RouteNet, Routes, TaskNet
from routespace.files import read_json, write_json
from routespace.grid.leading import leading_row
from routespace.grid.spec import map_size
from routespace.memory import keep_freed_memory
from routespace.nn.routing.margins import in_context
from routespace.nn.routing.routes import EdgeRoute
from routespace.nn.usage import UsageMeter
from routespace.nn.weights import load_net
from routespace.recipes import load_recipe
from routespace.train.data.catalogue import Split
from routespace.train.data.rendered import EVAL_SEED
from routespace.train.data.scenes.source import ScenesDataset, ScenesSource
from routespace.train.macs import counted_macs
from routespace.train.optim import make_optimizer, make_schedule
from routespace.train.pretrained import load_pretrained
from routespace.train.recipe.recipe import Recipe
from routespace.train.recipe.scenes import ScenesSpec

AUC_SCENES, FIT_SCENES, BOX_PX = 200, 300, 2
START_PX, OBJECT_PX, SMALL_PX = (20, 60), (18, 52), (14, 39)
START_SIZE, START_EPOCHS = 6000, 8
TRAIN_SIZE, EPOCHS, BATCH = 6400, 5, 32
PLAIN = {"routing": "static", "gates": {}, "budget": {"ratio": None}}
KEEP = 0.26  # share of every row's tokens that takes the routed network's MACs
WITHOUT_MAP = {"budget": {"ratio": None, "open_frac": 0.2}}
RANDOM = {"gates": {"selection": "random", "keep": KEEP}}
ATTENTION = {"gates": {"selection": "attention", "keep": KEEP}}
SCOUT = {"gates.scout": 4, "gates.scout_square": 4}
SHALLOW = {"grid.widths": [5, 10, 24, 36]}
SMALL = {"grid.image_size": 72, "data.object_px": SMALL_PX}
NETWORKS: Mapping[str, Mapping[str, Any]] = {  # name: changes
    "routed": {},
    "scout": SCOUT,
    "both": SCOUT | {"gates.skipped": "linear"},
    "linear": {"gates.skipped": "linear"},
    "mlp": {"gates.skipped": "mlp"},
    "oracle": {},
    "random": WITHOUT_MAP | RANDOM,
    "attention": WITHOUT_MAP | ATTENTION,
    "shallower": PLAIN | SHALLOW,
    "smaller": PLAIN | SMALL,
    "dense": PLAIN,
}


def scenes(folder: Path, object_px: tuple[int, int], train_size: int) -> dict[str, Any]:
    """The recipe's data section."""
    return {
        "kind": "scenes",
        "cutouts": str(folder / "cutouts"),
        "backgrounds": str(folder / "photographs"),
        "train_size": train_size,
        "object_px": object_px,
        "rotate": 25,
        "hflip": 0.5,
        "brightness": 0.3,
        "saturation": 0.5,
        "held_out": 0.2,
    }


def recipe_of(folder: Path, name: str, seed: int) -> Recipe:
    """That of a network: large objects on a small canvas first, as in `digits_map`."""
    given = load_recipe("digits_map")
    start = given.train.phases[0].model_dump(mode="json")
    start |= {"epochs": START_EPOCHS, "data": {"object_px": START_PX, "train_size": START_SIZE}}
    classes = {"grid.num_classes": len(list((folder / "cutouts").iterdir())), "seed": seed}
    training = {"data": scenes(folder, OBJECT_PX, TRAIN_SIZE), "train.epochs": EPOCHS, "train.phases": [start]}
    return given.override({**classes, **training, **NETWORKS[name]})


def one(folder: Path, name: str, seed: int, out: Path) -> dict[str, Any]:
    """Train one network in both phases; the oracle goes on from the dense network's first."""
    place, recipe = out / f"{name}_{seed}", recipe_of(folder, name, seed)
    if name == "oracle":
        first = out / f"start_{seed}"
        begun = finished(recipe_of(folder, "dense", seed).phase(0), first)
        own = recipe.override({"train.phases": [], "train.weights": str(first), "train.start": "open"})
        result = {**oracle(own, place.with_suffix(".json")), "start": begun["accuracy"], "start_s": begun["cpu_s"]}
    else:
        result = finished(recipe, place)
    return {
        "network": name,
        "seed": seed,
        "macs": result["counted_macs"],
        "steps": recipe.train.epochs * (TRAIN_SIZE // BATCH),
        "start_s": result["start_s"],
        "cpu_s": result["cpu_s"],
        "start": result["start"],
        "accuracy": result["accuracy"],
        "auc": None,
        **(map_auc(load_net(place / "net").eval(), recipe) if name in ("routed", "scout", "both") else {}),
    }


def scenes_of(recipe: Recipe, split: Split) -> ScenesDataset:
    """The scenes of a recipe; those of val are the same for all seeds."""
    assert isinstance(recipe.data, ScenesSpec)
    source = ScenesSource(recipe.data, recipe.preprocess, seed=recipe.seed)
    if split == "train":
        return source.scenes(split, recipe.data.train_size, recipe.seed)
    return source.scenes(split, recipe.data.val_size, EVAL_SEED)


def batch_of(dataset: ScenesDataset, indices: range) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, 3, H, W), labels (B,) and boxes (B, 4), left, top, right, bottom, of scenes with one object."""
    made, looks = dataset.compose(indices), dataset.preprocess
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (looks.mean, looks.std))
    images = ((made.images.permute(0, 3, 1, 2) / 255 - mean) / std).contiguous()
    boxes = np.stack([made.objects(scene).boxes[0] for scene in range(len(images))])
    return images, torch.from_numpy(made.layout.labels), torch.from_numpy(boxes)


def touched(boxes: Tensor, size: tuple[int, int], rate: int) -> Tensor:
    """Boxes (B, 4) → (B, N) bool: the tokens of a rate that touch them or what is close around them."""
    down, across = (torch.arange(0, side, rate) for side in size)
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    rows = (down + rate > top - BOX_PX) & (down < bottom + BOX_PX)
    columns = (across + rate > left - BOX_PX) & (across < right + BOX_PX)
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)


def true_routes(net: TaskNet, boxes: Tensor) -> Routes:
    """Decisions that compute the tokens around each object and no others."""
    size, edges = net.spec.image_size, net.architecture.grid.edges
    kept = {name: touched(boxes, size, edges[name].target[1]) for name in net.gates}
    return Routes({name: EdgeRoute(there, there.float()) for name, there in kept.items()})


def oracle(recipe: Recipe, told: Path) -> dict[str, Any]:
    """Train with true routes as the library trains: the same scenes, rates, clipping and steps with all open."""
    if told.exists():
        found: dict[str, Any] = read_json(told, wanted="what this script wrote")
        return found
    torch.manual_seed(recipe.seed)
    train, dataset = recipe.train, scenes_of(recipe, "train")
    task = recipe.task.make(recipe.grid, train)
    net = TaskNet(RouteNet(recipe.architecture(), recipe.gates, execution=train.execution), task.head(recipe.grid))
    assert train.weights is not None
    assert train.clip_grad is not None
    load_pretrained(net, train.weights)
    steps, begin = TRAIN_SIZE // BATCH, time.process_time()
    optimizer, net = make_optimizer(net, train), net.train()
    schedule = make_schedule(optimizer, train, steps)
    for done in range(train.epochs * steps):
        epoch, step = divmod(done, steps)
        dataset.set_epoch(epoch)
        schedule.step_update(done)
        images, labels, boxes = batch_of(dataset, range(step * BATCH, (step + 1) * BATCH))
        whole = done < recipe.budget.open_frac * train.epochs * steps
        routes = Routes.full(net, images) if whole else true_routes(net, boxes)
        task.loss(net(images, routes=routes).outputs, labels).backward()
        for group in optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], train.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
    result = {"cpu_s": time.process_time() - begin, **true_accuracy(net.eval(), scenes_of(recipe, "val"))}
    write_json(told, result)
    return result


@torch.no_grad()
def true_accuracy(net: TaskNet, dataset: ScenesDataset) -> dict[str, float]:
    """Accuracy and counted MACs under true routes."""
    right, meter = 0, UsageMeter()
    for begin in range(0, len(dataset), BATCH):
        images, labels, boxes = batch_of(dataset, range(begin, min(begin + BATCH, len(dataset))))
        output = net(images, routes=true_routes(net, boxes))
        meter.update(output.routes, len(images))
        right += int((output.logits.argmax(1) == labels).sum())
    return {"accuracy": right / len(dataset), "counted_macs": counted_macs(net, meter.usage())}


def map_auc(net: TaskNet, recipe: Recipe) -> dict[str, float]:
    """Areas under the curve against the oracle's tokens: of the map, and of a linear gate fitted to boxes."""
    leader = leading_row(net.architecture)
    assert leader is not None
    read, chance, wanted = gate_inputs(net, leader, scenes_of(recipe, "val"), AUC_SCENES)
    found = {"auc": float(roc_auc_score(wanted, chance))}
    if net.gate_spec.scout:
        return found
    seen, _, known = gate_inputs(net, leader, scenes_of(recipe, "train"), FIT_SCENES)
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(seen, known)
    return found | {"fitted": float(roc_auc_score(wanted, fitted.decision_function(read)))}


@torch.no_grad()
def gate_inputs(net: TaskNet, leader: str, dataset: ScenesDataset, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each token of some scenes: what the leading gate reads, (P, 3C), says, (P,), and should say, (P,)."""
    images, _, boxes = batch_of(dataset, range(count))
    read = list[Tensor]()
    hook = net.edges[leader].register_forward_hook(lambda _, given, __: read.append(given[0]))
    with net.deciding_as(held=net.architecture.opened(), execution="dense"):
        net(images)
    hook.remove()
    chance = net(images).routes[leader].chance
    assert chance is not None
    size, rate = net.spec.image_size, net.architecture.grid.edges[leader].target[1]
    seen = in_context(read[0], map_size(size, rate), net.gate_spec.context_side)
    return seen.flatten(0, 1).double(), chance.flatten().double(), touched(boxes, size, rate).flatten()


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="what benchmarks/data_stamps.py wrote")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=Path("runs/map_stamps"))
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for name in arguments.only:
            rows.append(one(arguments.data, name, seed, arguments.out))
            show(rows)
            record(arguments.out / "map_stamps_cpu.json", "cpu", {"what": "map_stamps", "rows": rows})


if __name__ == "__main__":
    main()
