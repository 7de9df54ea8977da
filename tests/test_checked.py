"""Arguments of another kind: one line that names the argument, what was given and what is wanted."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import pytest
import torch
from tiny_grid import TINY_GRID
from torch import Tensor

import routespace
from routespace import (
    Architecture,
    Card,
    GridSpec,
    Predictor,
    RouteNet,
    Routes,
    RoutingGrid,
    SpecError,
    TaskNet,
    calibrate_threshold,
    derive,
    evaluate,
    evaluate_candidates,
    export,
    extract,
    load_bundle,
    load_recipe,
    measure_usage,
    save_bundle,
    select,
    train_recipe,
    verify,
)
from routespace.checked import checked
from routespace.values import Value

SPEC = GridSpec.parse(TINY_GRID)
GRID = RoutingGrid(SPEC)
FULL, STAIRS = Architecture.full(GRID), Architecture.staircase(GRID)
IMAGES = torch.zeros(2, 3, 32, 32)


@pytest.fixture(scope="module")
def net() -> TaskNet:
    return TaskNet.classifier(FULL).eval()


CASES: dict[str, tuple[Callable[[TaskNet], Any], str]] = {
    "a number of too many digits": (
        lambda net: derive(FULL, {}, macs=10**400),
        f"macs: 1{'0' * 59} was given; give a number",
    ),
    "a spec for a grid": (lambda net: Architecture.full(SPEC), "grid: a GridSpec was given; give a RoutingGrid"),
    "a name for a spec": (lambda net: RoutingGrid("dit_b2"), "spec: 'dit_b2' was given; give a GridSpec"),
    "a spec for an architecture": (
        lambda net: TaskNet.classifier(SPEC),
        "architecture: a GridSpec was given; give an Architecture",
    ),
    "a grid for an architecture": (
        lambda net: RouteNet(GRID),
        "architecture: a RoutingGrid was given; give an Architecture",
    ),
    "a dict for gates": (
        lambda net: TaskNet.classifier(FULL, {"rows": "token"}),
        "gates: a dict was given; give a GateSpec",
    ),
    "a net to derive": (
        lambda net: derive(net, {}, macs=1),
        "architecture: a TaskNet was given; give an Architecture",
    ),
    "a list of usage": (lambda net: derive(FULL, [], macs=1), "usage: a list was given; give a mapping"),
    "architecture first": (
        lambda net: extract(FULL, net),
        "net: an Architecture was given; give a RouteNet or a TaskNet",
    ),
    "swapped": (lambda net: verify(net, net, STAIRS), "architecture: a TaskNet was given; give an Architecture"),
    "one tensor": (
        lambda net: measure_usage(net, IMAGES),
        "batches: a Tensor was given; give a list or another iterable of Tensors",
    ),
    "one tensor to evaluate": (
        lambda net: evaluate(net, IMAGES),
        "loader: a Tensor was given; give a list or another iterable",
    ),
    "a folder to evaluate": (
        lambda net: evaluate(net, "photos"),
        "loader: 'photos' was given; give a list or another iterable",
    ),
    "one architecture": (
        lambda net: evaluate_candidates(net, STAIRS, [IMAGES]),
        "architectures: an Architecture was given; give a list of Architectures",
    ),
    "a text for MACs": (
        lambda net: calibrate_threshold(net, [IMAGES], "1M"),
        "target: '1M' was given; give a number",
    ),
    "a net to predict": (lambda net: Predictor(net), "path: a TaskNet was given; give a path or a text"),
    "one override": (
        lambda net: load_recipe("digits_tiny", "seed=3"),
        "overrides: 'seed=3' was given; give a list of texts",
    ),
    "the class Path": (
        lambda net: load_recipe(Path),
        "name_or_path: the class Path was given; give a text or a path",
    ),
    "a recipe's name": (
        lambda net: train_recipe("digits_tiny", "run"),
        "recipe: 'digits_tiny' was given; give a Recipe",
    ),
    "no folder": (lambda net: load_bundle(None), "folder: None was given; give a path or a text"),
    "folder first": (
        lambda net: save_bundle("small", net, Card.of(net)),
        "net: 'small' was given; give a RouteNet or a TaskNet",
    ),
    "an architecture to export": (
        lambda net: export(FULL, "x.onnx"),
        "net: an Architecture was given; give a RouteNet or a TaskNet",
    ),
    "scores first": (
        lambda net: select({}, GRID),
        "space: a dict was given; give a RoutingGrid or an Architecture",
    ),
    "a side that is a text": (
        lambda net: verify(net, STAIRS, net, image_size="64"),
        "image_size: '64' was given; give a tuple of whole numbers or a whole number",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_another_kind_is_refused_in_one_line(case, net):
    call, line = CASES[case]
    with pytest.raises(SpecError) as caught:
        call(net)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("photo.png", "a str was given; give normalised pixels (B, C, H, W)"),
        (np.zeros((1, 3, 32, 32), np.float32), "a ndarray was given"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "torch.uint8 was given"),
        (torch.zeros(3, 32, 32), "(3, 32, 32) does not fit; give (B, 3, H, W)"),
        (torch.zeros(32), "(32,) does not fit"),
        (torch.tensor(1.0), "() does not fit"),
    ],
)
def test_images_that_are_none(images, words, net):
    with pytest.raises(SpecError) as caught:
        net(images)
    assert str(caught.value).startswith(f"images: {words}")


@pytest.mark.parametrize(
    "batch", ["photo.png", np.zeros((1, 3, 32, 32)), [np.zeros((1, 3, 32, 32))], torch.zeros(3)]
)
def test_batches_without_images(batch, net):
    with pytest.raises(SpecError, match=r"^images: "):
        measure_usage(net, [batch])


class Wrong:
    """Of no kind that anybody wants."""


def public_calls() -> dict[str, Callable[..., Any]]:
    """Every public function, class method and constructor that takes something."""
    found = {}
    for name in routespace.__all__:
        value = getattr(routespace, name)
        if inspect.isfunction(value):
            found[name] = value
        elif isinstance(value, type) and not issubclass(value, Value | tuple | Exception | Routes):
            if "__init__" in vars(value) and not hasattr(value, "__dataclass_fields__"):
                found[name] = value
            for each, method in vars(value).items():
                if isinstance(method, classmethod) and not each.startswith("_"):
                    found[f"{name}.{each}"] = getattr(value, each)
    return {name: call for name, call in found.items() if not takes_any(call)}


def takes_any(call: Callable[..., Any]) -> bool:
    """Whether its first argument is data of a file, of any kind."""
    return next(iter(inspect.signature(call).parameters.values())).annotation == "Any"


@pytest.mark.parametrize("name", public_calls())
def test_every_public_function_looks_at_its_arguments(name):
    call = public_calls()[name]
    required = [
        each for each in inspect.signature(call).parameters.values() if each.default is inspect.Parameter.empty
    ]
    first = required[0].name
    with pytest.raises(SpecError, match=f"^{first}: a Wrong was given; give "):
        call(**{each.name: Wrong() for each in required})


def test_there_are_many():
    assert len(public_calls()) > 30


def test_wrappers_are_what_they_wrap(net):
    compiled = torch.compile(net, backend="eager")
    assert isinstance(extract(compiled, STAIRS), TaskNet)
    assert measure_usage(torch.nn.DataParallel(net), [IMAGES])


class Pair(NamedTuple):
    a: int
    b: str


Some = TypeVar("Some", Pair, int)
Report = Callable[[int], None]


@checked
def many(
    pair: Some,
    number: int = 1,
    share: float = 0.5,
    on: bool = False,
    path: Path | str = "x",
    names: Sequence[str] = (),
    batches: Iterable[Tensor | Sequence[Tensor]] = (),
    table: Mapping[str, float] | None = None,
    told: Report | None = None,
    word: Literal["a", "b"] = "a",
    anything: Any = None,
    *others: int,
    **more: int,
) -> str:
    """What it was given."""
    return f"{pair} {number} {share} {on} {others} {more}"


@pytest.mark.parametrize(
    "fine",
    [
        {"pair": Pair(1, "b")},
        {"number": np.int64(3), "share": np.float32(0.5), "on": np.bool_(True)},
        {"number": True, "share": 1, "on": 1},
        {"share": torch.tensor(0.5)},
        {"path": Path("x"), "names": ["a"], "table": {"a": 1}, "told": print},
        {"names": np.array(["a"])},
        {"batches": [torch.zeros(1)]},
        {"batches": [[torch.zeros(1)]]},
        {"batches": iter([torch.zeros(1)])},
        {"word": "b", "anything": Wrong(), "more": 3},
    ],
)
def test_what_is_of_the_kind_goes_through(fine):
    assert many(**{"pair": 1} | fine).startswith(str(fine.get("pair", 1)))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"pair": "1"}, "give a Pair or a whole number"),
        ({"word": "c"}, "word: 'c' was given; give 'a' or 'b'"),
        ({"word": ["a"]}, "word: a list was given; give 'a' or 'b'"),
        ({"number": 1.5}, "number: 1.5 was given; give a whole number"),
        ({"number": "1"}, "give a whole number"),
        ({"number": None}, "number: None was given"),
        ({"share": "half"}, "share: 'half' was given; give a number"),
        ({"on": "no"}, "on: 'no' was given; give True or False"),
        ({"on": None}, "give True or False"),
        ({"path": b"x"}, "give a path or a text"),
        ({"path": str}, "path: the class str was given"),
        ({"names": "abc"}, "give a list of texts"),
        ({"names": 3}, "names: 3 was given"),
        ({"names": iter("abc")}, "names: a str_ascii_iterator was given"),
        ({"batches": torch.zeros(1)}, "batches: a Tensor was given"),
        ({"table": [1]}, "table: a list was given; give a mapping"),
        ({"told": 3}, "told: 3 was given; give a function"),
    ],
)
def test_what_is_not_is_told(wrong, words):
    with pytest.raises(SpecError) as caught:
        many(**{"pair": 1} | wrong)
    assert words in str(caught.value)


def test_arguments_by_position_and_python_s_own_errors():
    assert many(1, 2, 0.5) == "1 2 0.5 False () {}"
    with pytest.raises(SpecError, match=r"^share: 'x' was given"):
        many(1, 2, "x")
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'pair'"):
        many()
    assert inspect.signature(many).parameters["share"].default == 0.5
    assert many.__doc__ == "What it was given."
