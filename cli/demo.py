"""`routespace demo`: the whole journey on real handwritten digits, in six minutes on two CPU cores.

Every step is an ordinary command's, with its folder in --out, and is skipped when it is there already: an
interrupted demo goes on where it stood. What nobody has to watch trains beside the rest, in a process of its own.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from routespace.cli.beside import ONE_THREAD, Beside
from routespace.cli.demo_journey import Journey, heading
from routespace.cli.options import out

if TYPE_CHECKING:
    from routespace.deploy.bundle import Bundle
    from routespace.train.recipe.recipe import Recipe
    from routespace.train.run import RunResult

NAME = "demo"
EXAMPLE = "routespace demo --out runs/demo"
RECIPE = "digits_sparse"
TRIALS = 3
PHASES_S = (72.0, 45.0, 72.0)  # of the supernet and of the plain network, which train side by side
LOOK_SIZE = 250  # validation scenes after each epoch of the phases before the last: for people to see
TRIAL = {  # from its weights, which gates do not take part in: they are taught again
    "train.phases": [],
    "train.epochs": 1,
    "train.seconds": 7.0,
    "data.val_size": 400,
    "budget.open_frac": 0.2,
    "budget.settle_frac": 0.25,
}
# Of what is extracted, and of the plain network; on a small canvas first, where a step costs half.
TUNING_PHASE = {"epochs": 4, "seconds": 12.0, "image_size": 64, "lr_factor": 0.5, "min_lr": 1.0e-3}
FINE_TUNING = {
    "name": "digits_sparse_finetuned",
    "train.phases": [TUNING_PHASE | {"warmup_epochs": 0.25}],
    "train.seconds": 36.0,
}
QUICK_DATA = {"train_size": 256, "val_size": 100, "test_size": 100}
QUICK = {"train.epochs": 1, "train.seconds": None} | {f"data.{name}": count for name, count in QUICK_DATA.items()}
QUICK_TRIALS = 2
LEAST_S = 1.0  # of training that a plain network has, however long it was looked for
GRID_FILE = "grid.json"  # the first thing that it writes


def run(
    ctx: typer.Context,
    folder: Annotated[Path, out("Folder of all runs, pictures and tables.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Tiny: shows that it runs; learns nothing.")] = False,
    best: Annotated[
        bool,
        typer.Option(
            "--best-plain", help="Try plain networks of other splits and widths, too, in their own time."
        ),
    ] = False,
) -> None:
    """Go the whole journey on real handwritten digits, in some minutes.

    Build a grid, train its supernet under a budget, extract, verify, search, fine-tune, export, evaluate. Digits
    lie on photographs; nothing is downloaded. Beside the supernet a plain network of the same MACs, the same
    blocks on smaller images, trains for exactly as long, and then on for as long as what was extracted.
    """
    os.environ.setdefault(*ONE_THREAD)  # maps this small are faster with one; another core trains what is beside
    from routespace.cli.demo_report import conclude
    from routespace.cli.status import loading
    from routespace.cli.typed import same_command
    from routespace.errors import command_line
    from routespace.recipes import load_recipe

    start = time.perf_counter()
    require_own_folder(folder)
    recipe = load_recipe(RECIPE)
    recipe = recipe.override(_quick(recipe) if quick else _lasting(recipe))
    try:
        _build(recipe, folder)
        with loading():
            from routespace.workflow import evaluation, extraction  # noqa: F401 (loaded once, here)
        journey = _journey(recipe.override({"train.clock": _clock()}), folder, quick=quick, best=best)
        supernet, plain = _train(journey)
        small = _extract(journey)
        tuned, longer = _search(journey, supernet, small)
        conclude(journey, supernet=supernet, small=small, tuned=tuned, plain=plain, longer=longer)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"interrupted; the same command goes on: {same_command(ctx)}") from error
    print(f"\n{time.perf_counter() - start:.0f} s in all; everything is in {folder}")
    taking = command_line("extract", folder / "supernet", "--routed", "-o", folder / "routed")
    print(f"take the routed network as a bundle with: {taking}")


def _journey(recipe: Recipe, folder: Path, *, quick: bool, best: bool) -> Journey:
    """All that the demo does after the grid, in the seconds that it has, or quickly."""
    trial = TRIAL | {"train.weights": str(folder / "supernet"), "train.start": "open"} | (QUICK if quick else {})
    short = QUICK | {"train.phases": [TUNING_PHASE | {"epochs": 1, "seconds": None}]}
    tuning = FINE_TUNING | (short if quick else {})
    return Journey(folder, recipe, trial, tuning, QUICK_TRIALS if quick else TRIALS, best)


def _clock() -> str:
    """The clock by which networks get the same time: the processor's is right where others share the machine."""
    import torch

    return "wall" if torch.cuda.is_available() else "processor"


