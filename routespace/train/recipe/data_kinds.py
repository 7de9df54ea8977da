"""The kinds of data as one: which there are, what `--data` stands for, and turning one kind into another."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from routespace.train.recipe.data import CsvSpec, DigitsSpec, FolderSpec, Normalised, TimmSpec, WebDatasetSpec
from routespace.train.recipe.scenes import ScenesSpec

LOCATIONS = (
    "root",
    "images",
    "cutouts",
    "backgrounds",
)  # where data lies: no part of what is trained
TABLES = (".csv", ".tsv")  # endings of files that `--data` takes for tables
DATA_SPECS = (DigitsSpec, FolderSpec, CsvSpec, WebDatasetSpec, TimmSpec, ScenesSpec)
DataSpec = DigitsSpec | FolderSpec | CsvSpec | WebDatasetSpec | TimmSpec | ScenesSpec
SPECS: dict[str, type[Normalised]] = {
    get_args(spec.model_fields["kind"].annotation)[0]: spec for spec in DATA_SPECS
}

# One spec once had the fields of both kinds, and a run's recipe kept all of them.
_BOTH = {"kind", "root", "workers"}
_OF_DIGITS = {"train_size", "val_size", "test_size", "digit_px", "digits_per_scene"}
_OF_FOLDER = {
    "val_fraction",
    "scale",
    "hflip",
    "color_jitter",
    "auto_augment",
    "erasing",
    "interpolation",
    "crop_pct",
}
_FORMER = _BOTH | _OF_DIGITS | _OF_FOLDER


def spec_at(path: str | Path) -> FolderSpec | CsvSpec:
    """What `--data PATH` stands for: a folder of pictures, or a table by its ending."""
    kind = CsvSpec if Path(path).suffix.lower() in TABLES else FolderSpec
    return kind(root=absolute(path))


def data_at(path: str | Path) -> dict[str, Any]:
    """The recipe fields that `--data PATH` stands for, for `Recipe.override`."""
    spec = spec_at(path)
    return {"data.kind": spec.kind, "data.root": spec.root}


def absolute(path: str | Path) -> str:
    """A path that means the same in every folder; `~` is the home folder."""
    return str(Path(path).expanduser().absolute())


def settled(data: Any) -> Any:
    """The data section with its kind said, and without what a former recipe kept for the other kind.

    Raises:
        ValueError: an unknown kind, or a field that its kind does not have.
    """
    if not isinstance(data, dict):
        return data
    data = {"kind": "digits", **data}
    spec = SPECS.get(data["kind"]) if isinstance(data["kind"], str) else None
    if spec is None:
        raise ValueError(f"kind: {data['kind']!r:.60} is not known; give {', '.join(SPECS)}")
    if set(data) == _FORMER:
        return {name: value for name, value in data.items() if name in spec.model_fields}
    for name in data:
        if name not in spec.model_fields:
            raise ValueError(of_other_kind(str(name), data["kind"]))
    return data


def of_kind(data: dict[str, Any], kind: Any) -> dict[str, Any]:
    """The data section turned to another kind: what both have stays."""
    spec = SPECS.get(kind) if isinstance(kind, str) else None
    fields = spec.model_fields if spec is not None else {}
    return {name: value for name, value in data.items() if name in fields} | {"kind": kind}


def of_other_kind(name: str, kind: str) -> str:
    """One line for a field of the data section that its kind does not have."""
    owners = [other for other, spec in SPECS.items() if name in spec.model_fields]
    known = ", ".join(SPECS[kind].model_fields)
    if not owners:
        return f"{name}: unknown field; allowed: {known}"
    return f"{name}: means nothing with data.kind {kind!r} (it is of {', '.join(owners)}); allowed: {known}"
