"""What `override` does with a recipe's data before it is read again: presets, kinds of data, lists that fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from routespace.errors import SpecError
from routespace.grid.families.lookup import known_families
from routespace.grid.presets import preset_fields
from routespace.train.recipe.data_kinds import of_kind

PER_RATE = ("widths", "heads", "mlp_ratios")  # and the parameters of the family
ANCHORS = ("anchor_scale", "anchor_ratios")
PRESET_KEEPS = ("image_size", "in_channels", "num_classes", "outputs")  # what a new preset leaves as it was


def changed_data(
    recipe: Mapping[str, Any], changes: Mapping[str, Any], *, check: Callable[[str], None]
) -> dict[str, Any]:
    """A recipe's data with some dotted fields replaced; see `Recipe.override`.

    Args:
        recipe: its data, which stays as it is.
        changes: dotted field → value.
        check: raises SpecError for a field that a recipe does not have.
    """
    data = copy.deepcopy(dict(recipe))
    if "grid.preset" in changes:
        kept = {key: data["grid"][key] for key in PRESET_KEEPS}
        data["grid"] = kept | {"preset": changes["grid.preset"]}
    if isinstance(data.get("task"), str):  # a kind alone means its defaults, which a change may be about
        data["task"] = {"kind": data["task"]}
    if "data.kind" in changes and isinstance(data["data"], dict):
        _change_kind(data, changes["data.kind"])
    for field, value in changes.items():
        if field != "grid.preset":
            check(field)
            _put(data, field, value)
    if isinstance(data["grid"], dict):
        if "preset" in data["grid"]:
            data["grid"] = _preset_fields(data["grid"].pop("preset")) | data["grid"]
        _fit_lists(data["grid"], {field.removeprefix("grid.") for field in changes})
    if "train.epochs" in changes and "train.seconds" not in changes and isinstance(data.get("train"), dict):
        data["train"]["seconds"] = None  # what is set last is how long it trains
    if (
        changes.get("budget.ratio") is not None
        and "budget.macs" not in changes
        and isinstance(data["budget"], dict)
    ):
        data["budget"]["macs"] = None  # and how much it may take
    if changes.get("task.detector") == "fcos":  # it has none; those of the detector before are not meant
        for name in ANCHORS:
            if f"task.{name}" not in changes:
                data["task"].pop(name, None)
    if changes.get("train.weights") is not None and "train.start" not in changes:
        data["train"].pop("start", None)
    return data


def _change_kind(data: dict[str, Any], kind: Any) -> None:
    """Turn the data section to another kind; leave out of search and phases what that kind does not have."""
    data["data"] = of_kind(data["data"], kind)
    for phase in data["train"].get("phases") or ():
        if isinstance(phase.get("data"), dict):
            phase["data"] = {name: value for name, value in of_kind(phase["data"], kind).items() if name != "kind"}
    for section in ("space", "overrides") if isinstance(data["search"], dict) else ():
        fields = data["search"][section]
        own = {name.removeprefix("data."): value for name, value in fields.items() if name.startswith("data.")}
        kept = {f"data.{name}" for name in of_kind(own, kind)}
        data["search"][section] = {
            name: value for name, value in fields.items() if not name.startswith("data.") or name in kept
        }


def _put(data: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a nested entry; a missing section (search) becomes a mapping."""
    *sections, name = dotted.split(".")
    for section in sections:
        if not isinstance(data.get(section), dict):
            data[section] = {}
        data = data[section]
    data[name] = copy.deepcopy(value)  # a later field may be set inside it


def _preset_fields(name: Any) -> dict[str, Any]:
    try:
        return preset_fields(str(name))
    except SpecError as error:
        raise SpecError(f"grid.{error}") from error


def _fit_lists(grid: dict[str, Any], changed: set[str]) -> None:
    """Shorten lists to a lowered max_down or fewer layers, but for those that were given along with it."""
    max_down, stem_down, layers = grid.get("max_down"), grid.get("stem_down", 4), grid.get("layers")
    limits: dict[str, int] = {}
    if not (isinstance(max_down, int) and isinstance(stem_down, int)):
        return  # refused when the fields are checked
    if "max_down" in changed and max_down >= stem_down > 0:
        own = (name for family in known_families().values() for name in family.parameters)
        limits = dict.fromkeys((*PER_RATE, *own), (max_down // stem_down).bit_length())
    if "layers" in changed and isinstance(layers, int) and layers > 0:
        limits["depths"] = layers
        columns = grid.get("embed_layers")
        if isinstance(columns, list | tuple) and "embed_layers" not in changed:
            grid["embed_layers"] = [column for column in columns if column <= layers]
    for field, limit in limits.items():
        if isinstance(grid.get(field), list | tuple) and field not in changed:
            grid[field] = list(grid[field][:limit])