def _quick(recipe: Recipe) -> dict[str, Any]:
    """Changes that make a training show that it runs, and no more."""
    phases = [phase.model_dump(mode="json") for phase in recipe.train.phases]
    for phase in phases:
        phase |= {"epochs": 1, "data": phase["data"] | {"train_size": QUICK_DATA["train_size"]}}
    return QUICK | {"train.phases": phases}


def require_own_folder(folder: Path) -> None:
    """Raise BundleError when the folder holds something that is not a demo's, or cannot be written."""
    from routespace.errors import BundleError
    from routespace.files import require_place

    if folder.is_dir() and any(folder.iterdir()) and not (folder / GRID_FILE).exists():
        raise BundleError(f"{folder}: exists, is not empty and holds no demo; choose another --out")
    require_place(folder / GRID_FILE)


def _build(recipe: Recipe, folder: Path) -> None:
    from routespace.cli.build import show, summary
    from routespace.files import write_json
    from routespace.grid.graph import RoutingGrid

    heading(1, "the grid")
    grid = RoutingGrid(recipe.grid)
    show(grid, summary(grid, recipe.budget_macs()))
    write_json(folder / GRID_FILE, grid.to_json())


def train_or_load(recipe: Recipe, folder: Path) -> RunResult:
    """Train into a folder; what is finished there is loaded, what was interrupted goes on.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; the checkpoint is saved.
    """
    from routespace.cli.train import budget_ratio, show_result
    from routespace.cli.watch import watching
    from routespace.train.run import train_recipe
    from routespace.train.run_folder import RunFolder
    from routespace.train.stopping import TrainingStoppedError

    try:
        with watching(budget=budget_ratio(recipe)) as progress:
            result = train_recipe(recipe, folder, resume=RunFolder(folder).is_run, progress=progress)
    except TrainingStoppedError as error:
        raise KeyboardInterrupt from error
    show_result(result.metrics, folder)
    return result


def training_beside(recipe: Recipe, folder: Path, *, start: Path | None = None) -> Beside:
    """The command that trains into a folder, or goes on there, beside this process.

    Args:
        recipe: of the training; it is written next to the folder.
        folder: of the run; what the command says is in a file next to it.
        start: a bundle to fine-tune, in all phases of the recipe.
    """
    from routespace.files import write_text
    from routespace.train.run_folder import RunFolder

    log, file = folder.with_suffix(".log"), folder.with_suffix(".yaml")
    if RunFolder(folder).is_run:
        return Beside(["train", folder, "--resume"], log=log)
    write_text(file, recipe.to_yaml())
    phases = [phase.model_dump(mode="json", exclude_defaults=True) for phase in recipe.train.phases]
    given = [] if start is None else ["--from", start, "--set", f"train.phases={json.dumps(phases)}"]
    return Beside(["train", file, *given, "--out", folder], log=log)


def _train(journey: Journey) -> tuple[RunResult, RunResult]:
    """The supernet, and beside it a plain network of the MACs that its budget allows, for exactly as long."""
    heading(2, "two trainings: a supernet with gates that are taught where to look, and a plain network beside it")
    plain_folder = journey.out / "plain"
    with training_beside(_plain_recipe(journey), plain_folder) as plain:
        print(f"plain, of the same MACs and for the same time: {plain.text}\n", flush=True)
        supernet = train_or_load(journey.recipe, journey.out / "supernet")
        plain.wait()
    return supernet, _trained(plain_folder)


def _trained(folder: Path) -> RunResult:
    """What was trained beside this process."""
    from routespace.recipes import load_recipe

    return train_or_load(load_recipe(folder), folder)


