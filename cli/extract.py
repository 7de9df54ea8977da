"""`routespace extract`: from a trained supernet to a small static network in a folder of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from routespace import file_names
from routespace.cli.options import Data, Device, Latency, out, overwriting
from routespace.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from routespace.cli.budgets import Budgets
    from routespace.cli.extract_steps import ShownExtraction
    from routespace.deploy.latency.table import LatencyTable
    from routespace.workflow.artifacts import Artifact
    from routespace.workflow.fine_tuning import FineTuning
    from routespace.workflow.taking import Extraction
    from routespace.workflow.wishes import Wishes

NAME = "extract"
EXAMPLE = "routespace extract runs/digits_tiny --macs 12M -o small/"
METHODS = ("milp", "threshold")
CHOICES = ("usage", "kl", "candidates")


def run(
    source: Annotated[Path, typer.Argument(metavar="RUN|STUDY", help="A finished run, or a study with --trial.")],
    folder: Annotated[Path, out("The bundle's folder; of several budgets one with a bundle for each.")],
    macs: Annotated[
        str | None,
        typer.Option(
            metavar="MACS[,MACS…]",
            help="The most MACs, such as 12M; of several each gives a network, cut from the one before.",
        ),
    ] = None,
    ratio: Annotated[
        str | None,
        typer.Option(metavar="SHARE[,SHARE…]", help="The same as shares of the MACs of the recipe's base."),
    ] = None,
    ms: Annotated[float | None, typer.Option(help="The most milliseconds, by the --latency table.")] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=AMOUNT", help="The most of any resource, such as params=2M. Repeatable."),
    ] = None,
    latency: Latency = None,
    trial: Annotated[int | None, typer.Option(help="Which trial of a STUDY, by its number.")] = None,
    routed: Annotated[
        bool,
        typer.Option(
            "--routed",
            help="Take the routed network itself, with its gates; a budget then calibrates their threshold.",
        ),
    ] = False,
    method: Annotated[
        str, typer.Option(help="How a part is found by its scores: milp (proven best) or threshold.")
    ] = "milp",
    choose: Annotated[
        str | None,
        typer.Option(
            help="usage (the most used part), kl (what changes the outputs most when it is missing) or candidates "
            "(the best of several on validation); by default the last after a sandwich training."
        ),
    ] = None,
    finetune: Annotated[
        int | None,
        typer.Option(metavar="EPOCHS", help="Train the part for so many epochs before it is saved."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="BUNDLE|RUN|timm:NAME|none", help="Who teaches it meanwhile; by default what it was cut from."
        ),
    ] = None,
    cut: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="The largest share of the MACs that one cut takes away before a fine-tuning, such as 0.6; "
            "else all are cut at once.",
        ),
    ] = None,
    lr_factor: Annotated[
        float | None,
        typer.Option(
            metavar="FACTOR",
            help="Fine-tune at so much of the recipe's rates of learning; else at all of them, and with --routed "
            "at a quarter.",
        ),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE[,SIZE…]",
            help="Move the network to images of this size first, a side in pixels or HxW; of several the best on "
            "validation is taken, after a fifth of the epochs of --finetune. Limits count images of that size.",
        ),
    ] = None,
    evaluate: Annotated[
        bool, typer.Option(help="Measure the task's metric on validation, whole and extracted.")
    ] = True,
    drop_rates: Annotated[
        bool, typer.Option("--drop-rates", help="Let the part do without rates of a pyramid where that is best.")
    ] = False,
    overwrite: Annotated[bool, overwriting("a bundle, or several, that are there")] = False,
    recipe: Annotated[str | None, typer.Option(help="Recipe to take instead of the run's own.")] = None,
    data: Data = None,
    device: Device = "auto",
) -> None:
    """Choose the best part of a supernet under a limit, take it out, verify and save it.

    Without a limit it is the recipe's own budget. A static network is then taken whole. With --finetune the part
    is trained on before it is saved, by the recipe of its run. Smaller images are often a cheaper way to save MACs
    than fewer blocks: --image-size. Several budgets with commas between them (--ratio 0.85,0.7,0.5 --finetune 2)
    give several networks: each is cut from the one before and trained on. With --routed no part is chosen: the
    network is taken with its gates, as it was calibrated, or calibrated again to one budget.
    """
    from routespace.cli.arguments import named_recipe, parse_limits, parse_sizes
    from routespace.cli.budgets import Budgets
    from routespace.cli.status import loading
    from routespace.cli.train import with_changes
    from routespace.deploy.folder import net_folder, require_bundle_place, require_series_place

    _check_choice(choose, method)
    given = named_recipe(recipe)
    limits, budgets = parse_limits(limit or []), Budgets.parse(macs, ratio)
    _check_limits(limits, budgets, ms=ms, latency=latency)
    _check_tuning(finetune, teacher, cut, lr_factor)
    sizes = parse_sizes(image_size)
    if routed:
        parts = {"choose": choose is not None, "method": method != METHODS[0], "cut": cut is not None}
        parts |= {"drop-rates": drop_rates, "ms": ms is not None}
        _check_routed(parts | {f"limit.{name}": name != "macs" for name in limits}, budgets, sizes)
    (require_series_place if budgets.several else require_bundle_place)(folder, overwrite=overwrite)
    run_folder = _run_folder(source, trial)
    net_folder(run_folder)
    if data is not None:
        given = with_changes(str(run_folder) if recipe is None else recipe, [], data=data)
    with loading():
        from routespace.workflow.artifacts import load_artifact
        from routespace.workflow.wishes import Wishes
    tuning = _tuning(finetune, teacher, cut, lr_factor)
    found = load_artifact(run_folder, recipe=given, device=device)
    if evaluate or tuning is not None:
        _ = found.held_out().val  # before the work: images that are not there, or of other classes
    table = None if latency is None else _table(latency, found, sized=bool(sizes))
    wishes = Wishes(
        limits | ({} if ms is None else {"latency_ms": ms}),
        table=table,
        method=method,
        by=choose,
        every_rate=not drop_rates,
        evaluated=evaluate,
        overwrite=overwrite,
        tuning=tuning,
        image_size=sizes or None,
    )
    first = _watched(found, folder, budgets, wishes, routed=routed)
    print(f"\nwritten to {folder}")
    _what_next(found, first, routed=routed)


def _watched(found: Artifact, folder: Path, budgets: Budgets, wishes: Wishes, *, routed: bool) -> Path:
    """Take out what is wished, and show it; the bundle, or the first of several."""
    from routespace.cli.extract_series import taken_series
    from routespace.cli.extract_show import show
    from routespace.cli.extract_steps import ShownExtraction
    from routespace.train.stopping import TrainingStoppedError
    from routespace.train.tasks.kinds import task_of_head
    from routespace.workflow.extraction import extract_as_wished

    limits = budgets.of(found)
    try:
        if budgets.several:
            return folder / taken_series(found, folder, limits, wishes).members[0].name
        for most in limits.values():  # one, or none
            wishes = replace(wishes, limits={**wishes.limits, "macs": most})
        shown = ShownExtraction(task_of_head(found.net.head, found.net.spec).metric)
        taken = (_routed if routed else extract_as_wished)(found, folder, wishes, shown)
        show(found, taken, wishes.table)
        return folder
    except TrainingStoppedError as error:
        raise KeyboardInterrupt("interrupted; nothing was saved") from error


def _routed(found: Artifact, folder: Path, wishes: Wishes, shown: ShownExtraction) -> Extraction:
    """Take the network with its gates, by those of the wishes that are not about parts."""
    from routespace.workflow.routed import extract_routed

    sizes = cast("list[tuple[int, int]]", wishes.image_size or [])
    return extract_routed(
        found,
        folder,
        macs=wishes.limits.get("macs"),
        image_size=sizes[0] if sizes else None,
        evaluated=wishes.evaluated,
        overwrite=wishes.overwrite,
        tuning=wishes.tuning,
        watch=shown,
    )


def _table(path: Path, found: Artifact, *, sized: bool) -> LatencyTable:
    """The table of --latency; of this grid, or of one of another image size, which is checked with the sizes."""
    from routespace.deploy.latency.table import load_table

    grid = found.net.architecture.grid
    return load_table(path, grid=None if sized else grid, families=[grid.spec.family])


def _check_choice(choose: str | None, method: str) -> None:
    from routespace.cli.arguments import one_of

    one_of("method", method, METHODS)
    if choose is not None:
        one_of("choose", choose, CHOICES)


def _check_routed(parts: Mapping[str, bool], budgets: Budgets, sizes: Sequence[tuple[int, int]]) -> None:
    """Raise SpecError for what has no meaning where the network is taken with its gates.

    Args:
        parts: a wish about which part is chosen → whether it is there.
        budgets, sizes: of which there may be one.
    """
    wish = next((name for name, asked in parts.items() if asked), None)
    if wish is not None:
        raise SpecError(
            f"{wish}: is about a part, and with --routed none is chosen: the network is taken with all of its "
            f"edges and gates; leave one of the two out"
        )
    if budgets.several:
        raise SpecError("routed: its threshold is calibrated to one budget; give one, and each other in its turn")
    if len(sizes) > 1:
        raise SpecError("image-size: with --routed it is one size; give one, and each other in its turn")


def _check_tuning(epochs: int | None, teacher: str | None, cut: float | None, lr_factor: float | None) -> None:
    """Raise SpecError for a teacher that is not there or has no pupil, and for what needs a fine-tuning."""
    from routespace.train.given_weights import NO_TEACHER, require_teacher

    if teacher is not None and epochs is None:
        raise SpecError("teacher: it teaches in a fine-tuning; give --finetune EPOCHS with it")
    if cut is not None and epochs is None:
        raise SpecError("cut: between two cuts the part is fine-tuned; give --finetune EPOCHS with it")
    if lr_factor is not None and epochs is None:
        raise SpecError("lr-factor: of the rates of a fine-tuning; give --finetune EPOCHS with it")
    if teacher not in (None, NO_TEACHER):
        require_teacher(teacher)


def _tuning(
    epochs: int | None, teacher: str | None, cut: float | None, lr_factor: float | None
) -> FineTuning | None:
    from routespace.workflow.fine_tuning import AT_ONCE, FineTuning

    return None if epochs is None else FineTuning(epochs, teacher, AT_ONCE if cut is None else cut, lr_factor)


def _what_next(found: Artifact, folder: Path, *, routed: bool) -> None:
    """Print the commands that a bundle is for; of a routed one the recipe has a budget of its own."""
    from routespace.errors import command_line

    if found.preprocess is not None:
        print(f"look at images with: {command_line('predict', folder, 'IMAGE_OR_FOLDER')}")
    if found.recipe is not None:
        recipe = folder if routed else found.folder
        print(f"fine-tune it with: {command_line('train', recipe, '--from', folder)}")


def _check_limits(
    limits: Mapping[str, float], budgets: Budgets, *, ms: float | None, latency: Path | None
) -> None:
    """Raise SpecError for limits that say one thing twice, or half of one."""
    if budgets.ratios and ("macs" in limits or budgets.macs):
        raise SpecError("macs: --macs and --ratio are two ways to say one thing; give one of them")
    if "macs" in limits and budgets.macs:
        raise SpecError("macs: it is limited twice; give it once")
    if "latency_ms" in limits:
        raise SpecError("limit.latency_ms: give it as --ms, with the --latency table that it is about")
    if (ms is None) != (latency is None):
        raise SpecError("ms: --ms and --latency go together; give a limit and the table that it is about")


def _run_folder(source: Path, trial: int | None) -> Path:
    """The run itself, or that of a study's trial."""
    if trial is None:
        if (source / file_names.STUDY).exists():
            raise SpecError(f"trial: {source} is a study; name one of its trials with --trial N")
        return source
    from routespace.search import load_study, trial_folder

    return trial_folder(load_study(source), trial)
