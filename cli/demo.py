"""`routespace demo`: the whole journey on real handwritten digits, in six minutes on two CPU cores.

Every step is an ordinary command's, with its folder in --out, and is skipped when it is there already: an
interrupted demo goes on where it stood.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from routespace import file_names
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
SUPERNET_S = (55.0, 15.0, 50.0)  # of its phases
TRIAL = {  # from its weights, which gates do not take part in: they are taught again
    "train.phases": [],
    "train.epochs": 1,
    "train.seconds": 10.0,
    "data.val_size": 500,
    "budget.open_frac": 0.2,
    "budget.settle_frac": 0.25,
}
EXTRACTED_RATIO = 0.8  # of the dense MACs: with one block a rate, less leaves too few of them to look with
FINE_TUNING = {"name": "digits_sparse_finetuned", "train.phases": [], "train.epochs": 3, "train.seconds": 30.0}
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
    """Build a grid, train its supernet under a budget, search, extract, verify, fine-tune, evaluate, export.

    Real digits on real photographs, nothing is downloaded. The best plain network of the same MACs that is known,
    trained for exactly the same time, stands beside the routed one.
    """
    from routespace.cli.demo_report import conclude
    from routespace.cli.status import loading
    from routespace.cli.typed import same_command
    from routespace.recipes import load_recipe

    start = time.perf_counter()
    require_own_folder(folder)
    recipe = load_recipe(RECIPE)
    recipe = recipe.override(_quick(recipe) if quick else _lasting(recipe, SUPERNET_S))
    try:
        _build(recipe, folder)
        with loading():
            from routespace.workflow import evaluation, extraction  # noqa: F401 (loaded once, here)
        journey = _journey(recipe.override({"train.clock": _clock()}), folder, quick=quick, best=best)
        supernet = _train_supernet(journey)
        _search(journey)
        small = _extract(journey)
        tuned = _fine_tune(journey, small)
        plain = _train_plain(journey, supernet)
        conclude(journey, supernet=supernet, small=small.net, tuned=tuned, plain=plain)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"interrupted; the same command goes on: {same_command(ctx)}") from error
    print(f"\n{time.perf_counter() - start:.0f} s in all; everything is in {folder}")


def _journey(recipe: Recipe, folder: Path, *, quick: bool, best: bool) -> Journey:
    """All that the demo does after the grid, in the seconds that it has, or quickly."""
    supernet = str(folder / "supernet")
    tuning = recipe.override(FINE_TUNING | {"train.teacher": supernet} | (QUICK if quick else {}))
    trial = TRIAL | {"train.weights": supernet, "train.start": "open"} | (QUICK if quick else {})
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


def train_or_load(recipe: Recipe, folder: Path, *, given: Bundle | None = None, label: str = "") -> RunResult:
    """Train into a folder; what is finished there is loaded, what was interrupted goes on.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; the checkpoint is saved.
    """
    from routespace.cli.train import budget_ratio, show_result
    from routespace.cli.watch import watching
    from routespace.train.run import train_recipe
    from routespace.train.stopping import TrainingStoppedError

    resume = (folder / file_names.RECIPE).exists()
    start: dict[str, Any] = {}
    if given is not None:
        earlier = [score.model_dump(mode="json") for score in given.card.scores]
        start = {"init": given.net, "earlier": earlier}
    try:
        with watching(label, budget_ratio(recipe)) as progress:
            result = train_recipe(recipe, folder, resume=resume, progress=progress, **start)
    except TrainingStoppedError as error:
        raise KeyboardInterrupt from error
    show_result(result.metrics, folder)
    return result


def _train_supernet(journey: Journey) -> RunResult:
    heading(2, "the supernet: plain on crops first, then large images, with gates that are taught where to look")
    return train_or_load(journey.recipe, journey.out / "supernet")


def _search(journey: Journey) -> None:
    from routespace.cli.study_view import FRONT_FILE, TrialWatch, draw_study, show_study
    from routespace.cli.watch import watching
    from routespace.search import run_study

    heading(3, f"the search: {journey.trials} short trainings with other budgets, from the supernet's weights")
    recipe = journey.recipe.override(journey.search)
    with watching() as watcher:
        watch = TrialWatch(watcher)
        record = run_study(recipe, journey.out / "search", trials=journey.trials, progress=watch)
    show_study(record)
    draw_study(record, journey.out / FRONT_FILE)


def _extract(journey: Journey) -> Bundle:
    """The static part of the supernet that its tokens used most, within a limit."""
    from routespace.cli.extract import show
    from routespace.cli.render import draw, legend
    from routespace.deploy.bundle import load_bundle
    from routespace.deploy.folder import is_bundle
    from routespace.workflow.artifacts import load_run
    from routespace.workflow.choosing import choose
    from routespace.workflow.extraction import extract_chosen

    heading(4, "extract and verify: the most used part within 0.8 of the MACs, as a static network of its own")
    folder = journey.out / "extracted"
    if not is_bundle(folder):
        found = load_run(journey.out / "supernet")
        limits = {"macs": round(EXTRACTED_RATIO * journey.recipe.base_macs())}
        show(found, extract_chosen(found, choose(found, limits), folder), limits)
    small = load_bundle(folder)
    part = small.net.architecture
    print(f"\n{draw(part.grid, part)}\n\n{legend(part)}")
    return small


def _fine_tune(journey: Journey, small: Bundle) -> RunResult:
    heading(5, "fine-tune it")
    return train_or_load(journey.fine_tuning, journey.out / "finetuned", given=small)


def _train_plain(journey: Journey, supernet: RunResult) -> RunResult:
    """A plain network of the MACs that the supernet takes, trained for exactly as long: phase by phase."""
    from routespace.recipes import load_recipe

    heading(6, "for comparison: a plain network of the same MACs, trained for the same time")
    folder = journey.out / "plain"
    if (folder / file_names.RECIPE).exists():
        return train_or_load(load_recipe(folder), folder)
    recipe, spent = _plain_recipe(journey, supernet.metrics["counted_macs"])
    *before, last = (phase["seconds"] for phase in supernet.metrics["phases"])
    return train_or_load(recipe.override(_lasting(recipe, [*before, max(LEAST_S, last - spent)])), folder)


def _lasting(recipe: Recipe, seconds: Sequence[float]) -> dict[str, Any]:
    """Changes that give each phase of a recipe, its own training last, so many seconds."""
    phases = [phase.model_dump(mode="json") for phase in recipe.train.phases]
    for phase, length in zip(phases, seconds, strict=False):
        phase["seconds"] = length
    return {"train.phases": phases, "train.seconds": seconds[-1]}


def _plain_recipe(journey: Journey, macs: float) -> tuple[Recipe, float]:
    """The plain network's recipe, and the seconds that finding it took."""
    from routespace.cli.watch import clock, watching
    from routespace.train.plain import smaller_recipe
    from routespace.train.plain_search import best_plain

    if not journey.best_plain:
        return smaller_recipe(journey.recipe, macs), 0.0
    text = journey.recipe.task.metric.text
    with watching("trying ") as news:
        found = best_plain(journey.recipe, macs, progress=news)
    for shape, score in found.tried.items():
        chosen = ", chosen" if shape == found.shape else ""
        print(f"{shape}: {text(score)} on validation after a short training{chosen}")
    print(f"this took {clock(found.seconds)} of its time\n", flush=True)
    return found.recipe, found.seconds
