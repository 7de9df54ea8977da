"""The networks that are compared on dense tasks, and how each becomes a row of the table.

routed      the recipe as it is; stamps with a scout, and with gates that boxes teach where a task reads them
unlabelled  the same with gates that the dense pass teaches, without boxes
narrower    as many blocks at each rate, in widths that take the routed backbone's MACs
shallower   no blocks at the finest rate, and wider: the same MACs
smaller     the recipe's own blocks on smaller images, within a tenth of these MACs
narrower+, shallower+, smaller+   the same, each phase for as many seconds as the routed one took
dense       the recipe's own blocks on all tokens: what is to be saved, no rival
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from evidence_lines.arenas import classes_of, scenes_of

from routespace.errors import RoutespaceError
from routespace.files import read_json, write_json
from routespace.nn.cost import network_cost
from routespace.nn.route_net import RouteNet
from routespace.nn.running import now
from routespace.nn.task_net import TaskNet
from routespace.nn.weights import load_net
from routespace.recipes import load_recipe
from routespace.train.data.loaders import make_loaders
from routespace.train.plain import plain_recipe, smaller_recipe
from routespace.train.recipe.recipe import Recipe
from routespace.train.recipe.targets import KNOW_OBJECTS
from routespace.train.run import train_recipe
from routespace.train.run_folder import RunFolder
from task_lines.looking import looked_at

CROWDED = {  # fewer pixels that objects cover more of, and more channels: width is worth little there
    "grid.image_size": 96,
    "grid.depths": 1,
    "grid.widths": [16, 32, 64, 96],
    "grid.sr_ratios": [4, 2, 1, 1],
    "budget.ratio": 0.57,
    "data.train_size": 3000,
    "data.digit_px": [14, 44],
    "train.epochs": 5,
    "train.batch_size": 32,
}
CROWDED_FIRST = {"epochs": 6, "image_size": 64}
CROWDED_FIRST_DATA = {"train_size": 3000, "digit_px": [24, 56]}
HEAVY = {  # heads
    "detect": {"task.width": 32, "task.convs": 4},
    "instance": {"task.width": 32, "task.convs": 4, "task.proposals": 50, "task.max_detections": 100},
    "semantic": {"task.channels": 64},
}
SCENES = ("recipe", "crowded")
TASKS = ("detect", "instance", "semantic")
LINES = (
    "routed",
    "unlabelled",
    "narrower",
    "shallower",
    "smaller",
    "narrower+",
    "shallower+",
    "smaller+",
    "dense",
)
PLAIN = {"routing": "static", "gates": {}, "budget": {"ratio": None}}
ROUNDS, TIMED_IMAGES = 9, 32
ON_CUDA = {  # many scenes a step: a step of small networks takes as long as its kernels' calls
    "train.device": "cuda",
    "train.clock": "wall",
    "train.execution": "dense",
    "data.workers": 1,
}
MORE_ON_CUDA = (
    2  # times the scenes of a step; Mask R-CNN of torchvision goes from image to image, and gets no more
)
REHEARSAL = {"data.train_size": 32, "data.val_size": 16, "train.epochs": 1}
SCOUT = {"scout": 4, "scout_square": 4}  # for photographs on photographs
STAMP_SIZE = 1.25  # of a stamp, for one of a digit: a photograph needs more pixels to be known by
OF_STAMPS = {"digit_px": "object_px", "digits_per_scene": "objects_per_scene"}
BACKGROUND_WEIGHT = 0.1  # as in digits_semantic


@dataclass(frozen=True)
class Setting:
    """One seed of a task.

    Attributes:
        task: one of TASKS.
        seed: of weights and training scenes.
        out: folder of the runs.
        scenes: `recipe`, or `crowded`.
        stamps: what data_stamps.py wrote; None for the recipe's digits.
        tiny: a rehearsal.
        device: `cpu` or `cuda`, where networks train. On a GPU as many steps, of more scenes.
    """

    task: str
    seed: int
    out: Path
    scenes: str = "recipe"
    stamps: Path | None = None
    tiny: bool = False
    device: str = "cpu"

    @property
    def recipe(self) -> Recipe:
        """That of the routed network."""
        own = load_recipe(f"digits_{self.task}").override({"seed": self.seed, "train.clock": "processor"})
        if self.scenes == "crowded":
            own = crowded(own)
        if self.stamps is not None:
            own = on_stamps(own, self.stamps)
        if self.device == "cuda":
            own = on_cuda(own)
        if not self.tiny:
            return own
        phases = [phase.model_dump(mode="json") for phase in own.train.phases]
        short = [phase | {"epochs": 1, "data": phase["data"] | {"train_size": 32}} for phase in phases]
        return own.override(REHEARSAL | {"train.phases": short})

    def folder(self, line: str) -> Path:
        """Of a line's run."""
        return self.out / f"{self.task}_{line}_{self.seed}"


