"""Recipe: everything that fixes a training run, as one frozen value; YAML in and out.

    recipe = Recipe.from_yaml(text)
    recipe = recipe.override({"train.epochs": 5, "grid.max_down": 16})
    recipe.architecture(), recipe.budget_macs(), recipe.hash

Reading a recipe imports no torch, so that the command line answers at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, field_validator, model_validator

from routespace.checked import checked
from routespace.errors import RoutespaceError, SpecError
from routespace.files import read_text
from routespace.grid.architecture import Architecture, Routing
from routespace.grid.families.base import Family
from routespace.grid.families.lookup import allow_families
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.resources import RESOURCES
from routespace.grid.spec import GridSpec
from routespace.preprocess import Preprocess
from routespace.train.recipe.annotated import AnnotatedSpec
from routespace.train.recipe.base import base_macs, plain_spec
from routespace.train.recipe.changes import changed_data
from routespace.train.recipe.data import DigitsSpec
from routespace.train.recipe.data_kinds import DataSpec, of_other_kind, settled
from routespace.train.recipe.gating import NO_CHOICE, check_gating
from routespace.train.recipe.identity import recipe_hash
from routespace.train.recipe.parts import BudgetSpec, TrainSpec
from routespace.train.recipe.phases import check_clock, check_phases, phase_changes
from routespace.train.recipe.searching import SearchSpec
from routespace.train.recipe.teaching import check_teacher
from routespace.train.recipe.yaml import parse_assignments, read_yaml, write_yaml
from routespace.train.tasks.kinds import AnyTask, ClassifySpec, grid_defaults
from routespace.values import Value, fields_at, unknown_field

__all__ = ["BudgetSpec", "DataSpec", "Recipe", "SearchSpec", "TrainSpec", "parse_assignments"]


class Recipe(Value):
    """A training run as a value.

    Args:
        name: what it is called in reports.
        seed: of weights, shuffling, gate noise and the digits' training scenes.
        grid: the routing grid; in YAML also `{preset: dit_b2, …}` with fields that replace the preset's.
        routing: `both`, `depth`, `scale`, `none` (see Architecture.routed), or `static`, a plain staircase.
        split: transformer layers per rate of a static staircase; None for equal shares.
        gates: how gated edges decide.
        budget, data, train: see their specs.
        task: what is learned, by its name, or a mapping with `kind` and what else the task has.
        search: what a study varies; None when the recipe is not made for one.

    Raises:
        SpecError: through `parse`, `from_yaml` and `override`, one line that names the dotted field.
    """

    name: Annotated[str, Field(min_length=1, max_length=100)]
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    task: AnyTask = ClassifySpec()
    grid: GridSpec
    routing: Literal[Routing, "static"] = "both"
    split: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    gates: GateSpec = GateSpec()
    budget: BudgetSpec = BudgetSpec()
    data: Annotated[DataSpec, Discriminator("kind")] = DigitsSpec()
    train: TrainSpec = TrainSpec()
    search: SearchSpec | None = None

    @field_validator("data", mode="before")
    @classmethod
    def _settle_data(cls, data: Any) -> Any:
        return settled(data)

    @field_validator("name")
    @classmethod
    def _is_no_path(cls, name: str) -> str:
        if name.strip() != name or name.startswith(".") or set(name) & set("/\\\0"):
            raise ValueError("it becomes a folder's name: leave out slashes, a dot in front, and spaces around it")
        return name

    @model_validator(mode="before")
    @classmethod
    def _grid_of_task(cls, data: Any) -> Any:
        """What a task asks of the grid, where the recipe does not say otherwise."""
        grid = data.get("grid") if isinstance(data, Mapping) else None
        if not isinstance(grid, Mapping) or "task" not in data:
            return data
        return {**data, "grid": {**grid_defaults(data["task"]), **grid}}

    @model_validator(mode="before")
    @classmethod
    def _start_on_staircase(cls, data: Any) -> Any:
        """Pretrained weights make the staircase a trained network: training starts there unless told otherwise."""
        train = data.get("train") if isinstance(data, Mapping) else None
        if not isinstance(train, Mapping) or train.get("weights") is None or "start" in train:
            return data
        if train.get("mode") == "sandwich":
            return data
        gates = data.get("gates", {})
        kind = gates.get("kind") if isinstance(gates, Mapping) else getattr(gates, "kind", None)
        return {**data, "train": {**train, "start": "open" if kind == "tanh" else "staircase"}}

    @model_validator(mode="after")
    def _check(self) -> Self:
        grid = self.grid
        check_gating(self.train, self.gates, self.budget, routing=self.routing, split=self.split)
        self.task.check(grid)
        self.task.check_gates(self.gates, routing=self.routing)
        self.data.check(
            grid.image_size, channels=grid.in_channels, classes=self.num_classes, target=self.task.target
        )
        if isinstance(self.data, AnnotatedSpec) and self.task.target != "label":
            self.data.check_sides(grid.least_image_px)
        check_teacher(self.train, self.gates, self.task, routing=self.routing)
        if self.budget.wanted and self.budget.macs is None and self.budget.of == "base":
            _ = plain_spec(self.grid)
        check_clock(self.train, self.data.workers)
        check_phases(self.train, self.gates, self.routing)
        for number in range(len(self.train.phases)):
            try:
                _ = self.phase(number)
            except SpecError as error:
                raise ValueError(f"train.phases: number {number + 1}: {error}") from error
        for section in ("space", "overrides"):
            for field in getattr(self.search, section) if self.search else ():
                _check_field(f"search.{section}", field)
                self._check_kind(f"search.{section}", field)
        return self

    def _check_kind(self, where: str, field: str) -> None:
        section, _, name = field.partition(".")
        if section == "data" and name and name not in type(self.data).model_fields:
            raise ValueError(f"{where}.data.{of_other_kind(name, self.data.kind)}")

    @classmethod
    def parse(cls, data: Any, *, name: str = "", families: Iterable[Family] = ()) -> Self:
        """Validate a mapping.

        Args:
            data: field → content, as YAML gives it.
            name: what errors put before the field.
            families: of your own, which the recipe may name.

        Raises:
            SpecError: one line that names the dotted field.
        """
        with allow_families(*families):
            return super().parse(data, name=name)

    @classmethod
    @checked
    def from_yaml(cls, text: str, *, families: Iterable[Family] = ()) -> Self:
        """Read YAML text; `families` of your own may be named in it. Raises SpecError naming the line or field."""
        return cls.parse(read_yaml(text), families=families)

    @classmethod
    @checked
    def read(cls, path: Path | str) -> Recipe:
        """Read a YAML file; raises SpecError naming the file, and the line or the field."""
        text = read_text(path, wanted="a recipe's YAML file", error=SpecError)
        try:
            return cls.from_yaml(text)
        except RoutespaceError as error:
            raise SpecError(f"{path}: {error}") from error

    def to_data(self) -> dict[str, Any]:
        """Every field, defaults too, as JSON data: a run's recipe stays what it was when defaults change."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """YAML that `from_yaml` reads back to an equal recipe."""
        return write_yaml(self.to_data())

    @checked
    def override(self, changes: Mapping[str, Any]) -> Recipe:
        """A recipe with some dotted fields replaced.

        `grid.preset` replaces the grid but for image size, channels, classes and outputs. A lower
        `grid.max_down` keeps the finest of what the grid lists per rate, fewer `grid.layers` the first of what it
        lists per layer. `data.kind` keeps what the former kind of data and the new one both have. `train.weights`
        sets `train.start` to `staircase`, where the pretrained network is, unless that is given along with it.

        Args:
            changes: such as {"train.epochs": 5, "gates.rows": "layer"}; a whole section takes a mapping.

        Raises:
            SpecError: an unknown field, or a value that it does not allow.
        """
        with allow_families(self.grid.family):
            return Recipe.parse(changed_data(self.to_data(), changes, check=partial(_check_field, "set")))

    def phase(self, number: int) -> Recipe:
        """The plain recipe of one phase's own stretch.

        Args:
            number: from 0; after those of `train.phases` comes the recipe's own training.
        """
        if not self.train.phases:
            return self
        return self.override(phase_changes(self.train, self.budget, number, base_macs=self.base_macs()))

    def architecture(self) -> Architecture:
        """The part of the grid that is trained.

        Raises:
            GridError: the split does not fit, or an output is not reached.
        """
        grid = RoutingGrid(self.grid)
        if self.routing == "static":
            return Architecture.staircase(grid, self.split)
        return Architecture.routed(grid, self.routing)

    @property
    def is_gated(self) -> bool:
        """Whether the routing leaves anything to decide."""
        return self.routing not in NO_CHOICE

    @property
    def num_classes(self) -> int:
        """Classes that the task tells apart."""
        return self.task.classes_in(self.grid)

    def base_macs(self) -> int:
        """MACs of one image through what `budget.of` names: the 1 of every reported ratio."""
        return base_macs(self.grid, self.budget.of)

    def budget_macs(self) -> int | None:
        """The target in MACs of one image; None without one, or where nothing is gated.

        After a sandwich training it is what is extracted.
        """
        if not self.budget.wanted or not self.is_gated:
            return None
        if self.budget.macs is not None:
            return self.budget.macs
        assert self.budget.ratio is not None
        return round(self.budget.ratio * self.base_macs())

    def require_search(self) -> SearchSpec:
        """What a study varies; raises SpecError when the recipe varies nothing."""
        if self.search is None or not self.search.space:
            raise SpecError(
                f"search.space: recipe {self.name!r} varies nothing; "
                f"give fields to search, such as search.space: {{budget.ratio: [0.3, 0.5, 0.7]}}"
            )
        return self.search

    @property
    def preprocess(self) -> Preprocess:
        """How evaluation feeds the network: whole pictures, where their objects or pixels are to be found."""
        fed = self.data.preprocess(self.grid.image_size, self.grid.in_channels)
        return fed if self.task.target == "label" else fed.inside(multiple=self.grid.max_down)

    @cached_property
    def hash(self) -> str:
        """Twelve hex digits, equal for equal recipes on every machine: where the data lies does not count."""
        return recipe_hash(self.to_data())


def _check_field(where: str, dotted: str) -> None:
    """Raise SpecError unless `dotted` names a field of a recipe."""
    head, _, name = dotted.rpartition(".")
    allowed = fields_at(Recipe, tuple(head.split(".")) if head else ())
    if head == "search.limits":  # a mapping, no section of fixed fields
        allowed = list(RESOURCES)
    if allowed is None or name not in allowed:
        prefix = "" if where == "set" else f"{where}: "
        if allowed:
            raise SpecError(f"{prefix}{dotted}: {unknown_field(name, allowed)}")
        raise SpecError(f"{prefix}{dotted}: {unknown_field(dotted.partition('.')[0], Recipe.model_fields)}")
