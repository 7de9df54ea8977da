"""Which recipes are the same: what of them a hash and a run's key count.

Where data, weights and teacher lie does not count, and neither does a field that recipes once did not have, where
it is as it comes. A run may go on, and a study may be joined, with other values of what is `ELSEWHERE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from routespace.grid.gate_spec import GateSpec
from routespace.grid.spec import content_hash
from routespace.train.recipe.data_kinds import LOCATIONS
from routespace.train.recipe.parts import LATER, TrainSpec
from routespace.train.recipe.searching import SearchSpec
from routespace.values import Value

# Where a training happens, in how much memory, and how often it is saved: no part of what it finds.
ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    "data": (*LOCATIONS, "download", "workers"),
    "train": ("device", "checkpoint_epochs", "cuda_graphs", "grad_checkpointing"),
}
SECTIONS: Mapping[str, type[Value]] = {"train": TrainSpec, "gates": GateSpec, "search": SearchSpec}


def recipe_hash(data: dict[str, Any]) -> str:
    """Twelve hex digits of a recipe's data."""
    kept = without_train_places(data)
    if kept["train"]["weights"] is None:  # recipes of before there were any keep their hash
        kept["train"].pop("weights")
    return content_hash(kept | {"data": {**kept["data"], **dict.fromkeys(LOCATIONS)}})


def without_elsewhere(data: dict[str, Any]) -> dict[str, Any]:
    """A recipe's data without what is `ELSEWHERE`."""
    kept = {
        section: {name: value for name, value in data[section].items() if name not in names}
        for section, names in ELSEWHERE.items()
    }
    return data | kept


def without_train_places(data: dict[str, Any]) -> dict[str, Any]:
    """A recipe's data with the names of weights and teacher for their paths, and no later field unset."""
    kept: dict[str, dict[str, Any]] = {}
    for section, kind in SECTIONS.items():
        if data[section] is None:
            continue
        fresh, later = kind.model_construct().model_dump(mode="json"), LATER[section]
        given = data[section].items()
        kept[section] = {name: value for name, value in given if name not in later or value != fresh[name]}
    if "phases" in kept["train"]:
        kept["train"]["phases"] = [
            {name: value for name, value in phase.items() if name not in LATER["phases"] or value is not None}
            for phase in kept["train"]["phases"]
        ]
    for name in ("weights", "teacher"):
        if kept["train"].get(name) is not None:
            kept["train"][name] = Path(kept["train"][name]).name
    return data | kept