def crowded(recipe: Recipe) -> Recipe:
    """A recipe on smaller scenes that are fuller, with more channels under a heavier head."""
    phases = [phase.model_dump(mode="json") for phase in recipe.train.phases]
    first = [phase | CROWDED_FIRST | {"data": phase["data"] | CROWDED_FIRST_DATA} for phase in phases]
    return recipe.override(CROWDED | HEAVY[recipe.task.kind] | {"train.phases": first})


def on_cuda(recipe: Recipe) -> Recipe:
    """A recipe with as many steps, of more scenes each."""
    more = 1 if recipe.task.kind == "instance" else MORE_ON_CUDA
    return with_scenes(recipe.override(ON_CUDA | {"train.batch_size": more * recipe.train.batch}), more)


def with_scenes(recipe: Recipe, factor: float) -> Recipe:
    """A recipe with another number of scenes in each epoch."""
    count = recipe.data.model_dump()["train_size"]
    phases = [phase.model_dump(mode="json") for phase in recipe.train.phases]
    for phase in phases:
        phase["data"]["train_size"] = round(factor * phase["data"].get("train_size", count))
    return recipe.override({"data.train_size": round(factor * count), "train.phases": phases})


def on_stamps(recipe: Recipe, folder: Path) -> Recipe:
    """A recipe of digits, on scenes of stamps: as many in a scene, larger by STAMP_SIZE where there is room."""

    def told(digits: dict[str, Any], canvas: int | None) -> dict[str, Any]:
        most = canvas or min(recipe.grid.image_size)
        found = {OF_STAMPS.get(name, name): value for name, value in digits.items()}
        if "object_px" in found:
            found["object_px"] = [min(most, round(STAMP_SIZE * px)) for px in found["object_px"]]
        return found

    data, classes = recipe.data.model_dump(mode="json"), classes_of(folder)
    own = told({name: data[name] for name in OF_STAMPS}, None)
    scenes = scenes_of(folder, *(data[name] for name in ("train_size", "val_size", "test_size")))
    phases = [phase.model_dump(mode="json") for phase in recipe.train.phases]
    changes: dict[str, Any] = {"name": f"{recipe.name}_stamps", "data": scenes | own}
    taught = "objects" if recipe.task.target in KNOW_OBJECTS else "dense"
    changes["gates"] = recipe.gates.model_dump(mode="json") | SCOUT | {"teach": taught}
    changes["train.phases"] = [phase | {"data": told(phase["data"], phase["image_size"])} for phase in phases]
    task = recipe.task.model_dump(mode="json")
    if recipe.task.target == "pixels":
        changes["task"] = task | {
            "classes": classes + 1,
            "class_weights": [BACKGROUND_WEIGHT, *[1.0] * classes],
        }
    else:
        changes["task"] = task | {"classes": classes}
    return recipe.override(changes)


def recipe_of(setting: Setting, line: str) -> Recipe:
    """A line's recipe.

    Raises:
        RoutespaceError: a line with a plus before the routed one is finished.
    """
    own = setting.recipe
    macs = own.budget_macs()
    assert macs is not None
    if line.endswith("+"):
        return for_as_long(recipe_of(setting, line.removesuffix("+")), setting)
    if line == "routed":
        return own
    if line == "unlabelled":
        return own.override({"name": f"{own.name}_unlabelled", "gates.teach": "dense"})
    if line == "dense":
        return own.override({"name": f"{own.name}_dense", **PLAIN})
    if line == "narrower":
        return plain_recipe(own, macs)
    if line == "shallower":
        return plain_recipe(own, macs, blocks=(0, *[1] * (len(own.grid.rates) - 1)))
    return smaller_recipe(own, macs)


