"""From a trained supernet to a small network in a folder of its own: choose, extract, verify, evaluate, save.

extract_bundle("runs/first", "small", macs=12_000_000)
extract_bundle("runs/first", "small", macs=12_000_000, image_size=[96, 112, 128])    the best of these sizes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from routespace import file_names
from routespace.checked import checked
from routespace.deploy.bundle import Card, Provenance, save_bundle
from routespace.deploy.extract import extract
from routespace.deploy.folder import require_bundle_place
from routespace.deploy.latency.table import LatencyTable
from routespace.deploy.verify import VerifyReport, verify
from routespace.errors import RoutespaceError
from routespace.files import json_text
from routespace.grid.architecture import Architecture
from routespace.grid.resources import joined_limits
from routespace.nn.task_net import TaskNet
from routespace.preprocess import preprocess_to_json
from routespace.train.progress import Progress
from routespace.train.recipe.recipe import Recipe
from routespace.train.tasks.kinds import task_of_head
from routespace.workflow.artifacts import Artifact, load_artifact
from routespace.workflow.choosing import choose_best, choose_part
from routespace.workflow.cutting import Stage, cut_down
from routespace.workflow.fine_tuning import FineTuning, fine_tune
from routespace.workflow.history import with_score
from routespace.workflow.scoring import card_scores, measured, tuned_score
from routespace.workflow.sizing import Size, SizeChoice, TriedSize, choose_size
from routespace.workflow.wishes import USUAL_METHOD, ExtractionWatch, Wishes


@dataclass(frozen=True)
class Extraction:
    """What was extracted, and how it was found to be.

    Attributes:
        net: the small network, in evaluation mode.
        card: of the bundle.
        max_difference: largest difference of outputs to the part that it was taken from.
        metric: name of the task's.
        score_whole, score: the metric on validation, of the network it came from and of itself as it was taken
            out, each on images of its own size; None when not evaluated.
        images: that were evaluated.
        tuned: the result of its fine-tuning, as in a run's result.json; None without one.
        tried: the image sizes that were compared, where there were several.
        limits: resource → the most that was allowed.
    """

    net: TaskNet
    card: Card
    max_difference: float
    metric: str
    score_whole: float | None = None
    score: float | None = None
    images: int = 0
    tuned: Mapping[str, Any] | None = None
    tried: tuple[TriedSize, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)


@checked
def extract_bundle(
    source: Artifact | Path | str,
    out: Path | str,
    *,
    macs: float | None = None,
    limits: Mapping[str, float] | None = None,
    table: LatencyTable | None = None,
    method: str = USUAL_METHOD,
    by: str | None = None,
    every_rate: bool = True,
    evaluated: bool = True,
    overwrite: bool = False,
    tuning: FineTuning | None = None,
    image_size: Size | Sequence[Size] | None = None,
) -> Extraction:
    """Take the best part under a limit out of a trained supernet, verify it, and save it as a bundle.

    Args:
        source: a finished run or a bundle, or its folder.
        out: the bundle's folder.
        macs: the most MACs; without any limit it is the recipe's own budget, and a static network is taken whole.
        limits: resource (`params`, `latency_ms`, …: the table in `grid/resources.py`) → the most allowed.
        table: predicts milliseconds, for a limit on `latency_ms`; of one batch of the table.
        method: `milp` (proven best) or `threshold`, to derive from usage.
        by: `usage`, the most used part; `kl`, the one whose edges change the outputs most when they are taken out
            (`removal_scores`); or `candidates`, the best of several on validation (`choose_best`). None takes
            candidates after a sandwich training, whose gates say nothing, and else usage.
        every_rate: reach every output that the network reaches; else rates of a pyramid may be dropped, and the
            head does without their maps.
        evaluated: measure the task's metric on validation, of the whole and of the part.
        overwrite: replace a bundle that is there.
        tuning: how long to train it on before it is saved, by whom it is taught, and how much one cut may take
            away: more is cut in several steps, with a share of the epochs after each.
        image_size: move the network to images of this size first, in pixels: the side of a square, (H, W), or a
            list of several, of which the one is taken whose best part is best on validation. What limits count is
            then of an image of that size; the recipe's own budget stays what it was. The bundle's recipe, and how
            pictures go in, become those of that size; objects of scenes that are made here shrink along.

    Raises:
        BudgetError: a limit is below the least possible, which the message names.
        GridError: the table was measured at another image size.
        BundleError: no such run, usage that was not measured, or `out` cannot be written.
        SpecError: a wish that would have no effect, or an image size that the grid or the data does not take.
        RoutespaceError: the extracted network differs from the supernet's part; nothing is saved then.
    """
    require_bundle_place(out, overwrite=overwrite)
    artifact = source if isinstance(source, Artifact) else load_artifact(source)
    wishes = Wishes(
        joined_limits(limits, macs),
        table=table,
        method=method,
        by=by,
        every_rate=every_rate,
        evaluated=evaluated,
        overwrite=overwrite,
        tuning=tuning,
        image_size=image_size,
    )
    return extract_as_wished(artifact, out, wishes)


def extract_as_wished(
    artifact: Artifact, out: Path | str, wishes: Wishes, watch: ExtractionWatch | None = None
) -> Extraction:
    """All steps of an extraction: image size, cuts, last choice, taking out; errors as those of `extract_bundle`.

    Args:
        artifact: a finished run or a bundle.
        out: the bundle's folder.
        wishes: how the part is chosen, and what becomes of it.
        watch: hears of each step.
    """
    watch = watch or ExtractionWatch()
    limits = wishes.limits_of(artifact)
    wishes.require_effect(artifact, limits)
    way, sized = wishes.way(artifact), _sized(artifact, limits, wishes, watch)
    stage = Stage(sized.artifact, None)
    if wishes.tuning is not None:
        with watch.training() as heard:
            stage = cut_down(
                sized.artifact, limits, wishes.tuning, by=way, every_rate=wishes.every_rate, **heard._asdict()
            )
    part = sized.part
    if part is None or stage.cuts:
        part = _last_choice(stage.artifact, limits, stage.way(way), wishes, watch)
    watch.chosen(part)
    take = partial(
        extract_chosen,
        stage.artifact,
        part,
        out,
        evaluated=wishes.evaluated,
        overwrite=wishes.overwrite,
        tuning=stage.tuning,
        origin=artifact,
    )
    if stage.tuning is None:
        with watch.doing("extracting, verifying and evaluating"):
            taken = take()
    else:
        with watch.training() as heard:
            taken = take(**heard._asdict())
    return replace(taken, limits=limits, tried=sized.tried)


def _sized(artifact: Artifact, limits: Mapping[str, float], wishes: Wishes, watch: ExtractionWatch) -> SizeChoice:
    """The network at the image size that is wished, or at the best of several."""
    if wishes.image_size is None:
        return SizeChoice(artifact)
    with watch.doing("evaluating parts at the image size"):
        found = choose_size(
            artifact,
            wishes.image_size,
            limits,
            way=wishes.way(artifact),
            table=wishes.table,
            method=wishes.method,
            every_rate=wishes.every_rate,
        )
    watch.sized(found)
    return found


def _last_choice(
    artifact: Artifact, limits: Mapping[str, float], way: str, wishes: Wishes, watch: ExtractionWatch
) -> Architecture:
    """The part to take."""
    table, every_rate = wishes.table, wishes.every_rate
    if way != "candidates" or not limits:
        return choose_part(artifact, limits, way, table=table, method=wishes.method, every_rate=every_rate)
    with watch.doing("evaluating candidates"):
        best = choose_best(artifact, limits, table=table, every_rate=every_rate)
    watch.picked(best)
    return best.architecture


def extract_chosen(
    artifact: Artifact,
    chosen: Architecture,
    out: Path | str,
    *,
    evaluated: bool = True,
    overwrite: bool = False,
    tuning: FineTuning | None = None,
    progress: Callable[[Progress], None] | None = None,
    tell: Callable[[str], None] | None = None,
    origin: Artifact | None = None,
) -> Extraction:
    """Extract, verify, evaluate on validation, fine-tune where that is asked for, and save.

    The test split is for `evaluate` alone.

    Args:
        artifact: where the weights come from.
        chosen: a static part of its architecture.
        out: the bundle's folder.
        evaluated: measure the task's metric of the whole and of the part.
        overwrite: replace a bundle that is there.
        tuning: how long to train it on, and by whom it is taught.
        progress, tell: of the fine-tuning, as in `train_recipe`.
        origin: what the first of several cuts was made from, or what was moved to another image size; its metric
            is the whole's.

    Raises:
        BundleError: `out` holds something else, or cannot be written.
        RoutespaceError: the extracted network differs from the supernet's part; nothing is saved then.
        TrainingStoppedError: a signal came while it was fine-tuned; nothing is saved.
    """
    require_bundle_place(out, overwrite=overwrite)
    small = extract(artifact.net, chosen).eval()
    report = _verified(artifact.net, chosen, small)
    metric = task_of_head(small.head, small.spec).metric.name
    origin = artifact if origin is None else origin
    whole, part = measured(origin, artifact, small, metric) if evaluated else (None, None)
    scores, tuned = card_scores(origin, small, whole, part), None
    if tuning is not None:
        result = fine_tune(artifact, small, tuning, progress=progress, tell=tell)
        small, tuned = result.net, result.metrics
        scores = with_score(scores, tuned_score(artifact, tuned))
    card = Card.of(small, scores=scores, provenance=_provenance(origin))
    card = save_bundle(small, out, card, overwrite=overwrite, texts=_papers(artifact))
    found = Extraction(small, card, report.max_difference, metric, tuned=tuned)
    if whole is None or part is None:
        return found
    return replace(found, score_whole=whole.value, score=part.value, images=part.images or 0)


def _verified(net: TaskNet, chosen: Architecture, small: TaskNet) -> VerifyReport:
    """The report on an extraction, made on a CPU: a GPU may choose other sums for the same layer.

    Raises:
        RoutespaceError: the extracted network is not the part.
    """
    report = verify(net, chosen, small, device="cpu")
    if not report.ok:
        raise RoutespaceError("verify: the extracted network differs: " + "; ".join(report.lines()))
    return report


def _papers(artifact: Artifact) -> dict[str, str]:
    """What a bundle keeps beside its network: how images go in, and the recipe that tells of its data."""
    papers = {}
    if artifact.recipe is not None:
        papers[file_names.RECIPE] = artifact.recipe.to_yaml()
    if artifact.preprocess is not None:
        data = preprocess_to_json(artifact.preprocess, artifact.classes or ())
        papers[file_names.PREPROCESS] = json_text(data) + "\n"
    return papers


def _provenance(artifact: Artifact) -> Provenance:
    recipe: Recipe | None = artifact.recipe
    return Provenance(
        recipe=recipe.name if recipe else None,
        recipe_hash=recipe.hash if recipe else None,
        run=str(artifact.folder),
        parent=artifact.net.architecture.hash,
    )
