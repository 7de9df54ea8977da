"""Training that starts from a given network: what of a recipe holds, what the network decides, what is refused.

The network keeps its grid, its gates and what of the grid it has; the image size and the number of classes may be
others. A field that was asked for holds, or is refused in a line. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Protocol

from routespace.errors import GridError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.families.lookup import allow_families
from routespace.grid.gate_spec import SHAPING, GateSpec
from routespace.grid.spec import GridSpec
from routespace.train.recipe.changes import PRESET_KEEPS
from routespace.train.recipe.recipe import Recipe

MAY_DIFFER = ("image_size", "num_classes")  # what no weight of the backbone depends on
OF_CLASSIFIERS = "grid.num_classes"  # where a recipe says how many classes an image may be of
SIZE_SETS = ("widths", "heads", "mlp_ratios")
OF_TRAINED_GATES = ("threshold", "openness")  # calibration moves the one, and only new gates begin with the other
SHOWN_FIELDS = 4
OF_NEW_NETWORKS = (("budget", "open_frac"), ("train", "start"), ("train", "weights"), ("train", "phases"))


class Given(Protocol):
    """What is asked of a network that training starts from."""

    @property
    def architecture(self) -> Architecture: ...

    @property
    def gate_spec(self) -> GateSpec: ...


class Fitted(NamedTuple):
    """A recipe fitted to a network.

    Attributes:
        recipe: with the network's grid and gates, but for what was asked for.
        architecture: the network's, in that grid.
        lines: what is not as the recipe has it, for people.
    """

    recipe: Recipe
    architecture: Architecture
    lines: tuple[str, ...] = ()


def fit_to(
    recipe: Recipe, net: Given, *, asked: Collection[str] | None = None, classes: int | None = None
) -> Fitted:
    """Fit a recipe to the network that its training is to start from.

    Args:
        recipe: what is to be trained.
        net: the network.
        asked: dotted fields that were set on purpose, by `--set` for example: each holds or is refused. None takes
            all of `grid` and `gates` for set, but for the gates' threshold and openness, which are the network's.
        classes: of the data, where their number (`grid.num_classes`, or a task's own field) was not asked for.

    Raises:
        SpecError: a field that was asked for cannot hold.
    """
    architecture, gates = net.architecture, net.gate_spec
    _check_asked(recipe, architecture, asked)
    field = recipe.task.classes_field
    of_grid = classes if field == OF_CLASSIFIERS else None
    grid = _fit_grid(recipe.grid, architecture.spec, _asked_in("grid", recipe, asked), of_grid)
    if field != OF_CLASSIFIERS:
        grid = _without_classifier(recipe, grid)
    if recipe.budget.of == "base" and grid.size is None:
        raise SpecError("budget.of: 'base' needs grid.size, which the given network lacks; set 'staircase'")
    if not architecture.is_static:
        gates = _fit_gates(recipe.gates, gates, _asked_in("gates", recipe, asked))
    fields = recipe.train.model_dump(mode="json")
    with allow_families(grid.family):
        fitted = recipe.override(
            {
                "grid": grid.model_dump(mode="json"),
                "gates": gates.model_dump(mode="json"),
                "budget.open_frac": recipe.budget.open_frac if "budget.open_frac" in (asked or ()) else 0.0,
                **({field: classes} if classes is not None and of_grid is None else {}),
                "train.start": "open",
                "train.weights": None,
                "train.phases": fields["phases"] if "train.phases" in (asked or ()) else [],
            }
        )
    _check_routing(fitted, architecture, asked)
    lines = _lines(recipe, fitted, architecture)
    return Fitted(fitted, Architecture(grid, dict(architecture.edges)), lines)


def keep_fitted(recipe: Recipe, saved: Recipe, asked: Collection[str] | None) -> Recipe:
    """The recipe of a run that is resumed, with what it once took from its network, but for what is asked now."""
    data, old = recipe.to_data(), saved.to_data()
    for section in ("grid", "gates"):
        names = _asked_in(section, recipe, asked)
        own = data[section]
        data[section] = old[section] | {name: own[name] for name in names if name in own}
    for section, name in OF_NEW_NETWORKS:
        if f"{section}.{name}" not in (asked or ()):
            data[section][name] = old[section][name]
    with allow_families(saved.grid.family):
        return Recipe.parse(data)


def same_network(net: Given, architecture: Architecture) -> bool:
    """Whether a network has the edges and blocks of an architecture, for whatever images and classes."""
    ours, theirs = (
        {name: value for name, value in spec.canonical().items() if name not in MAY_DIFFER}
        for spec in (net.architecture.spec, architecture.spec)
    )
    return ours == theirs and net.architecture.edges == architecture.edges


def _asked_in(section: str, recipe: Recipe, asked: Collection[str] | None) -> set[str]:
    """The fields of `grid` or `gates` that are asked for."""
    every = set(getattr(recipe, section).model_dump())
    if asked is None:
        return every - set(OF_TRAINED_GATES) if section == "gates" else every
    names = {name.partition(".")[2] for name in asked if name.startswith(f"{section}.")}
    if section in asked:
        names |= every
    if "preset" in names:
        names |= every - set(PRESET_KEEPS)
    return names & every


def _check_asked(recipe: Recipe, architecture: Architecture, asked: Collection[str] | None) -> None:
    """Raise SpecError for what means nothing to a network that exists."""
    if recipe.train.weights is not None and (asked is None or "train.weights" in asked):
        raise SpecError(
            f"train.weights: {recipe.train.weights!r:.60} was asked; the given network has its own; leave it out"
        )
    if asked is None:
        return
    if "train.start" in asked and recipe.train.start != "open":
        raise SpecError(
            f"train.start: {recipe.train.start!r} was asked, which is for new gates; the given network "
            f"keeps its own: leave it out"
        )
    if not architecture.is_static:
        return
    for name in sorted(asked):
        section, _, field = name.partition(".")
        if section == "gates" or (section == "budget" and field != "of"):
            value = getattr(getattr(recipe, section), field, True)
            if section == "gates" or value not in (None, 0, False):
                raise SpecError(
                    f"{name}: {value!s:.60} was asked, but the given network has no gates; leave it out, or "
                    f"give a network with gates"
                )


def _fit_grid(asked_for: GridSpec, given: GridSpec, wanted: set[str], classes: int | None) -> GridSpec:
    """The network's grid, with the image size and the number of classes that are wanted."""
    ours, theirs = asked_for.canonical(), given.canonical()
    for name in [name for name in asked_for.model_dump() if name in wanted and name not in MAY_DIFFER]:
        if any(ours.get(part) != theirs.get(part) for part in (SIZE_SETS if name == "size" else (name,))):
            raise SpecError(
                f"grid.{name}: {_shown(asked_for, name)} was asked, but the given network has "
                f"{_shown(given, name)}; leave it out, or train a new network"
            )
    changes = {name: getattr(asked_for, name) for name in MAY_DIFFER if name in wanted}
    if classes is not None:
        changes.setdefault("num_classes", classes)
    elif not given.num_classes:
        changes.setdefault("num_classes", asked_for.num_classes)
    if all(getattr(given, name) == value for name, value in changes.items()):
        return given
    return GridSpec.parse(given.model_dump(mode="json") | changes, name="grid", families=[given.family])


def _without_classifier(recipe: Recipe, grid: GridSpec) -> GridSpec:
    """The grid of a task that reads maps; raises SpecError where the network gives others than the task reads."""
    if grid.outputs != recipe.grid.outputs:
        raise SpecError(
            f"task: {recipe.task.kind!r} reads {recipe.grid.outputs} maps, and the given network gives "
            f"{grid.outputs}; start from its weights with train.weights instead"
        )
    if not grid.num_classes:
        return grid
    return GridSpec.parse(grid.model_dump(mode="json") | {"num_classes": 0}, name="grid", families=[grid.family])


def _fit_gates(asked_for: GateSpec, given: GateSpec, wanted: set[str]) -> GateSpec:
    """The network's way to decide, with what is asked for, as far as the weights of its gates allow."""
    if "openness" in wanted and asked_for.openness != given.openness:
        raise SpecError(
            f"gates.openness: {asked_for.openness} was asked, with which only new gates begin; leave it out"
        )
    changes = {name: getattr(asked_for, name) for name in GateSpec.model_fields if name in wanted}
    fitted = GateSpec.parse(given.model_dump() | changes, name="gates")
    if _weights(fitted) != _weights(given):
        name = next(name for name in SHAPING if getattr(fitted, name) != getattr(given, name))
        raise SpecError(
            f"gates.{name.removesuffix('_side')}: {getattr(fitted, name)!r} was asked, but the given network's "
            f"gates are of {getattr(given, name)!r}, with other weights; leave it out, or train a new network"
        )
    return fitted


def _weights(gates: GateSpec) -> tuple[object, ...]:
    """Equal for gates that have the same weights, meaning the same."""
    rows, columns = gates.gate_params(gates.rows, 1), gates.gate_params(gates.columns, 1, rows=False)
    told = (name for name in SHAPING if name not in ("rows", "columns", "selection", "context_side"))
    return rows, columns, *(getattr(gates, name) for name in told)


def _check_routing(recipe: Recipe, architecture: Architecture, asked: Collection[str] | None) -> None:
    """Raise SpecError when another part of the grid was asked for than the network has."""
    if asked is None and recipe.routing == "static" and not architecture.is_static:
        raise SpecError("routing: static was asked, but the given network has gates; extract a static part of it")
    for name in ("routing", "split"):
        if name not in (asked or ()):
            continue
        try:
            wanted: Mapping[str, str] | None = recipe.architecture().edges
        except GridError:
            wanted = None
        if wanted != architecture.edges:
            raise SpecError(
                f"{name}: {_shown(recipe, name)} was asked, but the given network keeps its own part of the "
                f"grid ({len(architecture.edges)} edges); leave it out, or train a new network"
            )


def _lines(recipe: Recipe, fitted: Recipe, architecture: Architecture) -> tuple[str, ...]:
    """What people must know of how the two became one."""
    lines, given = [], architecture.spec
    ours, theirs = recipe.grid.canonical(), fitted.grid.canonical()
    other = [name for name in theirs if name != "num_classes" and ours.get(name) != theirs[name]]
    if other:
        named = [f"{name} {_shown(fitted.grid, name)}" for name in other[:SHOWN_FIELDS]]
        more = ", …" if len(other) > SHOWN_FIELDS else ""
        lines.append(f"grid: the given network's in place of the recipe's: {', '.join(named)}{more}")
    if fitted.grid.image_size != given.image_size:
        sizes = [_shown(grid, "image_size") for grid in (fitted.grid, given)]
        lines.append(f"images: {sizes[0]} px; the given network is of {sizes[1]} px")
    if fitted.num_classes != recipe.num_classes and fitted.task.classes_field != OF_CLASSIFIERS:
        lines.append(f"{fitted.task.classes_field}: {fitted.num_classes}, as many as the data has")
    if fitted.grid.num_classes != given.num_classes and fitted.grid.num_classes:
        lines.append(
            f"head: new, for {fitted.grid.num_classes} classes; the given network has {given.num_classes}, "
            f"all but its head is kept"
        )
    kept = not architecture.is_static and _without(recipe.gates) != _without(fitted.gates)
    if kept:
        lines.append("gates: the given network's in place of the recipe's")
    return tuple(lines)


def _without(gates: GateSpec) -> dict[str, Any]:
    return gates.model_dump(exclude=set(OF_TRAINED_GATES))


def _shown(owner: Recipe | GridSpec, name: str) -> str:
    """A field's value as people write it: 96x96, [1, 2], both."""
    value: Any = getattr(owner, name, None)
    if name == "image_size":
        return f"{value[0]}x{value[1]}"
    return str(list(value) if isinstance(value, tuple) else value)[:60]
