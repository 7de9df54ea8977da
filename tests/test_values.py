"""Values: every bad field of every public value is one SpecError, in the field's own words and in no others."""

import copy
import json
import pickle
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Discriminator, Field, model_validator

import routespace
from routespace.deploy.bundle import Card, Provenance
from routespace.deploy.latency.device import MeasuredDevice
from routespace.deploy.latency.parts import PartTime
from routespace.deploy.latency.table import LatencyTable, Subnet
from routespace.errors import RoutespaceError, SpecError
from routespace.grid.gate_spec import GateSpec
from routespace.grid.spec import GridSpec
from routespace.preprocess import Preprocess
from routespace.train.recipe.data_kinds import SPECS
from routespace.train.recipe.parts import BudgetSpec, TrainSpec
from routespace.train.recipe.recipe import Recipe
from routespace.train.recipe.searching import Range, SearchSpec
from routespace.train.tasks.kinds import ClassifySpec
from routespace.values import Value, fields_at

RECIPE_PARTS = (BudgetSpec, *SPECS.values(), TrainSpec, SearchSpec, Range, ClassifySpec)
VALUES = (
    *(GridSpec, GateSpec, Recipe, *RECIPE_PARTS),
    *(Card, Provenance, LatencyTable, Subnet, PartTime, MeasuredDevice, Preprocess),
)
PYDANTIC = ("constrained", "literal[", "tuple[", "function-", "Input should", "validation error", "Value error")


class Square(Value):
    kind: Literal["square"] = "square"
    side: Annotated[int, Field(ge=0)] = 0


class Circle(Value):
    kind: Literal["circle"] = "circle"
    radius: float | None = None


class Drawing(Value):
    shape: Annotated[Square | Circle, Discriminator("kind")] = Square()
    sizes: Annotated[int, Field(strict=True, ge=1)] | tuple[Annotated[int, Field(strict=True, ge=1)], ...] = 1
    columns: Literal["all"] | tuple[Annotated[int, Field(strict=True, ge=0)], ...] = "all"
    named: dict[str, Square] = {}
    pair: tuple[int, float] = (1, 2)
    more: Square | None = None

    @model_validator(mode="after")
    def _check(self) -> "Drawing":
        if self.sizes == 7:
            raise ValueError("sizes: 7 is never right; give 8")
        return self


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value.__name__)
def test_an_unknown_field_is_a_routespace_error(value):
    assert issubclass(value, Value)
    field = {"no_such_field": 1}
    for make in (
        lambda: value(**field),
        lambda: value.parse(field),
        lambda: value.model_validate(field),
        lambda: value.model_validate_json(json.dumps(field)),
    ):
        with pytest.raises(RoutespaceError) as caught:
            make()
        assert isinstance(caught.value, SpecError)
        assert "\n" not in str(caught.value)
        assert not any(word in str(caught.value) for word in PYDANTIC)


def test_every_public_value_is_one():
    public = [getattr(routespace, name) for name in routespace.__all__]
    models = [value for value in public if isinstance(value, type) and hasattr(value, "model_fields")]
    assert models
    assert all(issubclass(value, Value) for value in models)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"foo": 1}, "foo: unknown field; allowed: shape, sizes, columns, named, pair, more"),
        ({"sizes": 0}, "sizes: 0 is not allowed; give at least 1, or a list"),
        ({"sizes": (4, 0)}, "sizes.1: 0 is not allowed; give at least 1"),
        ({"sizes": "x"}, "sizes: 'x' is not allowed; give a whole number, or a list"),
        ({"sizes": 7}, "sizes: 7 is never right; give 8"),
        ({"columns": -1}, "columns: -1 is not allowed; give 'all', or a list"),
        ({"columns": [-1]}, "columns.0: -1 is not allowed; give at least 0"),
        (
            {"shape": {"kind": "square", "sides": 1}},
            "shape.sides: unknown field; perhaps side; allowed: kind, side",
        ),
        ({"shape": {"kind": "square", "side": -1}}, "shape.side: -1 is not allowed; give at least 0"),
        (
            {"shape": {"kind": "star"}},
            "shape: {'kind': 'star'} is not allowed; give 'kind' one of 'square', 'circle'",
        ),
        ({"shape": {}}, "shape: {} is not allowed; give a mapping with 'kind'"),
        ({"named": {"a.b": {"side": -1}}}, "named.a.b.side: -1 is not allowed; give at least 0"),
        ({"named": {"a": {"length": 1}}}, "named.a.length: unknown field; allowed: kind, side"),
        ({"pair": (1,)}, "pair.1: missing; it must be given"),
        ({"two\nlines": 1}, r"'two\nlines': unknown field; allowed: shape, sizes, columns, named, pair, more"),
        ({"named": {"a\n": {"side": -1}}}, r"named.'a\n'.side: -1 is not allowed; give at least 0"),
        ({"more": 3}, "more: 3 is not allowed; give a mapping"),
        ({"more": {"side": 1.5}}, "more.side: 1.5 is not allowed; give a whole number"),
    ],
)
def test_a_line_names_fields_and_what_is_allowed(fields, line):
    with pytest.raises(SpecError) as constructed:
        Drawing(**fields)
    with pytest.raises(SpecError) as parsed:
        Drawing.parse(fields)
    assert str(constructed.value) == str(parsed.value) == line


