"""What of a recipe's teaching fits together: teachers and sandwiches against gates, routing and task."""

from __future__ import annotations

from routespace.grid.gate_spec import GateSpec
from routespace.train.recipe.gating import NO_CHOICE
from routespace.train.recipe.parts import SELF, TrainSpec
from routespace.train.tasks.base import TaskSpec


def check_teacher(train: TrainSpec, gates: GateSpec, task: TaskSpec, *, routing: str) -> None:
    """Raise ValueError, naming the field, for what teaches in a way that the rest of a recipe does not allow."""
    if (train.mixup or train.cutmix) and task.target != "label":
        name = "mixup" if train.mixup else "cutmix"
        raise ValueError(
            f"train.{name}: it mixes labels of whole images; task {task.kind!r} has none, leave it at 0"
        )
    if train.label_smoothing and task.target in ("objects", "masks"):
        raise ValueError(f"train.label_smoothing: the losses of task {task.kind!r} have none; leave it at 0")
    if train.teacher is not None and not task.teachable:
        raise ValueError(f"train.teacher: task {task.kind!r} knows no soft labels; leave it out")
    if train.teacher == SELF and routing in NO_CHOICE:
        raise ValueError(f"train.teacher: 'self' needs gates; routing {routing!r} has none, leave it out")
    if train.teacher_images == "own":
        _check_own_images(train)
    if train.mode == "sandwich":
        _check_sandwich(train, gates, task, routing)


def _check_own_images(train: TrainSpec) -> None:
    """What a teacher sees at its own size must be what the network sees at its."""
    if train.teacher in (None, SELF):
        raise ValueError("train.teacher_images: 'own' needs a teacher from outside; name one, or leave it out")
    if train.mixup or train.cutmix:
        raise ValueError(
            "train.teacher_images: 'own' makes images twice, which mixup and cutmix mix once; leave one out"
        )


def _check_sandwich(train: TrainSpec, gates: GateSpec, task: TaskSpec, routing: str) -> None:
    """What is open when nothing has taught the gates must be everything."""
    if routing in NO_CHOICE:
        raise ValueError(f"train.mode: 'sandwich' needs choices; routing {routing!r} has none, use 'both'")
    if not task.teachable:
        raise ValueError(f"train.mode: task {task.kind!r} knows no soft labels; use 'plain'")
    if train.teacher == SELF:
        raise ValueError("train.teacher: in mode 'sandwich' the largest part is the teacher; leave 'self' out")
    if train.start == "staircase":
        raise ValueError("train.start: 'staircase' closes gates, which mode 'sandwich' leaves alone; give 'open'")
    taught = gates.teach != "none" or gates.opening != "threshold"
    if taught or not gates.has_threshold or gates.openness <= gates.open_above:
        raise ValueError(
            "train.mode: 'sandwich' needs gates that are open untrained; leave out kind 'tanh', capacity, "
            "selection, teach and opening, and give an openness above the threshold"
        )