def _extract(journey: Journey) -> Bundle:
    """All blocks as a static network of the budget's MACs: on images that are as small as that asks for."""
    from routespace.cli.extract_show import show
    from routespace.cli.render import draw, legend
    from routespace.deploy.bundle import load_bundle
    from routespace.deploy.folder import is_bundle
    from routespace.train.plain import smaller_recipe
    from routespace.workflow.artifacts import load_run
    from routespace.workflow.extraction import extract_bundle

    heading(3, "extract and verify: a static network of its own, for the image size that these MACs allow")
    folder = journey.out / "extracted"
    if not is_bundle(folder):
        whole, smaller = load_run(journey.out / "supernet"), smaller_recipe(journey.recipe, journey.macs)
        size = smaller.grid.image_size
        show(whole, extract_bundle(whole, folder, macs=journey.macs, by="usage", image_size=size))
    small = load_bundle(folder)
    part = small.net.architecture
    print(f"\n{draw(part.grid, part)}\n\n{legend(part)}")
    return small


def _search(journey: Journey, supernet: RunResult, small: Bundle) -> tuple[RunResult, RunResult]:
    """The search, export and pictures; beside them what is extracted is trained on, and the plain network, too."""
    from routespace.cli.demo_report import export_and_draw
    from routespace.cli.study_view import FRONT_FILE, TrialWatch, draw_study, show_study
    from routespace.cli.watch import watching
    from routespace.search import run_study

    heading(4, f"a search of {journey.trials} short trainings with other budgets, and fine-tunings beside it")
    tuned, longer = journey.out / "finetuned", journey.out / "plain_finetuned"
    first, second = _tuning(journey, "extracted", tuned), _tuning(journey, "plain", longer)
    with first as tuning, second as rival:
        print(f"fine-tuning: {tuning.text}\nand for as long: {rival.text}\n", flush=True)
        with watching() as watcher:
            recipe = journey.recipe.override(journey.search)
            record = run_study(recipe, journey.out / "search", trials=journey.trials, progress=TrialWatch(watcher))
        show_study(record)
        draw_study(record, journey.out / FRONT_FILE)
        export_and_draw(journey, supernet, small)
        tuning.wait()
        rival.wait()
    return _trained(tuned), _trained(longer)


def _tuning(journey: Journey, name: str, folder: Path) -> Beside:
    """The fine-tuning of a network of the demo, beside this process."""
    from routespace.recipes import load_recipe

    start = journey.out / name
    return training_beside(load_recipe(start).override(journey.fine_tuning), folder, start=start)


def _lasting(recipe: Recipe) -> dict[str, Any]:
    """Changes that give each phase of a recipe, its own training last, the seconds of the demo."""
    phases = [phase.model_dump(mode="json") for phase in recipe.train.phases]
    for phase, length in zip(phases, PHASES_S, strict=False):
        phase |= {"seconds": length, "data": phase["data"] | {"val_size": LOOK_SIZE}}
    return {"train.phases": phases, "train.seconds": PHASES_S[-1]}


def _plain_recipe(journey: Journey) -> Recipe:
    """The plain network's: of the budget's MACs, less the seconds that finding it took."""
    from routespace.cli.watch import clock, watching
    from routespace.train.plain import smaller_recipe
    from routespace.train.plain_search import best_plain
    from routespace.train.run_folder import RunFolder

    folder, macs = RunFolder(journey.out / "plain"), journey.macs
    if folder.is_run:
        return folder.read_recipe()
    if not journey.best_plain:
        return smaller_recipe(journey.recipe, macs)
    text = journey.recipe.task.metric.text
    with watching("trying ") as news:
        found = best_plain(journey.recipe, macs, progress=news)
    for shape, score in found.tried.items():
        chosen = ", chosen" if shape == found.shape else ""
        print(f"{shape}: {text(score)} on validation after a short training{chosen}")
    print(f"this took {clock(found.seconds)} of its time\n", flush=True)
    seconds = found.recipe.train.seconds
    if seconds is None:
        return found.recipe
    return found.recipe.override({"train.seconds": max(LEAST_S, seconds - found.seconds)})
