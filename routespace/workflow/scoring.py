"""What an extraction measures on validation images, for its bundle's card: of the whole, and of what is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from routespace.deploy.scores import Score, ScoreStage
from routespace.nn.task_net import TaskNet
from routespace.train.data.loaders import Loaders
from routespace.train.evaluate import evaluate
from routespace.workflow.artifacts import Artifact
from routespace.workflow.history import images_of, with_score


class Seen(NamedTuple):
    """A network on validation images.

    Attributes:
        score: by the task's metric.
        found: all that `evaluate` gave.
    """

    score: Score
    found: Mapping[str, Any]


def measured(
    origin: Artifact, artifact: Artifact, small: TaskNet, metric: str, *, whole: Score | None = None
) -> tuple[Score, Score]:
    """The task's metric of a network and of its part, each on validation images of its own size.

    Args:
        origin: the network as it was trained.
        artifact: what the part was taken from: the same, cut already, or moved to another image size.
        small: the part.
        metric: its name.
        whole: the network's, where it is known.
    """
    loaders = origin.held_out()
    sized = loaders if artifact.net.spec.hash == origin.net.spec.hash else artifact.held_out()
    before = _score("before_extraction", origin.net, loaders, metric) if whole is None else whole
    if small.architecture == origin.net.architecture:
        return before, before.model_copy(update={"stage": "extracted"})
    return before, _score("extracted", small, sized, metric)


def _score(stage: ScoreStage, net: TaskNet, of: Loaders, metric: str) -> Score:
    """A network on validation images."""
    return seen(stage, net, of, metric).score


def seen(stage: ScoreStage, net: TaskNet, of: Loaders, metric: str) -> Seen:
    """Evaluate a network on validation images.

    Args:
        stage: of its life.
        net: the network.
        of: images.
        metric: the task's, by name.
    """
    result = evaluate(net, of.val, expected=False)
    score = Score(
        stage=stage,
        metric=metric,
        value=result[metric],
        images=result["images"],
        split="val",
        data=images_of(of.recipe),
        digest=None if of.source.record is None else of.source.record.digest,
        image_size=of.source.preprocess.size,
    )
    return Seen(score, result)


def decides_alike(net: TaskNet, other: TaskNet) -> bool:
    """Whether two networks of the same weights are one: the same edges, and gates of the same threshold."""
    return net.architecture == other.architecture and net.gate_spec == other.gate_spec


def card_scores(origin: Artifact, small: TaskNet, whole: Score | None, part: Score | None) -> tuple[Score, ...]:
    """What the card tells: of a part two new scores; a network that is taken as it is keeps its history."""
    if not decides_alike(small, origin.net):
        return () if whole is None or part is None else (whole, part)
    if part is None:
        return origin.scores
    stage = origin.scores[-1].stage if origin.scores else "trained"
    return with_score(origin.scores, part.model_copy(update={"stage": stage}))


def tuned_score(artifact: Artifact, result: Mapping[str, Any]) -> Score:
    """What a fine-tuning's result says for the card."""
    recipe, metric = artifact.require_recipe(), result["metric"]
    return Score(
        stage="fine_tuned",
        metric=metric,
        value=result[metric],
        images=result["images"],
        split="val",
        data=images_of(recipe),
        image_size=recipe.preprocess.size,
    )
