"""What several commands read from their arguments: numbers, grids, architectures, run and bundle folders.

No torch here: a folder's architecture and gates are read from its JSON, without its weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routespace.errors import BundleError, SpecError
from routespace.files import read_json

if TYPE_CHECKING:
    from routespace.grid.architecture import Architecture
    from routespace.grid.gate_spec import GateSpec
    from routespace.grid.graph import RoutingGrid
    from routespace.grid.usage import Usage

_GRID_HELP = "a grid file, as `routespace build … -o grid.json` writes it"


def parse_macs(text: str, field: str = "macs") -> int:
    """MACs from "12M", "1.2G", "850K" or a plain number, as recipes write them.

    Raises:
        SpecError: anything else, or nothing above zero; the message names `field`.
    """
    from routespace.train.recipe.parts import parse_count

    try:
        macs = parse_count(text)
    except ValueError as error:
        raise SpecError(f"{field}: {error}") from error
    if not isinstance(macs, int) or macs < 1:
        raise SpecError(f"{field}: {text!r:.40} is not above 0; give a number such as 12M, 1.2G or 850000")
    return macs


def parse_numbers(text: str, field: str, kind: type[int] | type[float] = int) -> list[Any]:
    """Numbers from "64,128,320,512".

    Raises:
        SpecError: naming the field.
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise SpecError(f"{field}: {text!r:.60} is not allowed; give numbers with commas between them") from error


def parse_size(text: str) -> list[int]:
    """Height and width from "224" or "160x256"; raises SpecError."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip())
    if not match:
        raise SpecError(
            f"image_size: {text!r:.60} is not allowed; give a side such as 224, or HxW such as 160x256"
        )
    return [int(match[1]), int(match[2] or match[1])]


def load_grid(text: str) -> RoutingGrid:
    """The grid that an argument names: a preset, or a JSON file of a grid, an architecture or bare fields.

    Raises:
        SpecError, GridError: no such preset or file, or its content is not allowed.
    """
    from routespace.grid.architecture import Architecture
    from routespace.grid.graph import RoutingGrid
    from routespace.grid.presets import preset_names
    from routespace.grid.spec import GridSpec

    if text in preset_names():
        return RoutingGrid(GridSpec.preset(text))
    path = Path(text)
    if not path.exists():
        names = ", ".join(preset_names())
        raise SpecError(f"grid: {text!r:.80} is neither a preset nor a file; presets: {names}")
    data = read_json(path, wanted=_GRID_HELP, error=SpecError)
    form = data.get("format") if isinstance(data, dict) else None
    if form == "routespace.architecture/1":
        return Architecture.from_json(data).grid
    if isinstance(data, dict) and form is None and "layers" in data:
        return RoutingGrid(GridSpec.parse(data))
    return RoutingGrid.from_json(data)


def load_architecture(grid: RoutingGrid, text: str) -> Architecture:
    """The architecture of a grid that an argument names: `full`, `staircase`, or a JSON file.

    Raises:
        GridError: the file's architecture is of another grid, or not legal.
        SpecError: no such file.
    """
    from routespace.errors import GridError
    from routespace.grid.architecture import Architecture

    if text in ("full", "staircase"):
        return Architecture.full(grid) if text == "full" else Architecture.staircase(grid)
    data = read_json(Path(text), wanted="full, staircase or an architecture's JSON file", error=SpecError)
    if isinstance(data, dict) and isinstance(data.get("architecture"), dict):
        data = data["architecture"]  # a network.json
    architecture = Architecture.from_json(data)
    if architecture.grid.hash != grid.hash:
        raise GridError(f"architecture: {text} is of grid {architecture.grid.hash}, not of {grid.hash}")
    return architecture


@dataclass(frozen=True)
class Subject:
    """What GRID|BUNDLE|RUN names, read without torch.

    Attributes:
        grid: the routing grid.
        architecture, gates: of a run's or bundle's network; None for a grid.
        usage: what the run measured, if it did.
    """

    grid: RoutingGrid
    architecture: Architecture | None = None
    gates: GateSpec | None = None
    usage: Usage | None = None


def load_subject(text: str) -> Subject:
    """A grid by name or file, or a run's or bundle's network by its folder.

    Raises:
        SpecError, GridError, BundleError: see `load_grid`; or a folder without a network.
    """
    folder = Path(text)
    if not folder.is_dir():
        return Subject(load_grid(text))
    from routespace.grid.architecture import Architecture
    from routespace.grid.gate_spec import GateSpec

    data = read_json(net_folder(folder) / "network.json", wanted="a run or bundle folder")
    if not isinstance(data, dict):
        raise BundleError(f"{folder}: network.json is damaged; give a run or bundle folder")
    architecture = Architecture.from_json(data.get("architecture"))
    return Subject(
        grid=architecture.grid,
        architecture=architecture,
        gates=GateSpec.parse(data.get("gates"), name="gates"),
        usage=load_usage(folder, architecture.grid),
    )


def load_usage(folder: Path, grid: RoutingGrid) -> Usage | None:
    """What a run measured on validation; None where there is no `usage.json`."""
    from routespace.grid.usage import usage_from_json

    path = folder / "usage.json"
    return usage_from_json(read_json(path, wanted="a run's usage.json"), grid) if path.exists() else None


def net_folder(folder: Path) -> Path:
    """Where a run (`net/`) or a bundle (itself) keeps its network.

    Raises:
        BundleError: neither; the message tells what the folder lacks.
    """
    for place in (folder / "net", folder):
        if (place / "network.json").exists():
            return place
    if (folder / "recipe.yaml").exists():
        raise BundleError(f"{folder}: the run is not finished; continue it with `routespace train … --resume`")
    state = "has no network" if folder.is_dir() else "does not exist"
    raise BundleError(f"{folder}: {state}; give the folder of a finished run or of a bundle")
