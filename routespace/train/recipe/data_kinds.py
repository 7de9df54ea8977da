"""The kinds of data as one: which there are, what `--data` stands for, and turning one kind into another."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from routespace.train.recipe.annotated import AnnotatedSpec
from routespace.train.recipe.coco import CocoSpec
from routespace.train.recipe.data import (
    CsvSpec,
    DigitsSpec,
    FilesSpec,
    FolderSpec,
    Normalised,
    TimmSpec,
    WebDatasetSpec,
)
from routespace.train.recipe.scenes import ScenesSpec
from routespace.train.recipe.segmentation import CityscapesSpec, SegmentationSpec, counts_from_one
from routespace.train.recipe.targets import Target
from routespace.train.recipe.voc import VocSpec
from routespace.values import unknown_field

LOCATIONS = (
    "root",
    "images",
    "cutouts",
    "backgrounds",
)  # where data lies: no part of what is trained
TABLES = (".csv", ".tsv")  # endings of files that `--data` takes for tables
COCO_FILES = "annotations/*.json"  # what a folder in COCO's format has
LABEL_MAPS = "annotations/**/*.png"  # what a folder of pictures and label maps has
VOC_FOLDER, VOC_YEARS = "VOCdevkit", "VOCdevkit/VOC20??"
DATA_SPECS = (
    *(DigitsSpec, FolderSpec, CsvSpec, WebDatasetSpec, TimmSpec, ScenesSpec),
    *(CocoSpec, SegmentationSpec, VocSpec, CityscapesSpec),
)
PictureSpec = FolderSpec | CsvSpec | WebDatasetSpec | TimmSpec
DataSpec = DigitsSpec | ScenesSpec | PictureSpec | CocoSpec | SegmentationSpec | VocSpec | CityscapesSpec
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


def spec_at(path: str | Path, now: Normalised | None = None) -> FilesSpec:
    """What `--data PATH` stands for.

    A .json file is annotations in COCO's format, a .csv or .tsv file a table. A folder is what it looks like: of
    annotations in COCO's format, Pascal VOC (VOCdevkit, or a year in it, too), Cityscapes, of pictures and label
    maps (ADE20K, whose classes begin with 1, by its own table of names), or of pictures in folders of their class.

    Args:
        path: the folder or file.
        now: what it takes the place of: annotations of a kind that a folder does not tell keep it.
    """
    place = Path(absolute(path))
    kind = _kind_at(place, now)
    if kind is SegmentationSpec and not isinstance(now, SegmentationSpec) and counts_from_one(place):
        return SegmentationSpec(root=str(place), ignore=(0,), shift=1)
    if kind is CityscapesSpec and (place / "gtCoarse").is_dir() and not (place / "gtFine").is_dir():
        return CityscapesSpec(root=str(place), mode="coarse")
    if kind is not VocSpec:
        return kind(root=str(place))
    place = next((parent for parent in (place, *place.parents[:2]) if (parent / VOC_FOLDER).is_dir()), place)
    years = sorted(folder.name.removeprefix("VOC") for folder in place.glob(VOC_YEARS))
    kept = now.year if isinstance(now, VocSpec) else VocSpec.model_fields["year"].default
    year = years[-1] if years and kept not in years else kept
    return VocSpec.parse({"root": str(place), "year": year}, name="data")


def _kind_at(path: Path, now: Normalised | None) -> type[FilesSpec]:
    if path.suffix.lower() in TABLES:
        return CsvSpec
    if path.suffix.lower() == ".json":
        return CocoSpec
    looks = _looks_of(path)
    if not isinstance(now, AnnotatedSpec):
        return looks[0] if looks else FolderSpec
    sure = [
        kind for kind in looks if kind is not SegmentationSpec or any(path.glob(LABEL_MAPS))
    ]  # its folders may be anything's
    return type(now) if type(now) in looks or not sure else sure[0]


def _looks_of(path: Path) -> list[type[FilesSpec]]:
    """Which kinds of annotations a folder looks like."""
    maps = (path / "gtFine").is_dir() or (path / "gtCoarse").is_dir()
    voc = VOC_FOLDER in (path.name, path.parent.name) and path.is_dir()
    found: dict[type[FilesSpec], bool] = {
        CocoSpec: any(path.glob(COCO_FILES)) or any(path.glob("*/_annotations.coco.json")),
        VocSpec: voc or (path / VOC_FOLDER).is_dir(),
        CityscapesSpec: (path / "leftImg8bit").is_dir() and maps,
        SegmentationSpec: (path / "images").is_dir() and (path / "annotations").is_dir(),
    }
    return [kind for kind, fits in found.items() if fits]


def data_at(path: str | Path, now: Normalised | None = None) -> dict[str, Any]:
    """The recipe fields that `--data PATH` stands for, for `Recipe.override`; `now` as in `spec_at`."""
    spec = spec_at(path, now)
    found = spec.model_dump()
    more = {f"data.{name}": found[name] for name in sorted(spec.model_fields_set - {"kind", "root"})}
    return {"data.kind": found["kind"], "data.root": spec.root, **more}


def kind_of(target: Target) -> str:
    """The kind of pictures on this machine that a task may be measured on, where nothing is said of them."""
    return {"label": "folder", "pixels": "segmentation"}.get(target, "coco")


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
    if not owners:
        return f"{name}: {unknown_field(name, SPECS[kind].model_fields)}"
    known = ", ".join(SPECS[kind].model_fields)
    return f"{name}: means nothing with data.kind {kind!r} (it is of {', '.join(owners)}); allowed: {known}"
