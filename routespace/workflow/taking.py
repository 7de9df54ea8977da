"""Taking a chosen part out: extract, verify, evaluate on validation, fine-tune; and saving what was taken.

taken = take_chosen(artifact, part, tuning=FineTuning(2))       in memory
saved(taken, artifact, "small")                                 in a folder, whole or not at all
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from routespace import file_names
from routespace.deploy.bundle import Card, Provenance, save_bundle
from routespace.deploy.extract import extract
from routespace.deploy.scores import Score
from routespace.deploy.verify import VerifyReport, verify
from routespace.errors import RoutespaceError
from routespace.files import json_text
from routespace.grid.architecture import Architecture
from routespace.nn.task_net import TaskNet
from routespace.preprocess import preprocess_to_json
from routespace.train.progress import Progress
from routespace.train.recipe.recipe import Recipe
from routespace.train.tasks.kinds import task_of_head
from routespace.workflow.artifacts import Artifact
from routespace.workflow.fine_tuning import FineTuning, fine_tune
from routespace.workflow.history import with_score
from routespace.workflow.scoring import card_scores, measured, tuned_score
from routespace.workflow.sizing import TriedSize


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
        usage: JSON data of a routed network's usage.json, measured on validation; None for a static network, and
            where nothing was measured.
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
    usage: Mapping[str, Any] | None = None


def take_chosen(
    artifact: Artifact,
    chosen: Architecture,
    *,
    evaluated: bool = True,
    tuning: FineTuning | None = None,
    begun: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    tell: Callable[[str], None] | None = None,
    origin: Artifact | None = None,
    whole: Score | None = None,
) -> Extraction:
    """Extract, verify, evaluate on validation, and fine-tune where that is asked for; nothing is saved.

    The test split is for `evaluate` alone.

    Args:
        artifact: where the weights come from.
        chosen: a static part of its architecture.
        evaluated: measure the task's metric of the whole and of the part.
        tuning: how long to train it on, and by whom it is taught.
        begun: the folder of that training, where its first epochs are done.
        progress, tell: of the fine-tuning, as in `train_recipe`.
        origin: what the first of several cuts was made from, or what was moved to another image size; its metric
            is the whole's.
        whole: that metric, where it is known.

    Raises:
        RoutespaceError: the extracted network differs from the supernet's part.
        TrainingStoppedError: a signal came while it was fine-tuned.
    """
    small = extract(artifact.net, chosen).eval()
    report = verified(artifact.net, chosen, small)
    metric = task_of_head(small.head, small.spec).metric.name
    origin = artifact if origin is None else origin
    part: Score | None = None
    if evaluated:
        whole, part = measured(origin, artifact, small, metric, whole=whole)
    scores, tuned = card_scores(origin, small, whole, part), None
    if tuning is not None:
        result = fine_tune(artifact, small, tuning, begun=begun, progress=progress, tell=tell)
        small, tuned = result.net, result.metrics
        scores = with_score(scores, tuned_score(artifact, tuned))
    card = Card.of(small, scores=scores, provenance=provenance_of(origin))
    found = Extraction(small, card, report.max_difference, metric, tuned=tuned)
    if whole is None or part is None:
        return found
    return replace(found, score_whole=whole.value, score=part.value, images=part.images or 0)


def saved(taken: Extraction, artifact: Artifact, out: Path | str, *, overwrite: bool = False) -> Extraction:
    """Save what was taken, with how images go in and the recipe of its data; the card is as written.

    Args:
        taken: by `take_chosen`.
        artifact: where it was taken from, at its image size.
        out: the bundle's folder.
        overwrite: replace a bundle that is there.

    Raises:
        BundleError: `out` holds something else, or cannot be written.
    """
    papers = _papers(artifact)
    if taken.usage is not None:
        papers[file_names.USAGE] = json_text(taken.usage) + "\n"
    return replace(taken, card=save_bundle(taken.net, out, taken.card, overwrite=overwrite, texts=papers))


def verified(net: TaskNet, chosen: Architecture, small: TaskNet) -> VerifyReport:
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


def provenance_of(artifact: Artifact) -> Provenance:
    """Where a network comes from that was taken out of an artifact's."""
    recipe: Recipe | None = artifact.recipe
    return Provenance(
        recipe=recipe.name if recipe else None,
        recipe_hash=recipe.hash if recipe else None,
        run=str(artifact.folder),
        parent=artifact.net.architecture.hash,
    )
