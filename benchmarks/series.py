"""Six networks of one series, each cut from the trained one before, next to six plain ones that are trained apart.

    python benchmarks/series.py [--seeds 0 1] [--epochs 6] [--finetune 2] [--plain narrower] [--out DIR]

The task is that of the recipe `digits_tiny`; ratios are shares of the MACs of its plain network. The largest plain
network is trained as every plain one is, and is the first of its series; the others are cut from it as by
`routespace extract RUN --ratio .85,.7,… --finetune 2 --teacher none --image-size 64,56,…`. The series' processor
seconds hold everything: sizes and parts that were tried, trainings, files. `--plain` trains the other plain
networks, too: narrower ones (`plain_recipe`), and the recipe's own blocks on smaller images (`smaller_recipe`).

Seconds of trainings that ran at different times compare the machine's other work as well. So `--turns ROUNDS`
trains each network for a fifth of an epoch, all in turns, and tells the series' share of the plain networks' time
by medians of these; what the choices took is added as it was measured. Accuracies are of validation, which chose,
and of the test split, which did not. What is in the folder is not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from record import record
from sandwich import PLAIN, timed, train

from routespace.errors import BudgetError
from routespace.files import write_json
from routespace.grid.cost import architecture_cost
from routespace.memory import keep_freed_memory
from routespace.nn.task_net import TaskNet
from routespace.recipes import load_recipe
from routespace.train.evaluate import evaluate
from routespace.train.plain import CLOSE_FRAC, plain_recipe, smaller_recipe
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import train_recipe
from routespace.workflow.artifacts import Artifact, load_artifact
from routespace.workflow.fine_tuning import FineTuning
from routespace.workflow.series import extract_series_as_wished
from routespace.workflow.sizing import SizeChoice
from routespace.workflow.wishes import ExtractionWatch, Listener, Wishes

SIZES = [64, 56, 48, 40, 32]  # of images, in pixels
PART = 5  # a fifth of an epoch is timed


class Watch(ExtractionWatch):
    """Keeps the processor seconds of the members' own epochs, and says what is done."""

    def __init__(self, place: Path) -> None:
        self.path, self._own = place.parent / f"{place.name}.tuning_seconds", 0.0
        self._compared: dict[str, float] = {}

    def member(self, name: str, limits: Mapping[str, float]) -> None:
        """The next network begins."""
        print(f"cutting {name}: at most {limits['macs'] / 1e6:.3f} MMACs", flush=True)
        self._compared = {}

    def sized(self, choice: SizeChoice) -> None:
        """Sizes were compared; the first epochs of the others are part of what choosing took."""
        for each in choice.tried:
            tuned = "" if each.tuned is None else f", {each.tuned} after {each.epochs}"
            print(f"  {each.text}: {each.macs} MACs, {each.score}{tuned}", flush=True)
            if each.image_size == choice.artifact.net.spec.image_size:
                self._own += self._compared.get(each.text, 0.0)

    @contextmanager
    def training(self, what: str = "") -> Iterator[Listener]:
        """A fine-tuning, or the first epochs of one at a size."""
        start = time.process_time()
        yield Listener()
        spent = time.process_time() - start
        if what:
            self._compared[what] = spent
        else:
            self._own += spent
        write_json(self.path, self._own)


def scores(artifact: Artifact) -> dict[str, float]:
    """MACs, and accuracies of both held-out splits at the network's own image size."""
    held_out, net = artifact.held_out(), artifact.net
    found = {name: evaluate(net, getattr(held_out, name))["accuracy"] for name in ("val", "test")}
    return found | {"macs": architecture_cost(net.architecture).macs, "px": net.spec.image_size[0]}


def lead(members: Mapping[float, Artifact], plains: Mapping[float, Artifact]) -> dict[str, float]:
    """How far the series is ahead on the test split, on average of its networks, and the standard error of that.

    All see the same batches, so what makes a batch hard for all of them does not count as an error.
    """
    gains = []
    for ratio, member in members.items():
        found = []
        for artifact in (member, plains[ratio]):
            measured = [evaluate(artifact.net, [batch], expected=False) for batch in artifact.held_out().test]
            found.append([each["accuracy"] * each["images"] for each in measured])
            images = sum(each["images"] for each in measured)
        gains.append([ahead - behind for ahead, behind in zip(*found, strict=True)])
    of_batches = [mean(each) for each in zip(*gains, strict=True)]
    return {"mean": sum(of_batches) / images, "error": stdev(of_batches) * math.sqrt(len(of_batches)) / images}


