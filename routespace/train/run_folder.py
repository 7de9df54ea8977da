"""Run folders: what may be written where, and what a run that was stopped must find again.

Asking needs no torch: a folder that cannot be used is told before anything is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from routespace.errors import BundleError, SpecError
from routespace.files import read_json, replaced_folder, require_place, write_json, write_text
from routespace.grid.architecture import Architecture
from routespace.grid.families.lookup import allow_families
from routespace.grid.gate_spec import GateSpec
from routespace.grid.spec import GridSpec
from routespace.grid.usage import USAGE_FORMAT
from routespace.train.recipe.data_kinds import LOCATIONS
from routespace.train.recipe.recipe import Recipe

if TYPE_CHECKING:
    from routespace.nn.task_net import TaskNet

RESULT = "result.json"
FORMAT = "routespace.run/1"
GIVEN = "given"  # in architecture.json: whether the training started from a given network


def with_init(recipe: Recipe, init: TaskNet | None) -> tuple[Recipe, Architecture]:
    """The recipe and architecture to train; a given network's grid and gates take the recipe's place."""
    if init is None:
        return recipe, recipe.architecture()
    return fine_tuning(recipe, init.spec, init.gate_spec), init.architecture


def fine_tuning(recipe: Recipe, grid: GridSpec, gates: GateSpec) -> Recipe:
    """The recipe with a given network's grid and gates, which are neither held nor set to a start."""
    if recipe.budget.of == "base" and grid.size is None:
        raise SpecError("budget.of: 'base' needs grid.size, which the given network lacks; set 'staircase'")
    parts = {"grid": grid.model_dump(mode="json"), "gates": gates.model_dump(mode="json")}
    with allow_families(grid.family):
        return recipe.override({**parts, "budget.open_frac": 0.0, "train.start": "open"})


def checkpoint_path(out: Path) -> Path:
    """Where a run keeps what it needs to go on."""
    return out / "checkpoint" / "state.pt"


def refuse_existing(out: Path) -> None:
    """Raise BundleError unless `out` is empty or not there: nothing is overwritten silently."""
    if (out / RESULT).exists():
        raise BundleError(f"{out}: is a finished run; choose another --out, or remove it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        hint = "go on with --resume, or " if (out / "recipe.yaml").exists() else ""
        raise BundleError(f"{out}: exists and is not empty; {hint}choose another --out")
    if not out.exists():
        require_place(out)


def resumable(
    out: Path, recipe: Recipe, architecture: Architecture, *, from_init: bool
) -> tuple[Recipe, Architecture]:
    """The recipe and architecture of the run in `out`, which must be the given ones."""
    if not (out / "recipe.yaml").exists():
        raise BundleError(f"{out}: no run to resume; leave --resume out, or give the folder of one")
    try:
        saved = Recipe.from_yaml((out / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, SpecError) as error:
        raise BundleError(f"{out / 'recipe.yaml'}: cannot be read ({error!s:.80})") from error
    data = read_json(out / "architecture.json", wanted="the folder of a run")
    trained = Architecture.from_json(data)
    if data.get(GIVEN) and not from_init:
        recipe, architecture = fine_tuning(recipe, saved.grid, saved.gates), trained
    old, new = without_places(saved), without_places(recipe)
    differing = [key for key in old if old[key] != new[key]]
    if trained != architecture:
        differing.append("architecture")
    if differing:
        raise BundleError(f"{out}: is a run of another recipe ({', '.join(differing)}); choose another --out")
    return recipe, trained


def without_places(recipe: Recipe) -> dict[str, Any]:
    """The recipe's fields, but for where its data lies: that may have been moved."""
    data = recipe.to_data()
    return data | {"data": {name: value for name, value in data["data"].items() if name not in LOCATIONS}}


def start_folder(out: Path, recipe: Recipe, architecture: Architecture, *, given: bool, anew: bool) -> None:
    """Make the folder with recipe.yaml and architecture.json; a resumed run's recipe may tell of moved data."""
    if anew:
        write_json(out / "architecture.json", architecture.to_json() | {GIVEN: given})
    write_text(out / "recipe.yaml", recipe.to_yaml())


def save_final(out: Path, net: TaskNet, usage: dict[str, Any], result: dict[str, Any]) -> None:
    """net/, usage.json and, last, result.json: the folder is finished when that is there."""
    from routespace.nn.weights import save_net

    with replaced_folder(out / "net") as partial:
        save_net(net, partial)
    data = {"format": USAGE_FORMAT, "grid": net.architecture.grid.hash, "edges": usage}
    write_json(out / "usage.json", data)
    write_json(out / RESULT, result)
