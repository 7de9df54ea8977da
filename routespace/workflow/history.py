"""What was measured of a network in its life, for its bundle's card.

A bundle has it in its card. A run has its own result, and keeps what was known of the network that it began with.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from routespace.deploy.scores import Score, ScoreStage
from routespace.errors import BundleError, SpecError
from routespace.files import read_json
from routespace.train.data.record import DataRecord
from routespace.train.recipe.data import FilesSpec
from routespace.train.recipe.recipe import Recipe
from routespace.train.run_folder import WANTED, RunFolder
from routespace.values import Value


class Earlier(Value):
    """The content of a run's earlier.json.

    Args:
        scores: of the network that it started from.
    """

    scores: tuple[Score, ...] = Field(default=())


def run_scores(run: RunFolder, recipe: Recipe | None) -> tuple[Score, ...]:
    """What is known of a finished run's network: of what it started from, and at its end.

    Raises:
        BundleError: a file is damaged.
    """
    try:
        earlier = Earlier()
        if run.earlier_path.exists():
            earlier = Earlier.parse(read_json(run.earlier_path, wanted=WANTED))
    except SpecError as error:
        raise BundleError(f"{run.earlier_path}: {error}") from error
    if not run.is_finished:
        return earlier.scores
    result = run.read_result()
    metric = result.get("metric", "accuracy")
    if metric not in result:
        return earlier.scores
    record = DataRecord.from_json(read_json(run.data_path, wanted=WANTED)) if run.data_path.exists() else None
    own = Score(
        stage=run_stage(run),
        metric=metric,
        value=result[metric],
        images=result.get("images"),
        split="val",
        data=None if recipe is None else images_of(recipe),
        digest=None if record is None else record.digest,
        image_size=None if recipe is None else recipe.preprocess.size,
    )
    return with_score(earlier.scores, own)


def run_stage(run: RunFolder) -> ScoreStage:
    """What a run made of its network."""
    given = run.architecture_path.exists() and run.read_given()
    return "fine_tuned" if given else "trained"


def with_score(scores: tuple[Score, ...], new: Score) -> tuple[Score, ...]:
    """The scores with a new one, which takes the place of one of the same stage."""
    return (*(score for score in scores if score.stage != new.stage), new)


def images_of(recipe: Recipe) -> str:
    """The kind of a recipe's images, and the name of their folder or table."""
    data = recipe.data
    return f"{data.kind} {Path(data.root).name}" if isinstance(data, FilesSpec) and data.root else data.kind