def one_seed(recipe: Recipe, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train what is not there yet, and measure."""
    base, seed, out = recipe.base_macs(), recipe.seed, arguments.out
    ratios = sorted(arguments.ratios, reverse=True)
    plains = {ratio: plain_recipe(recipe.override(PLAIN), ratio * base) for ratio in ratios}
    folders = {ratio: out / f"plain_{ratio}_{seed}" for ratio in ratios}
    seconds = {"largest": train(plains[ratios[0]], folders[ratios[0]])}
    place, budgets = (
        out / f"series_{arguments.finetune}_{seed}",
        {str(r): (1 + CLOSE_FRAC) * r * base for r in ratios},
    )
    wishes, watch = Wishes(tuning=FineTuning(arguments.finetune, "none"), image_size=SIZES), Watch(place)
    source = load_artifact(folders[ratios[0]])
    seconds["series"] = timed(place, lambda: extract_series_as_wished(source, place, budgets, wishes, watch))
    seconds["choosing"] = seconds["series"] - float(json.loads(watch.path.read_text()))
    table = json.loads((place / "series.json").read_text())["networks"]
    members = {ratio: load_artifact(place / str(ratio)) for ratio in ratios}
    found: dict[str, Any] = {"seed": seed, "finetune": arguments.finetune, "seconds": seconds}
    if "narrower" in arguments.plain:
        rest = [train(plains[ratio], folders[ratio]) for ratio in ratios[1:]]
        seconds["plain"] = seconds["largest"] + sum(rest)
        plain = {ratio: load_artifact(folders[ratio]) for ratio in ratios}
        found["plain"] = {ratio: scores(each) for ratio, each in plain.items()}
        found["lead"] = lead(members, plain)
    if "smaller" in arguments.plain:
        seconds["smaller"], found["smaller"] = smaller(recipe, ratios, out)
    if arguments.turns:
        found["turns"] = turns(plains, members, seconds, arguments)
    found["series"] = {
        row["name"]: {"cut": row["cut"], "tried": row["tried"]} | scores(members[float(row["name"])])
        for row in table
    }
    return found


def smaller(recipe: Recipe, ratios: Sequence[float], out: Path) -> tuple[float, dict[float, dict[str, float]]]:
    """Processor seconds of the recipe's own blocks on smaller images, where a size has the MACs; their scores."""
    seconds, found = 0.0, {}
    for ratio in ratios:
        folder = out / f"smaller_{ratio}_{recipe.seed}"
        with suppress(BudgetError):
            seconds += train(smaller_recipe(recipe.override(PLAIN), ratio * recipe.base_macs()), folder)
            found[ratio] = scores(load_artifact(folder))
    return seconds, found


def turns(
    plains: dict[float, Recipe],
    members: dict[float, Artifact],
    seconds: dict[str, float],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Processor seconds of an epoch of each network, in turns, and the series' share of the plain ones' time."""
    runs: dict[str, tuple[Recipe, TaskNet | None]] = {f"plain {r}": (each, None) for r, each in plains.items()}
    tuned = {f"series {r}": (each.require_recipe(), each.net) for r, each in list(members.items())[1:]}
    times: dict[str, list[float]] = {name: [] for name in [*runs, *tuned]}
    warm_up = dict(list(runs.items())[:1])  # whose time does not count
    for each in [warm_up, *[runs | tuned] * arguments.turns]:
        for name, (recipe, net) in each.items():
            part = {"train.epochs": 1, "train.warmup_epochs": 0, "train.teacher": None, "train.mode": "plain"}
            part |= {
                f"data.{split}_size": getattr(recipe.data, f"{split}_size") // PART for split in ("train", "val")
            }
            with tempfile.TemporaryDirectory() as folder:
                start = time.process_time()
                train_recipe(recipe.override(part), Path(folder) / "run", init=net, asked=frozenset())
                times[name].append(time.process_time() - start)
    del times[next(iter(warm_up))][0]
    epoch = {name: PART * median(each) for name, each in times.items()}
    largest, plain = (arguments.epochs * sum(epoch[name] for name in names) for names in (list(runs)[:1], runs))
    tuning = arguments.finetune * sum(epoch[name] for name in tuned)
    series = largest + tuning + seconds["choosing"]
    parts = {"plain_s": plain, "largest_s": largest, "tuning_s": tuning, "series_s": series}
    return {"epoch_s": epoch, **parts, "share": series / plain}


def show(found: dict[str, Any]) -> None:
    """A seed's table."""
    print(f"seed {found['seed']}, processor seconds {found['seconds']}")
    for ratio, row in found["series"].items():
        others = ((kind, found.get(kind, {}).get(float(ratio))) for kind in ("plain", "smaller"))
        beside = "".join(f"; {kind} {row['val']:.3f}, test {row['test']:.3f}" for kind, row in others if row)
        numbers = f"{row['macs'] / 1e6:.3f} MMACs, {row['px']} px, as cut {row['cut']:.3f}"
        print(f"{ratio:>5}: {numbers}, val {row['val']:.3f}, test {row['test']:.3f}{beside}")
    print(
        " mean: "
        + ", ".join(f"{key} {mean(row[key] for row in found['series'].values()):.4f}" for key in ("val", "test"))
    )
    if "lead" in found:
        mean_lead, error = found["lead"].values()
        print(f"ahead of the plain networks on the test split: {mean_lead:.4f} ± {error:.4f}")
    if "turns" in found:
        print(f"share of the plain networks' time, in turns: {found['turns']['share']:.3f}", flush=True)


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--finetune", type=int, default=2)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.85, 0.7, 0.6, 0.5, 0.4, 0.3])
    parser.add_argument("--plain", nargs="+", default=[], choices=["narrower", "smaller"], help="trained, too")
    parser.add_argument("--turns", type=int, default=0, metavar="ROUNDS", help="time all networks in turns")
    parser.add_argument("--set", action="append", default=[], help="a recipe field, such as data.train_size=3000")
    parser.add_argument("--out", type=Path, default=Path("runs/series"))
    arguments = parser.parse_args()
    results = []
    sizes = ["data.train_size=5000", "data.test_size=3000"]
    for seed in arguments.seeds:
        changes = [f"seed={seed}", f"train.epochs={arguments.epochs}", *sizes, *arguments.set]
        results.append(one_seed(load_recipe("digits_tiny", changes), arguments))
        show(results[-1])
        record(arguments.out / "series_cpu.json", "cpu", {"what": "series", "results": results})


if __name__ == "__main__":
    main()