def test_a_name_stands_before_the_field():
    with pytest.raises(SpecError, match=r"^drawing\.more\.side: -1 is not allowed"):
        Drawing.parse({"more": {"side": -1}}, name="drawing")
    with pytest.raises(SpecError, match=r"^drawing: None is not allowed; give a mapping"):
        Drawing.parse(None, name="drawing")
    with pytest.raises(SpecError, match=r"^Drawing: 3 is not allowed; give a mapping"):
        Drawing.parse(3)


def test_values_are_copied_pickled_and_compared_as_pydantic_does():
    drawing = Drawing(sizes=(1, 2), shape=Circle(radius=2), more={"side": 3})
    assert copy.deepcopy(drawing) == pickle.loads(pickle.dumps(drawing)) == drawing
    assert drawing.model_copy(update={"sizes": 3}).sizes == 3
    assert Drawing.parse(drawing.model_dump(mode="json")) == drawing
    assert Drawing.parse({"more": Square(side=3), "sizes": [1, 2], "shape": Circle(radius=2)}) == drawing


def test_sections_tell_their_fields():
    assert fields_at(Recipe, ()) == list(Recipe.model_fields)
    assert fields_at(Recipe, ("budget",)) == list(BudgetSpec.model_fields)
    assert "preset" in fields_at(Recipe, ("grid",))
    assert fields_at(Recipe, ("grid", "layers")) is None
    assert fields_at(Drawing, ("shape",)) == ["kind", "side", "radius"]


def test_errors_inside_of_a_recipe_name_the_whole_field():
    for data, start in [
        ({"grid": {"layers": 2, "foo": 1}}, "grid.foo: unknown field; allowed: layers, "),
        ({"grid": {"layers": 2, "depths": 0}}, "grid.depths: 0 is not allowed; give at least 1, or a list"),
        ({"grid": {"layers": 2, "depths": [1]}}, "grid.depths: 1 numbers for 2 layers"),
        ({"grid": {"preset": "b9"}}, "grid.preset: 'b9' is not known"),
        ({"grid": {}}, "grid.layers: missing"),
        ({"gates": {"rows": "tokn"}, "grid": {"layers": 2}}, "gates.rows: 'tokn' is not allowed; give 'layer', "),
        ({"grid": {"layers": 2}, "search": {"space": {"train.lr": {"low": 2, "high": 1}}}},
         "search.space.train.lr.low: 2 must be"),
    ]:  # fmt: skip
        with pytest.raises(SpecError) as caught:
            Recipe.parse({"name": "x"} | data)
        assert str(caught.value).startswith(start)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--depths", 0), ("depths: 0 is not allowed; give at least 1",)),
        (("--depths", "1,0,1,1"), ("depths.1: 0 is not allowed; give at least 1",)),
        (("--embed-layers", -1), ("embed_layers.0: -1 is not allowed; give at least 0",)),
        (("--embed-layers", "all,1"), ("embed_layers", "numbers")),
        (("--widths", "0,1,1,1"), ("widths.0: 0 is not allowed; give at least 1",)),
        (("--outputs", "all"), ("outputs: 'all' is not allowed; give 'coarsest' or 'pyramid'",)),
    ],
)
def test_the_command_line_speaks_of_fields(options, words):
    from typer.testing import CliRunner

    from routespace.cli.app import app

    result = CliRunner().invoke(app, ["build", "--layers", "4", *map(str, options)])
    assert result.exit_code == 2
    assert all(word in result.stderr for word in words)
    assert not any(word in result.stderr for word in PYDANTIC)


def test_a_value_does_not_change_and_says_so():
    recipe = routespace.load_recipe("digits_tiny")
    with pytest.raises(SpecError, match="seed: a Recipe does not change; make another one with this value"):
        recipe.seed = 3
    with pytest.raises(SpecError, match="epochs: a TrainSpec does not change"):
        recipe.train.epochs = 3
    with pytest.raises(SpecError, match="nosuch: a Recipe does not change"):
        recipe.nosuch = 3
    assert recipe == routespace.load_recipe("digits_tiny")


def test_a_path_is_as_good_as_its_text():
    recipe = routespace.load_recipe("digits_tiny").override({"search": None})
    for changes in (
        {"data.kind": "folder", "data.root": Path("photos")},
        {"data": {"kind": "folder", "root": Path("photos")}},
    ):
        found = recipe.override(changes)
        assert found.data.root == "photos"
        assert found == recipe.override({"data.kind": "folder", "data.root": "photos"})
    assert recipe.override({"train.weights": Path("a") / "b.pth"}).train.weights == "a/b.pth"
