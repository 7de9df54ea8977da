"""What turns a candidate into numbers: the Evaluator protocol, and `train_candidate`, the real one.

An evaluator of another kind, such as one that measures parts of a trained supernet, takes its own candidates.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from routespace import file_names
from routespace.checked import checked
from routespace.errors import SpecError
from routespace.search.candidate import Candidate, RecipeCandidate
from routespace.search.objectives import TrainedRun, measured
from routespace.train.recipe.recipe import Recipe
from routespace.train.stopping import TrainingStoppedError

if TYPE_CHECKING:
    from routespace.deploy.latency.table import LatencyTable

C_contra = TypeVar("C_contra", bound=Candidate, contravariant=True)


@dataclass(frozen=True)
class Workplace:
    """Where a trial is evaluated.

    Attributes:
        folder: the trial's own; it exists.
        resume: whether the folder may hold an interrupted run of the same candidate.
        report: told how far the evaluation is, in words of its own.
    """

    folder: Path
    resume: bool
    report: Callable[[Any], None]


class Evaluator(Protocol[C_contra]):
    """Evaluates one candidate."""

    def __call__(self, candidate: C_contra, place: Workplace) -> Mapping[str, float]:
        """Metrics by name: the study's objectives, and more if there are.

        Raises:
            KeyboardInterrupt: it was stopped, and can be resumed in the same place.
            DataError: the data cannot be used; the study stops, as other trials would meet the same.
            Exception: whatever else made the trial fail.
        """
        ...


@checked
def train_candidate(
    candidate: RecipeCandidate,
    place: Workplace,
    *,
    objectives: Sequence[str],
    table: LatencyTable | None = None,
) -> dict[str, float]:
    """Train with `routespace.train`; the metric and MACs are those of the validation split, never of the test's.

    Args:
        candidate: its recipe is trained.
        place: the folder becomes an ordinary run folder.
        objectives: what must be measured.
        table: predicts `latency_ms` from the usage on validation; without it the network is timed, if that is an
            objective.

    Raises:
        KeyboardInterrupt: a signal stopped it; its checkpoint is saved.
        RoutespaceError: as `routespace.train.run.train_recipe`.
    """
    from routespace.train.run import train_recipe  # torch: not needed to look at a study

    recipe, folder = candidate.recipe, place.folder
    go_on = place.resume and _same_run(folder, recipe)
    if place.resume and not go_on:  # killed before it began, or moved to a machine with other paths
        shutil.rmtree(folder)
    try:
        result = train_recipe(recipe, folder, resume=go_on, progress=place.report)
    except TrainingStoppedError as error:
        raise KeyboardInterrupt(str(error)) from error
    found = measured(TrainedRun(recipe, result, table), objectives)
    shutil.rmtree(folder / file_names.CHECKPOINT, ignore_errors=True)  # thrice the network, for each trial
    return found


def _same_run(folder: Path, recipe: Recipe) -> bool:
    """Whether the folder holds a run of the recipe; where it happens does not count."""
    from routespace.train.run_folder import without_places

    try:
        saved = Recipe.from_yaml((folder / file_names.RECIPE).read_text(encoding="utf-8"))
        return without_places(saved) == without_places(recipe)
    except (OSError, UnicodeDecodeError, SpecError):
        return False
