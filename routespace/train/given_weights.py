"""Where weights that a recipe names lie: looked for before torch is imported."""

from __future__ import annotations

from pathlib import Path

from routespace import file_names
from routespace.errors import SpecError
from routespace.train.recipe.parts import SELF, TIMM, TrainSpec

WEIGHTS_HINT = f"give {TIMM}NAME, a file (.safetensors, .pth), or the folder of a run or bundle"
NO_TEACHER = "none"  # in place of a fine-tuning's own
TEACHER_HINT = f"give {TIMM}NAME, the folder of a run or bundle, or {SELF}"


def require_given(train: TrainSpec) -> None:
    """Raise SpecError where the weights or the teacher of a recipe are not there; timm's are not looked for."""
    if train.weights is not None and not train.weights.startswith(TIMM):
        weights_place(Path(train.weights).expanduser())
    if train.teacher is not None:
        require_teacher(train.teacher)


def require_teacher(source: str) -> None:
    """Raise SpecError where the network that is to teach is not there; timm's are not looked for."""
    path = Path(source).expanduser()
    if source != SELF and not source.startswith(TIMM) and network_folder(path) is None:
        raise SpecError(f"train.teacher: {source}: {missing(path)}; {TEACHER_HINT}")


def weights_place(path: Path) -> Path | None:
    """Where the run or bundle of `train.weights` keeps its network; None for a file of weights.

    Raises:
        SpecError: neither.
    """
    place = network_folder(path)
    if place is None and not path.is_file():
        raise SpecError(f"train.weights: {path}: {missing(path)}; {WEIGHTS_HINT}")
    return place


def network_folder(path: Path) -> Path | None:
    """Where a run or a bundle keeps its network; None where there is none."""
    if path.name == file_names.WEIGHTS and (path.parent / file_names.NETWORK).exists():
        return path.parent
    for place in (path / file_names.NET, path):
        if (place / file_names.NETWORK).exists():
            return place
    return None


def missing(path: Path) -> str:
    """What is wrong with a path that should have had a network."""
    return "has no network" if path.exists() else "does not exist"
