"""A training on the disk: its checkpoint, and a line of metrics for each epoch.

load_state, save_state       between a trainer and its run's folder
state_of                     what a checkpoint holds
"""

from __future__ import annotations

from typing import Any

from routespace.errors import BundleError
from routespace.files import json_text, write_text
from routespace.train.checkpoint import load_checkpoint, save_checkpoint
from routespace.train.loop import Trainer
from routespace.train.processes import together
from routespace.train.run_folder import RunFolder
from routespace.train.start import run_key


def load_state(trainer: Trainer, run: RunFolder) -> None:
    """Go on from a run's checkpoint; raises BundleError when it is of another recipe or number of processes."""
    state, count = load_checkpoint(run.checkpoint_path), trainer.accelerator.num_processes
    if state.get("recipe") != run_key(trainer.recipe):
        raise BundleError(f"{run.checkpoint_path}: is of another recipe; choose another --out")
    teacher = state.get("teacher")
    if teacher != _taught_by(trainer):
        raise BundleError(
            f"train.teacher: {trainer.recipe.train.teacher} has other weights than when {run.path} began; give "
            f"the former teacher, or start anew with another --out"
        )
    before = len(state["random"])
    if before != count:
        raise BundleError(
            f"{run.path}: was trained by {before} processes, these are {count}, whose noise would be another one; "
            f"go on with {before}, or start anew with another --out"
        )
    trainer.load_state(state)


def state_of(trainer: Trainer) -> dict[str, Any]:
    """What a checkpoint holds; every process must call it."""
    return {"recipe": run_key(trainer.recipe), "teacher": _taught_by(trainer), **trainer.state()}


def _taught_by(trainer: Trainer) -> str | None:
    """Digest of an outside teacher's weights; None without one."""
    teacher = trainer.course.phase.teacher
    return None if teacher is None else teacher.digest


def save_state(trainer: Trainer, run: RunFolder) -> None:
    """Write a checkpoint and the metrics so far; every process must call it."""
    state = state_of(trainer)
    with together():
        if trainer.accelerator.is_main_process:
            save_checkpoint(run.checkpoint_path, state)
            write_metrics(trainer, run)


def write_metrics(trainer: Trainer, run: RunFolder) -> None:
    """Write a line for each epoch so far."""
    lines = [json_text(record, indent=None) + "\n" for record in trainer.records]
    write_text(run.metrics_path, "".join(lines))
