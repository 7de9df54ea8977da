"""Fine-tuning of what was extracted, taught by what it was cut from.

tuned = fine_tune(artifact, small, FineTuning(epochs=8))
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from routespace.checked import checked_fields
from routespace.errors import SpecError
from routespace.nn.task_net import TaskNet
from routespace.train.given_weights import NO_TEACHER
from routespace.train.progress import Progress
from routespace.train.recipe.parts import SELF
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import RunResult, train_recipe
from routespace.train.teacher import teacher_of
from routespace.workflow.artifacts import Artifact

WARMUP_FRAC = 1 / 16  # of the epochs: the optimiser begins anew, the weights do not
GATED_LR = 0.25  # of the recipe's rates: at all of them what gates were trained for was forgotten first (measured)
AT_ONCE = 1.0  # of the MACs, that one cut may take away: all of them


@checked_fields
@dataclass(frozen=True)
class FineTuning:
    """How a part is trained on after it was taken out.

    Raises:
        SpecError: a value of another kind, or one that is not allowed.

    Attributes:
        epochs: passes over the recipe's training images.
        teacher: as `train.teacher` of a recipe; None for what the part was cut from, or for nobody where the task
            knows no soft labels; `none` for nobody.
        most_cut: of the MACs, that one cut may take away; more is cut in steps, which share the epochs. At 1 all
            is cut at once.
        lr_factor: of the recipe's `lr` and `gate_lr`; None for 1, and for a quarter where gates are kept.
    """

    epochs: int
    teacher: str | None = None
    most_cut: float = AT_ONCE
    lr_factor: float | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise SpecError(f"finetune: {self.epochs} epochs are not allowed; give 1 or more, or leave it out")
        if not 0 < self.most_cut <= 1:
            raise SpecError(f"cut: {self.most_cut} is not allowed; give a share above 0, up to 1 for all at once")
        if self.lr_factor is not None and not 0 < self.lr_factor < math.inf:
            raise SpecError(f"lr_factor: {self.lr_factor} is not allowed; give a number above 0, or leave it out")


def fine_tuned_recipe(artifact: Artifact, tuning: FineTuning, *, gated: bool = False) -> Recipe:
    """The recipe of a fine-tuning: that of the artifact's last phase but for length, rates, warm-up and teacher.

    Args:
        artifact: what is taken from.
        tuning: how what is taken is trained on.
        gated: it keeps its gates.

    Raises:
        BundleError: the artifact has none.
        SpecError: the recipe's task knows no soft labels.
    """
    recipe = artifact.require_recipe()
    own = str(artifact.folder) if recipe.task.teachable else NO_TEACHER
    teacher = own if tuning.teacher is None else tuning.teacher
    outside = teacher not in (NO_TEACHER, SELF)
    factor, train = tuning.lr_factor or (GATED_LR if gated else 1.0), recipe.train
    lr, gate_lr = factor * train.lr, None if train.gate_lr is None else factor * train.gate_lr
    return recipe.override(
        {
            "train.lr": lr,
            "train.gate_lr": gate_lr,
            "train.min_lr": min(train.min_lr, lr, lr if gate_lr is None else gate_lr),
            "train.phases": [],
            "train.epochs": tuning.epochs,
            "train.warmup_epochs": tuning.epochs * WARMUP_FRAC,
            "train.teacher": None if teacher == NO_TEACHER else teacher,
            "train.teacher_images": train.teacher_images if outside else "resized",
            "train.weights": None,
            "train.mode": "plain",
            "train.device": "auto" if train.device == "cuda" else train.device,  # perhaps not there
        }
    )


def require_tuning(artifact: Artifact, tuning: FineTuning | None, *, gated: bool = False) -> None:
    """Ask before the work for what a fine-tuning needs: its recipe, and the teacher that was named.

    Args:
        artifact: what is taken from.
        tuning: how long, and by whom what is taken is taught; None for not at all.
        gated: what is taken keeps its gates.

    Raises:
        BundleError: the artifact has no recipe, or the teacher cannot be read or fetched.
        SpecError: there is no such teacher, or none that can teach this.
        DataError: the teacher, or the network, does not know one of the classes.
    """
    if tuning is None:
        return
    recipe = fine_tuned_recipe(artifact, tuning, gated=gated)
    if recipe.train.teacher == SELF and not gated:
        raise SpecError(f"train.teacher: {SELF!r} needs gates, and what is taken out has none; give another")
    if tuning.teacher is not None:
        teacher_of(recipe, artifact.held_out().source, torch.device("cpu"))


class _EnoughError(Exception):
    """The first epochs are done."""


def begin_tuning(
    artifact: Artifact,
    small: TaskNet,
    tuning: FineTuning,
    folder: Path,
    *,
    epochs: int,
    progress: Callable[[Progress], None] | None = None,
) -> float:
    """Train a part for the first of its epochs; the task's metric on validation after them.

    Args:
        artifact, small, tuning, progress: as in `fine_tune`, which goes on from there and tells of the training.
        folder: where the training stands afterwards; there is none yet.
        epochs: of the tuning's, after which it stops.

    Raises:
        TrainingStoppedError: a signal came.
        RoutespaceError: as `train_recipe`.
    """
    recipe = fine_tuned_recipe(artifact, tuning, gated=not small.architecture.is_static)
    recipe = recipe.override({"train.checkpoint_epochs": epochs})  # to go on from its last epoch
    scores = list[float]()

    def heard(news: Progress) -> None:
        if progress is not None:
            progress(news)
        if news.metrics and news.metrics["epoch"] == epochs:
            scores.append(news.metrics[news.metric.name])
            if news.stage == "train":  # else it was the last epoch, and what is left is to save
                raise _EnoughError

    with suppress(_EnoughError):
        train_recipe(recipe, folder, init=small, asked=frozenset(), progress=heard)
    return scores[-1]


def fine_tune(
    artifact: Artifact,
    small: TaskNet,
    tuning: FineTuning,
    *,
    begun: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> RunResult:
    """Train a part on; nothing is left on the disk, and the given network stays as it is.

    Args:
        artifact: what the part was taken from; its recipe is trained with.
        small: the part.
        tuning: how long, and by whom it is taught.
        begun: the folder that `begin_tuning` left of the same tuning of the same part, to go on with.
        progress, tell: as in `train_recipe`.

    Raises:
        TrainingStoppedError: a signal came; nothing is kept.
        RoutespaceError: as `train_recipe`.
    """
    recipe = fine_tuned_recipe(artifact, tuning, gated=not small.architecture.is_static)
    with tempfile.TemporaryDirectory(prefix="routespace-") as place:
        return train_recipe(
            recipe,
            begun or Path(place) / "run",
            init=small,
            resume=begun is not None,
            asked=frozenset(),
            progress=progress,
            tell=tell,
        )
