"""Space: the fields that a recipe's `search.space` varies, as Optuna distributions.

    space = Space.of(recipe)
    changes = space.suggest(trial)          # {"grid.layers": 6, "grid.depths": [1, 1, 2, 2, 1, 1]}
    recipe.override(changes)

Optuna's categorical values must be primitive: a list among the choices travels as its JSON text.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from routespace.checked import checked
from routespace.errors import SpecError
from routespace.train.recipe.effects import require_effect
from routespace.train.recipe.recipe import Recipe
from routespace.train.recipe.searching import Range, SearchSpec

__all__ = ["Space"]

FIXED = ("name", "task", "search")  # a trial is named by its number, and a study does not search itself
PRESET = "grid.preset"  # not a field of GridSpec: a way to write one


@dataclass(frozen=True)
class Space:
    """What a study varies, as a value.

    Attributes:
        distributions: dotted recipe field → Optuna distribution.
        choices: dotted field → encoded choice → the choice as the recipe takes it (categorical fields).
    """

    distributions: Mapping[str, BaseDistribution]
    choices: Mapping[str, Mapping[Any, Any]]

    @classmethod
    @checked
    def of(cls, recipe: Recipe) -> Space:
        """Read `recipe.search.space`.

        Raises:
            SpecError: no space, a field that cannot be searched, or a choice that its field never allows.
                What only some combinations forbid is found when a trial draws it.
        """
        search = recipe.require_search()
        distributions: dict[str, BaseDistribution] = {}
        choices: dict[str, Mapping[Any, Any]] = {}
        for field, values in search.space.items():
            _check_field(recipe, field, values)
            if isinstance(values, Range):
                distributions[field] = _range(values)
            else:
                choices[field] = _encoded(field, values)
                distributions[field] = CategoricalDistribution(tuple(choices[field]))
        _check_effect(recipe, search)
        return cls(distributions, choices)

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Draw every field for a trial: dotted field → value, for `Recipe.override`."""
        return self.decode({name: _draw(trial, name, d) for name, d in self.distributions.items()})

    def decode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters → what the recipe takes; parameters of other fields are left out."""
        return {
            name: self.choices[name][params[name]] if name in self.choices else rounded(params[name])
            for name in self.distributions
            if name in params
        }

    def encode(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """Field values → Optuna's parameters; None when one is missing or lies outside the space."""
        params = {}
        for name, distribution in self.distributions.items():
            if name not in values:
                return None
            params[name] = _primitive(values[name])
            if not _contains(distribution, params[name]):
                return None
        return params

    def values_in(self, recipe: Recipe) -> dict[str, Any] | None:
        """The recipe's own point of the space, encoded; None when it lies outside."""
        data = recipe.to_data()
        found = {name: _look_up(data, name) for name in self.distributions if name != PRESET}
        return self.encode(found)

    @property
    def size(self) -> float:
        """Number of points; infinite where a float has no step."""
        return math.prod(_count(distribution) for distribution in self.distributions.values())

    def points(self) -> Iterator[dict[str, Any]]:
        """Every point of a finite space, encoded, in a fixed order."""
        names = list(self.distributions)
        for values in itertools.product(*(_values(self.distributions[name]) for name in names)):
            yield dict(zip(names, values, strict=True))


def _check_effect(recipe: Recipe, search: SearchSpec) -> None:
    """Raise SpecError for a field without which every trial would be the same."""
    try:
        require_effect(recipe.override(search.overrides), search.space, open_to=search.space)
    except SpecError as error:
        raise SpecError(f"search.space.{error}") from error


def _check_field(recipe: Recipe, field: str, values: Any) -> None:
    if field.split(".")[0] in FIXED:
        raise SpecError(f"search.space.{field}: cannot be searched; every trial shares {', '.join(FIXED)}")
    if recipe.search is not None and field in recipe.search.overrides:
        raise SpecError(f"search.overrides.{field}: is in search.space too; keep one of them")
    if field == PRESET:
        return  # an unknown preset is named by the trial that draws it
    values = _tried(values) if isinstance(values, Range) else values
    parameter = recipe.grid.family.parameters.get(field.removeprefix("grid."))
    if parameter is not None and field.startswith("grid."):
        for value in values:
            if value is not None:
                parameter.read(f"search.space.{field}", value)
        return
    info = _field_info(recipe, field)
    if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
        allowed = ", ".join(f"{field}.{name}" for name in info.annotation.model_fields)
        raise SpecError(f"search.space.{field}: is a section; name one of its fields: {allowed}")
    annotated: Any = Annotated[info.annotation, info]
    adapter: TypeAdapter[Any] = TypeAdapter(annotated)
    for value in values:
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise SpecError(
                f"search.space.{field}: {value!r:.60} is not allowed; {reason[0].lower()}{reason[1:]}"
            ) from error


def _tried(values: Range) -> tuple[int | float, ...]:
    """The ends of a range, and of one that is not of whole numbers one between: its field must allow that, too."""
    if values.whole or values.low == values.high:
        return values.low, values.high
    inner = values.low + (values.step or (values.high - values.low) / math.e)
    return (values.low, values.high, *([rounded(inner)] if inner < values.high else []))


def _field_info(recipe: Recipe, field: str) -> FieldInfo:
    """The pydantic field of a dotted name; `Recipe` has checked that it exists."""
    model: type[BaseModel] = Recipe
    *sections, name = field.split(".")
    if sections == ["data"]:  # a spec for each kind
        return type(recipe.data).model_fields[name]
    for section in sections:
        annotation = model.model_fields[section].annotation
        candidates = (annotation, *get_args(annotation))
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    if name not in model.model_fields:
        raise SpecError(f"search.space.{field}: family {recipe.grid.family} has none; search a field that it has")
    return model.model_fields[name]


def _range(values: Range) -> BaseDistribution:
    low, high, step = values.low, values.high, values.step
    if step is not None:
        # The last value that a step reaches; a hair more, as .1 + .2 is not .3.
        high = rounded(low + step * math.floor((high - low) / step + 1e-9))
    if values.whole:
        return IntDistribution(int(low), int(high), log=values.log, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=values.log, step=step)


def rounded(value: Any) -> Any:
    """A float without what steps leave in its last digits: .30000000000000004 is .3; others as they are."""
    return float(f"{value:.12g}") if isinstance(value, float) else value


def _encoded(field: str, values: tuple[Any, ...]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for value in values:
        key = _primitive(value)
        if key in found:
            raise SpecError(f"search.space.{field}: {value!r:.60} stands twice; give each choice once")
        found[key] = list(value) if isinstance(value, tuple) else value
    return found


def _primitive(value: Any) -> Any:
    return json.dumps(value, separators=(",", ":")) if isinstance(value, tuple | list) else value


def _draw(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(
        name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
    )


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        # A bool equals a number in Python, but is another choice.
        return any(type(value) is type(choice) and value == choice for choice in distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(distribution, IntDistribution) and not isinstance(value, int):
        return False
    if not distribution.low <= value <= distribution.high:
        return False
    steps = (value - distribution.low) / distribution.step if distribution.step else 0.0
    return abs(steps - round(steps)) < 1e-6


def _look_up(data: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        data = data[part] if isinstance(data, dict) else None
    return data


def _count(distribution: BaseDistribution) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if distribution.single():
        return 1
    step = distribution.step
    return math.inf if step is None else round((distribution.high - distribution.low) / step) + 1


def _values(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    count = _count(distribution)
    assert math.isfinite(count), "an endless range has no list of values"
    step = distribution.step or 0
    return [min(distribution.low + i * step, distribution.high) for i in range(int(count))]
