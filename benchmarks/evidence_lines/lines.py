"""The networks that are compared, and how each becomes a row of the table.

dense      the routed network's blocks with every token computed: what is to be saved
oracle     the same with gates that know the objects' boxes, widened to the MACs: a ceiling, no rival
routed     one taught map (`digits_map`)
narrower   a plain network as deep, narrower
shallower  a plain network without blocks at the finest rate, wider
smaller    the routed network's blocks with every token computed, on smaller images
longer     the best of these three on validation, trained for as long as the routed one
extracted  from a supernet that was trained in sandwich mode, with a short fine-tuning
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from evidence_lines.arenas import Arena
from evidence_lines.clock import Clock, clock_of
from evidence_lines.oracle import oracle_accuracy, train_oracle
from routespace import file_names
from routespace.deploy.bundle import load_bundle
from routespace.files import read_json, write_json
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.graph import RoutingGrid
from routespace.nn.task_net import TaskNet
from routespace.nn.weights import load_net
from routespace.train.data.catalogue import Split
from routespace.train.data.loaders import Loaders, make_loaders
from routespace.train.data.scenes.on_device import on_device
from routespace.train.evaluate import evaluate
from routespace.train.plain import plain_recipe
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import train_recipe
from routespace.train.run_folder import RunFolder
from routespace.workflow.artifacts import load_run
from routespace.workflow.extraction import extract_bundle
from routespace.workflow.fine_tuning import FineTuning

PLAIN = {"routing": "static", "gates": {}, "budget": {"ratio": None}, "task": "classify"}
SANDWICH = {
    "gates": {"noise": 0.0},
    "budget": {"ratio": None},
    "train.mode": "sandwich",
    "train.sandwich_parts": 1,
    "train.sandwich_window": [0.2, 1.0],
    "train.execution": "dense",
}
SIZE_STEP = 4  # pixels between the smaller image sizes that are tried
LEAST_PX = 8  # of an object
NEARLY = 1.05  # as long: not trained again
RIVALS = ("narrower", "shallower", "smaller")


@dataclass(frozen=True)
class Setting:
    """One seed of an arena at one share of the MACs; `ratio` 1 for what is the same at all of them.

    Attributes:
        arena: the task.
        seed: of weights and training scenes.
        ratio: of the dense network's MACs.
        out: folder of the arena's runs.
        beside: whether others are trained at the same time, so that seconds tell nothing.
    """

    arena: Arena
    seed: int
    ratio: float
    out: Path
    beside: bool = False

    @property
    def recipe(self) -> Recipe:
        """That of the routed network."""
        given = self.arena.recipe(self.seed)
        return given.override({"budget.ratio": self.ratio}) if self.ratio < 1 else given

    @property
    def plain(self) -> Recipe:
        """The same blocks with every token computed."""
        return self.recipe.override(PLAIN)

    @property
    def macs(self) -> float:
        """Of one image, at most."""
        return self.ratio * self.recipe.base_macs()

    @property
    def loaders(self) -> type[Loaders]:
        """How batches are made."""
        return on_device(self.arena.device) if self.arena.composed else Loaders

    def folder(self, line: str) -> Path:
        """Of one line's run."""
        return self.out / f"{line}_{self.ratio:g}_{self.seed}"

    def kept(self, line: str, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """What a line gave, done once: a later call reads it."""
        told = self.out / f"{self.folder(line).name}.json"  # a ratio has a dot, so no suffix is put in its place
        if told.exists():
            found: dict[str, Any] = read_json(told, wanted="what this script wrote")
            return found
        row = {"line": line, "seed": self.seed, "ratio": self.ratio, **work(self.folder(line))}
        row |= {"side_by_side": True} if self.beside else {}
        write_json(told, row)
        return row

    def trained(self, recipe: Recipe, folder: Path) -> dict[str, Any]:
        """Train a recipe, or go on with it; its numbers, with the seconds of its first and its last phase."""
        clock, resume = Clock(self.arena.device), (folder / file_names.RECIPE).exists()
        found = train_recipe(recipe, folder, resume=resume, progress=clock, loaders=self.loaders).metrics
        steps = found["phases"][-1]["steps"] if found["epochs"] else 0
        begun = [line["accuracy"] for line in RunFolder(folder).read_metrics() if line["phase"] == 1]
        return {
            "macs": found["counted_macs"],
            "params": found["params"],
            "steps": steps,
            "first_s": clock.seconds.get(1, 0.0) if recipe.train.phases else 0.0,
            "own_s": clock.seconds.get(len(found["phases"]), 0.0),
            "start": begun[-1],
            "accuracy": found["accuracy"],
        }


def dense(setting: Setting) -> dict[str, Any]:
    """Every token of the routed network's blocks."""
    return setting.kept("dense", lambda folder: setting.trained(setting.plain, folder))


def routed(setting: Setting) -> dict[str, Any]:
    """One taught map."""
    return setting.kept("routed", lambda folder: setting.trained(setting.recipe, folder))


def start_recipe(setting: Setting) -> Recipe:
    """All that the dense network trains before its last phase, as a training of its own."""
    plain = setting.plain
    *before, last = plain.train.phases
    phases = [phase.model_dump(mode="json") | {"lr_factor": phase.lr_factor / last.lr_factor} for phase in before]
    return plain.phase(len(before)).override({"train.phases": phases})


def oracle(setting: Setting) -> dict[str, Any]:
    """Gates that know; what comes before the last phase is the dense network's, trained once."""

    def work(folder: Path) -> dict[str, Any]:
        first = replace(setting, ratio=1)
        begun = first.kept("start", lambda place: first.trained(start_recipe(first), place))
        start = {"train.phases": [], "train.weights": str(first.folder("start")), "train.start": "open"}
        found = train_oracle(setting.recipe.override(start), folder, setting.macs)
        first_s = begun["first_s"] + begun["own_s"]
        return {**found, "macs": found["counted_macs"], "first_s": first_s, "start": begun["accuracy"]}

    return setting.kept("oracle", work)


def narrower_recipe(setting: Setting) -> Recipe:
    """Of a plain network as deep, narrower."""
    return plain_recipe(setting.plain, setting.macs)


def narrower(setting: Setting) -> dict[str, Any]:
    """As deep, narrower."""
    return setting.kept("narrower", lambda folder: setting.trained(narrower_recipe(setting), folder))


def shallower_recipe(setting: Setting) -> Recipe:
    """Of a plain network without blocks at the finest rate, wider."""
    rates = len(setting.recipe.grid.rates)
    return plain_recipe(setting.plain, setting.macs, blocks=(0, *[1] * (rates - 1)))


def shallower(setting: Setting) -> dict[str, Any]:
    """No blocks at the finest rate, wider."""
    return setting.kept("shallower", lambda folder: setting.trained(shallower_recipe(setting), folder))


def smaller_recipe(setting: Setting) -> Recipe:
    """The dense network on images of the size whose MACs come closest; objects shrink along.

    So does the first canvas, but not crops: half as many pixels of an object are too few to learn it from.
    """
    plain, arena = setting.plain, setting.arena
    side = plain.grid.image_size[0]

    def cost(px: int) -> float:
        return architecture_cost(Architecture.staircase(RoutingGrid(plain.grid.at(px)))).macs

    least = max(plain.grid.max_down, side // 4)
    px = min(range(-(-least // SIZE_STEP) * SIZE_STEP, side, SIZE_STEP), key=lambda x: abs(cost(x) - setting.macs))

    def shrunk(sizes: tuple[int, int], most: int) -> list[int]:
        low, high = (min(max(LEAST_PX, round(size * px / side)), most) for size in sizes)
        return [low, high]

    first, *between = (phase.model_dump(mode="json") for phase in plain.train.phases)
    canvas = max(least, round(arena.first[1] * px / side))
    if not arena.crops:
        first |= {"image_size": canvas, "data": {**first["data"], arena.objects: shrunk(arena.first_px, canvas)}}
    own = {f"data.{arena.objects}": shrunk(arena.own_px, px), "grid.image_size": px}
    return plain.override(own | {"train.phases": [first, *between]})


def smaller(setting: Setting) -> dict[str, Any]:
    """Every token, on smaller images."""
    return setting.kept("smaller", lambda folder: setting.trained(smaller_recipe(setting), folder))


def longer(setting: Setting) -> dict[str, Any]:
    """The best of the plain networks on validation, with as much time as the routed one had for its last phase."""
    made: Mapping[str, Callable[[Setting], dict[str, Any]]] = {
        "narrower": narrower,
        "shallower": shallower,
        "smaller": smaller,
    }
    rows = {name: make(setting) for name, make in made.items()}
    best = max(rows, key=lambda name: rows[name]["accuracy"])
    factor = routed(setting)["own_s"] / max(rows[best]["own_s"], 1e-9)

    def work(folder: Path) -> dict[str, Any]:
        if factor <= NEARLY:
            return {**rows[best], "line": "longer", "of": best, "again": False}
        given = RunFolder(setting.folder(best)).read_recipe()
        more = round(given.data.model_dump()["train_size"] * factor)
        return {**setting.trained(given.override({"data.train_size": more}), folder), "of": best, "again": True}

    return setting.kept("longer", work)


def supernet_recipe(setting: Setting) -> Recipe:
    """Of the network that parts are extracted from; nothing teaches its gates, so they are held in all phases."""
    recipe = setting.arena.recipe(setting.seed)
    phases = [phase.model_dump(mode="json") | {"gates": "held"} for phase in recipe.train.phases]
    return recipe.override({"train.phases": phases, **SANDWICH, **setting.arena.supernet})


def extracted(setting: Setting) -> dict[str, Any]:
    """The best part of a supernet within the MACs, and some epochs more."""

    def work(folder: Path) -> dict[str, Any]:
        first, arena = replace(setting, ratio=1), setting.arena
        begun = first.kept("supernet", lambda place: first.trained(supernet_recipe(first), place))
        now = clock_of(arena.device)
        start, run = now(), load_run(first.folder("supernet"), device=arena.device)
        taken = extract_bundle(
            run,
            folder,
            limits={"macs": setting.macs},
            by="candidates",
            tuning=FineTuning(arena.tune_epochs),
            overwrite=True,
        )
        assert taken.tuned is not None
        return {
            "macs": taken.card.macs,
            "params": taken.card.params,
            "first_s": begun["first_s"] + begun["own_s"],
            "own_s": now() - start,
            "start": taken.score,
            "accuracy": taken.tuned["accuracy"],
        }

    return setting.kept("extracted", work)


LINES: Mapping[str, Callable[[Setting], dict[str, Any]]] = {
    "dense": dense,
    "routed": routed,
    "oracle": oracle,
    "narrower": narrower,
    "shallower": shallower,
    "smaller": smaller,
    "longer": longer,
    "extracted": extracted,
}
NEEDS = {"longer": ("routed", *RIVALS)}  # a line → those that have to be there
WORTH = ("routed", "smaller", "narrower", "shallower", "dense", "oracle", "extracted", "longer")  # most first
ONCE = ("dense",)  # the same at all shares of the MACs


def trained_recipe(setting: Setting, line: str) -> Recipe | None:
    """What a line is trained by; None where that is more than one recipe, or known only later."""
    made: Mapping[str, Callable[[Setting], Recipe]] = {
        "dense": lambda own: own.plain,
        "routed": lambda own: own.recipe,
        "narrower": narrower_recipe,
        "shallower": shallower_recipe,
        "smaller": smaller_recipe,
    }
    return made[line](setting) if line in made else None


def network(setting: Setting, row: Mapping[str, Any]) -> TaskNet:
    """A line's network, in evaluation mode, on the CPU."""
    line = row["of"] if row["line"] == "longer" and not row["again"] else row["line"]
    folder = setting.folder(line)
    return load_bundle(folder)[0].eval() if line == "extracted" else load_net(folder / "net").eval()


def recipe_of(setting: Setting, row: Mapping[str, Any]) -> Recipe:
    """Of the images that a line is evaluated on."""
    line = row["of"] if row["line"] == "longer" else row["line"]
    return smaller_recipe(setting) if line == "smaller" else setting.recipe


def accuracy_on(setting: Setting, row: Mapping[str, Any], split: Split) -> float:
    """Of a line's network on a split."""
    recipe = recipe_of(setting, row)
    if row["line"] == "oracle":
        return oracle_accuracy(recipe, setting.folder("oracle"), split, row["around_px"])["accuracy"]
    loaders = make_loaders(recipe, kind=setting.loaders)
    net = network(setting, row).to(torch.device(setting.arena.device))
    return float(evaluate(net, getattr(loaders, split), expected=False)["accuracy"])
