"""What an argument names, read without torch: a grid by its name or file, or the network of a run or bundle.

A folder's architecture and gates are read from its JSON, without its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routespace import file_names
from routespace.deploy.folder import net_folder
from routespace.errors import BundleError, GridError, SpecError
from routespace.files import read_json
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.presets import preset_names
from routespace.grid.spec import GridSpec
from routespace.grid.usage import Usage, usage_from_json

GRID_FILE = "a grid file, as `routespace build … -o grid.json` writes it"
ARCHITECTURE_FORMAT = "routespace.architecture/1"


def load_grid(text: str) -> RoutingGrid:
    """The grid that a text names: a preset, or a JSON file of a grid, an architecture or bare fields.

    Raises:
        SpecError, GridError: no such preset or file, or its content is not allowed.
    """
    if text in preset_names():
        return RoutingGrid(GridSpec.preset(text))
    path = Path(text)
    if not path.exists():
        names = ", ".join(preset_names())
        raise SpecError(f"grid: {text!r:.80} is neither a preset nor a file; presets: {names}")
    data = read_json(path, wanted=GRID_FILE, error=SpecError)
    form = data.get("format") if isinstance(data, dict) else None
    if form == ARCHITECTURE_FORMAT:
        return Architecture.from_json(data).grid
    if isinstance(data, dict) and form is None and "layers" in data:
        return RoutingGrid(GridSpec.parse(data))
    return RoutingGrid.from_json(data)


def load_architecture(grid: RoutingGrid, text: str) -> Architecture:
    """The architecture of a grid that a text names: `full`, `staircase`, or a JSON file.

    Raises:
        GridError: the file's architecture is of another grid, or not legal.
        SpecError: no such file.
    """
    if text in ("full", "staircase"):
        return Architecture.full(grid) if text == "full" else Architecture.staircase(grid)
    data = read_json(text, wanted="full, staircase or an architecture's JSON file", error=SpecError)
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
        head: kind and settings of that network's head, as the folder tells them; None for a grid.
    """

    grid: RoutingGrid
    architecture: Architecture | None = None
    gates: GateSpec | None = None
    usage: Usage | None = None
    head: Mapping[str, Any] | None = None


def load_subject(text: str) -> Subject:
    """A grid by name or file, or a run's or bundle's network by its folder.

    Raises:
        SpecError, GridError, BundleError: see `load_grid`; or a folder without a network.
    """
    folder = Path(text)
    if not folder.is_dir():
        return Subject(load_grid(text))
    data = read_json(net_folder(folder) / file_names.NETWORK, wanted="a run or bundle folder")
    if not isinstance(data, dict):
        raise BundleError(f"{folder}: network.json is damaged; give a run or bundle folder")
    architecture, head = Architecture.from_json(data.get("architecture")), data.get("head")
    return Subject(
        grid=architecture.grid,
        architecture=architecture,
        gates=GateSpec.parse(data.get("gates"), name="gates"),
        usage=load_usage(folder, architecture.grid),
        head=head if isinstance(head, dict) else None,
    )


def load_usage(folder: Path, grid: RoutingGrid) -> Usage | None:
    """What a run measured on validation; None where there is no `usage.json`."""
    path = folder / file_names.USAGE
    return usage_from_json(read_json(path, wanted="a run's usage.json"), grid) if path.exists() else None


def require_routed(path: Path) -> None:
    """Raise SpecError unless a path is that of a routed run or bundle: others compute every token."""
    if path.is_file():
        raise SpecError(
            f"picture: {path.name} is an exported file and computes every token; give the run or bundle"
        )
    found = load_subject(str(path))
    if found.architecture is None or found.architecture.is_static:
        raise SpecError("picture: the network is static and computes every token; give a routed one")