def for_as_long(recipe: Recipe, setting: Setting) -> Recipe:
    """A recipe whose phases take as many seconds as those of the setting's routed network did."""
    run = RunFolder(setting.folder("routed"))
    if not run.is_finished:
        raise RoutespaceError(
            f"{run.path} is not finished, and tells how long to train; train the line `routed` first"
        )
    *first, last = [phase["seconds"] for phase in run.read_result()["phases"]]
    phases = [
        phase.model_dump(mode="json") | {"seconds": seconds}
        for phase, seconds in zip(recipe.train.phases, first, strict=True)
    ]
    return recipe.override({"train.phases": phases, "train.seconds": last})


def one(setting: Setting, line: str) -> dict[str, Any]:
    """A row of the table: of a run that is trained, or goes on, if need be. What was written once is read."""
    folder = setting.folder(line)
    told = folder.with_name(f"{folder.name}.json")
    if told.exists():
        found: dict[str, Any] = read_json(told, wanted="what this script wrote")
        return found
    recipe, run = recipe_of(setting, line), RunFolder(folder)
    if not run.is_finished:
        train_recipe(recipe, folder, resume=run.is_run)
    result, net = run.read_result(), load_net(folder / "net")
    row = {
        "task": setting.task,
        "line": line,
        "seed": setting.seed,
        "metric": result["metric"],
        "score": result[result["metric"]],
        "macs": result["counted_macs"],
        "whole_macs": result["counted_macs"] + network_cost(net).head.macs,
        "image_px": recipe.grid.image_size[0],
        "widths": list(recipe.grid.shape.widths),
        "seconds": result["seconds"],
        "phase_seconds": [phase["seconds"] for phase in result["phases"]],
        "steps": [phase["steps"] for phase in result["phases"]],
        "epochs": result["epochs"],
        "of_epochs": result["epochs"],
        "time": time_of(setting, net, recipe) if setting.device == "cpu" else None,
        **(looked_at(net, recipe) if line in ("routed", "unlabelled") else {}),
    }
    write_json(told, row)
    return row


def so_far(setting: Setting, line: str) -> dict[str, Any] | None:
    """A row of a run that is finished or not, as far as it is; None where there is no epoch of the last phase."""
    folder = setting.folder(line)
    told = folder.with_name(f"{folder.name}.json")
    if told.exists():
        finished: dict[str, Any] = read_json(told, wanted="what this script wrote")
        return finished
    run = RunFolder(folder)
    records = run.read_metrics() if run.is_run else []
    recipe = run.read_recipe() if records else None
    if recipe is None or records[-1]["phase"] <= len(recipe.train.phases):
        return None
    last, metric, head = records[-1], recipe.task.metric.name, recipe.task.make(recipe.grid).head(recipe.grid)
    macs = last["counted_ratio"] * recipe.base_macs()
    return {
        "task": setting.task,
        "line": line,
        "seed": setting.seed,
        "metric": metric,
        "score": last[metric],
        "macs": macs,
        "whole_macs": macs + head.cost(recipe.grid).macs,
        "image_px": recipe.grid.image_size[0],
        "widths": list(recipe.grid.shape.widths),
        "seconds": last["seconds"],
        "epochs": last["epoch"],
        "of_epochs": sum(phase.epochs for phase in recipe.train.phases) + recipe.train.epochs,
        "time": None,
    }


@torch.inference_mode()
def time_of(setting: Setting, net: TaskNet, recipe: Recipe) -> float:
    """Time of a network over that of the dense one, both in turns, each on its own validation images."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plain = recipe_of(setting, "dense")
    whole = TaskNet(RouteNet(plain.architecture(), plain.gates), plain.task.make(plain.grid).head(plain.grid))
    pairs = [(some.eval(), images_of(made)) for some, made in ((net, recipe), (whole, plain))]
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
