"""What a study varies and wants: the `search` section of a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from routespace.errors import SpecError
from routespace.grid.resources import RESOURCES
from routespace.train.recipe.parts import Natural, Section, parse_count
from routespace.values import unknown_field

Sampler = Literal["tpe", "nsga2", "random"]  # Optuna's
Pruner = Literal["none", "median", "hyperband"]  # Optuna's
Scalar = bool | int | float | str | None
LARGEST = 2**53  # of a range's numbers, and of its values: studies keep them as floats, which tell no more apart


class Range(Section):
    """A range of numbers to search; whole ones when low, high and step all are.

    Args:
        low, high: ends, both included, up to 2^53.
        log: draw on a logarithmic scale.
        step: distance of neighbouring values.
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not -LARGEST <= self.low <= self.high <= LARGEST:
            raise ValueError(
                f"low: {self.low!s:.40} must be a number up to high {self.high!s:.40}, and neither beyond 2^53"
            )
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log: it needs low above 0 and no step")
        if self.step is not None and not 0 < self.step <= LARGEST:
            raise ValueError(f"step: {self.step!s:.40} must be above 0, and not beyond 2^53")
        if self.step is not None and self.high - self.low > LARGEST * self.step:
            raise ValueError(f"step: {self.step} is too small for {self.low} to {self.high}; give a larger one")
        return self

    @property
    def whole(self) -> bool:
        """True when its values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int | None)


Choices = Annotated[tuple[Scalar | tuple[Scalar, ...], ...], Field(min_length=1)]
RANGE, CHOICES = "range", "choices"


def _kind_of_space(value: Any) -> str:
    return RANGE if isinstance(value, dict | Range) else CHOICES


Values = Annotated[Annotated[Range, Tag(RANGE)] | Annotated[Choices, Tag(CHOICES)], Discriminator(_kind_of_space)]


def _read_limit(name: str, most: Any) -> int | float:
    """The most of a resource: a number above 0, and of what is counted also 12M or 1.2G."""
    if name not in RESOURCES:
        raise ValueError(f"{name}: {unknown_field(name, RESOURCES)}")
    counted = RESOURCES[name].terms is not None
    try:
        number = parse_count(most) if counted and isinstance(most, str) else most
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < math.inf:
        raise ValueError(f"{name}: {most!r:.40} is not allowed; give a number greater than 0")
    return number


def require_trials(number: int) -> None:
    """Raise SpecError unless a study can have so many trials."""
    if number < 1:
        raise SpecError(f"trials: {number} is not allowed; give at least 1")


class SearchSpec(Section):
    """What a study varies and what it wants.

    Args:
        space: dotted recipe field → a list of choices, or {low, high, log, step}.
        objectives: names of what counts: the task's metric (accuracy), or one of the table in
            `routespace/search/objectives.py` (macs, params, latency_ms, loss). None: the metric and macs.
        limits: resource → the most that one image, or the trained network, may take of it, gates included:
            `params`, `macs` (the trial's budget, or the whole network where it has none), `bytes`, `latency_ms`
            (as the latency table predicts it). Checked before anything is trained: a trial beyond one is not.
        trials: how many, when the command line does not say.
        sampler: optuna's.
        pruner: optuna's, which gives up a trial whose validation falls behind that of others after as many epochs;
            for a single objective that each epoch tells, such as accuracy.
        overrides: dotted recipe field → value of every trial, such as fewer epochs.
        latency_table: file of `routespace profile` for the trials' grid, which predicts `latency_ms` of an image;
            without one each trial's network is timed, image by image.
    """

    space: dict[str, Values]
    objectives: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    limits: dict[str, int | float] = {}
    trials: Natural = 20
    sampler: Sampler = "tpe"
    pruner: Pruner = "none"
    overrides: dict[str, Any] = {}
    latency_table: str | None = None

    @field_validator("limits", mode="before")
    @classmethod
    def _read_limits(cls, limits: Any) -> Any:
        if not isinstance(limits, Mapping):
            return limits  # pydantic says what is allowed
        return {name: _read_limit(str(name), most) for name, most in limits.items() if most is not None}

    @field_validator("objectives")
    @classmethod
    def _check_objectives(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and len(set(names)) < len(names):
            raise ValueError(f"{', '.join(names)}: one stands twice; name each objective once")
        return names
