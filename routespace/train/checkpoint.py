"""Checkpoints: one file with everything that a training needs to go on as if it had never stopped.

The file is written beside its place and renamed into it, so that it is whole or not there. It is read with
torch's `weights_only` loader: tensors and plain values, no code.
"""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from routespace.errors import BundleError
from routespace.files import replaced

FORMAT = "routespace.checkpoint/1"
FULL_DISK = "inline_container"  # torch's word for it: a file of its own source, and two positions


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values to `path`, whole or not at all; raises BundleError where it cannot."""
    with replaced(path) as partial:
        try:
            torch.save({"format": FORMAT, **state}, partial)
        except RuntimeError as error:
            said = str(error).splitlines()[0]
            raise OSError("the disk is full, or its quota" if FULL_DISK in said else said) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote; raises BundleError when it is missing, truncated or something else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise BundleError(f"{path}: missing or damaged checkpoint ({str(error).splitlines()[0]:.80})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise BundleError(f"{path}: not a {FORMAT} file")
    return state


def random_state() -> dict[str, Any]:
    """The states of every global generator that training draws from, as tensors and plain values."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": list(random.getstate()[1]),
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned."""
    random.setstate((3, tuple(state["python"]), None))  # 3: the version of Python's generator state
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
