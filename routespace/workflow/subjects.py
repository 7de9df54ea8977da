"""What an argument names, read without torch: a grid, a recipe, or the network of a run or bundle.

A folder's architecture and gates are read from its JSON, without its weights. Every command that takes a GRID
takes all of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routespace import file_names
from routespace.deploy.folder import net_folder
from routespace.errors import BundleError, GridError, SpecError
from routespace.files import read_json
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.presets import preset_names
from routespace.grid.spec import GridSpec
from routespace.grid.usage import SizedUsage, Usage, sizes_from_json, usage_from_json
from routespace.recipes import load_recipe, recipe_names
from routespace.train.tasks.base import TaskSpec

if TYPE_CHECKING:
    from routespace.nn.heads.base import Head

GRID_FILE = "a grid file, as `routespace build … -o grid.json` writes it"
USAGE_FILE = "a run's usage.json"
ARCHITECTURE_FORMAT = "routespace.architecture/1"
RECIPE_FILES = (".yaml", ".yml")
OWN = (file_names.NET, file_names.NETWORK, file_names.RECIPE, file_names.STUDY)  # what folders of ours hold
PLAIN_HEADS = ("classify", "maps")  # whose price the grid knows


def load_grid(text: str) -> RoutingGrid:
    """The grid that a text names: a preset, or a JSON file of a grid, an architecture or bare fields.

    Raises:
        SpecError, GridError: no such preset or file, or its content is not allowed.
    """
    if text in preset_names():
        return RoutingGrid(GridSpec.preset(text))
    path = Path(text)
    if not path.exists():
        close = " or ".join(get_close_matches(text, [*preset_names(), *recipe_names()], n=3))
        raise SpecError(
            f"grid: {text!r:.80} is neither a preset, a recipe nor a file; {f'perhaps {close}; ' if close else ''}"
            f"presets: {', '.join(preset_names())}; `routespace recipes` lists recipes"
        )
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
    """What GRID|RECIPE|BUNDLE|RUN names, read without torch.

    Attributes:
        grid: the routing grid.
        architecture, gates: what a recipe trains, or of a run's or bundle's network; None for a grid.
        usage: what the run measured, if it did. sizes: the same by the sizes of the images.
        head: kind and settings of that network's head, as the folder tells them, or the recipe's task; None for a
            grid, whose networks classify.
    """

    grid: RoutingGrid
    architecture: Architecture | None = None
    gates: GateSpec | None = None
    usage: Usage | None = None
    sizes: tuple[SizedUsage, ...] = ()
    head: Mapping[str, Any] | TaskSpec | None = None

    @property
    def has_own_head(self) -> bool:
        """Whether its head is one of which the grid says nothing: a detector's, or that of pixels."""
        if isinstance(self.head, TaskSpec):
            return self.head.target != "label"
        return self.head is not None and self.head.get("kind") not in PLAIN_HEADS

    def make_head(self, spec: GridSpec) -> Head:
        """A head like its own, with first weights.

        Args:
            spec: of the network that it stands on.
        """
        from routespace.nn.heads.kinds import make_head

        head = {"kind": PLAIN_HEADS[0 if spec.num_classes else 1]} if self.head is None else self.head
        return head.make(spec).head(spec) if isinstance(head, TaskSpec) else make_head(spec, head)


def load_subject(text: str) -> Subject:
    """A grid or a recipe by name or file, or a run's or bundle's network by its folder.

    Raises:
        SpecError, GridError, BundleError: see `load_grid`; a recipe that is not allowed, or a folder without a
            network.
    """
    folder = Path(text)
    if not is_folder(text):
        return _of_recipe(text) if _is_recipe(text) else Subject(load_grid(text))
    data = read_json(net_folder(folder) / file_names.NETWORK, wanted="a run or bundle folder")
    if not isinstance(data, dict):
        raise BundleError(f"{folder}: network.json is damaged; give a run or bundle folder")
    architecture, head = Architecture.from_json(data.get("architecture")), data.get("head")
    return Subject(
        grid=architecture.grid,
        architecture=architecture,
        gates=GateSpec.parse(data.get("gates"), name="gates"),
        usage=load_usage(folder, architecture.grid),
        sizes=sizes_in(folder / file_names.USAGE, architecture.grid),
        head=head if isinstance(head, dict) else None,
    )


def is_folder(text: str) -> bool:
    """Whether a folder is meant; one of pictures, such as `photos`, does not hide the recipe of its name."""
    folder = Path(text)
    named = text in recipe_names() or text in preset_names()
    return folder.is_dir() and not (named and not any((folder / name).exists() for name in OWN))


def _is_recipe(text: str) -> bool:
    return text in recipe_names() or text.lower().endswith(RECIPE_FILES)


def _of_recipe(text: str) -> Subject:
    recipe = load_recipe(text)
    architecture = recipe.architecture()
    return Subject(architecture.grid, architecture, recipe.gates, head=recipe.task)


def load_usage(folder: Path, grid: RoutingGrid) -> Usage | None:
    """What a run measured on validation; None where there is no `usage.json`."""
    path = folder / file_names.USAGE
    return usage_from_json(read_json(path, wanted=USAGE_FILE), grid) if path.exists() else None


def sizes_in(path: Path, grid: RoutingGrid) -> tuple[SizedUsage, ...]:
    """What images of each size used, from a usage file; nothing where there is none."""
    return sizes_from_json(read_json(path, wanted=USAGE_FILE), grid) if path.exists() else ()


def require_routed(path: Path) -> None:
    """Raise SpecError unless a path is that of a routed run or bundle: others compute every token."""
    if path.is_file():
        raise SpecError(
            f"picture: {path.name} is an exported file and computes every token; give the run or bundle"
        )
    found = load_subject(str(path))
    if found.architecture is None or found.architecture.is_static:
        raise SpecError("picture: the network is static and computes every token; give a routed one")
