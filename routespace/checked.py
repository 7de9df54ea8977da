"""checked: a function that refuses arguments of another kind than its annotations name, before it does anything.

    @checked
    def full(cls, grid: RoutingGrid) -> Architecture: …

    Architecture.full(spec)      SpecError: grid: a GridSpec was given; give a RoutingGrid

Kinds alone are looked at. What a value holds is checked by the function itself, and of several things given at
once only whether they are several: one tensor where batches are wanted, or a text where names are, is one thing.
"""

from __future__ import annotations

import builtins
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin

from routespace.errors import SpecError

Function = TypeVar("Function", bound=Callable[..., Any])
Made = TypeVar("Made", bound=type)
WRAPPERS = ("_orig_mod", "module")  # where torch.compile and DataParallel keep the network that they wrap
NAMED = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)
# What the plain kinds ask of a value, so that numbers of numpy and torch are numbers too.
ASKED: dict[type, Callable[[Any], bool]] = {
    bool: lambda value: value is not None and hasattr(value, "__bool__"),
    int: lambda value: hasattr(value, "__index__"),
    float: lambda value: (hasattr(value, "__float__") or hasattr(value, "__index__")) and not _beyond(value),
    Path: lambda value: isinstance(value, os.PathLike),
}
WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    Path: "a path",
    str: "a text",
    type: "a class",
}
DEVICES = "auto, cpu, cuda or a numbered one such as cuda:1"
SEEDS = 2**32  # as many as numpy's generators take
MANY = {"a whole number": "whole numbers", "a class": "classes"}

SEVERAL = (Iterable, Collection, Sequence, list, tuple, set, frozenset)


class Kind(NamedTuple):
    """What an annotation asks for.

    Attributes:
        fits: whether a value is of this kind.
        words: what to give, for the message; empty for None, which is not worth proposing.
    """

    fits: Callable[[Any], bool]
    words: tuple[str, ...]


def checked(function: Function) -> Function:
    """The same function, which first compares the kinds of its arguments with its annotations.

    Raises:
        SpecError: when it is called: which argument, what was given, what is wanted.
    """

    @wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        positions, kinds = _kinds(function)
        for name, value in (*zip(positions, args, strict=False), *named.items()):
            kind = kinds.get(name)
            if kind is not None and not kind.fits(value):
                raise SpecError(f"{name}: {_given(value)} was given; give {' or '.join(kind.words)}")
        return function(*args, **named)

    return cast(Function, call)


def checked_fields(made: Made) -> Made:
    """The same class, whose constructor is `checked`: for dataclasses that people make."""
    setattr(made, "__init__", checked(vars(made)["__init__"]))  # noqa: B010 (a type checker knows no such change)
    return made


@cache
def _kinds(function: Callable[..., Any]) -> tuple[list[str], dict[str, Kind]]:
    """Names of the parameters that may be given by position, and what is asked of each, where that can be told."""
    known = _Names(inspect.unwrap(function).__globals__)
    parameters = inspect.signature(function, locals=known, eval_str=True).parameters.values()
    asked = {each.name: _kind(each.annotation) for each in parameters if each.kind in NAMED}
    positions = [each.name for each in parameters if each.kind in NAMED[:2]]
    return positions, {name: kind for name, kind in asked.items() if kind is not None}


def _beyond(value: Any) -> bool:
    """Whether a value is a whole number that no float can hold."""
    return isinstance(value, int) and abs(value) > sys.float_info.max


def device_word(name: str) -> tuple[str, int]:
    """Kind and number of the device that a word names; whether it is there is another question.

    Raises:
        SpecError: another word.
    """
    kind, colon, number = name.partition(":")
    numbered = kind == "cuda" and number.isdecimal()
    if kind not in ("auto", "cpu", "cuda") or (colon and not numbered):
        raise SpecError(f"device: {name!r:.40} is not allowed; give {DEVICES}")
    return kind, int(number or 0)


def require_seed(seed: int) -> None:
    """Raise SpecError for a seed that not every generator takes."""
    if not 0 <= seed < SEEDS:
        raise SpecError(f"seed: {seed!s:.40} is not allowed; give 0 to {SEEDS - 1}")


class _Anything:
    """Stands for a name that a module imports for type checkers alone, and for whatever is made of it."""

    def __getattr__(self, name: str) -> _Anything:
        return self

    def __getitem__(self, name: object) -> _Anything:
        return self

    def __or__(self, other: object) -> _Anything:
        return self

    __ror__ = __or__


class _Names(dict[str, Any]):
    """Names of a module."""

    def __missing__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by debuggers
            raise KeyError(name)
        return getattr(builtins, name, None) or _Anything()


def _kind(annotation: Any) -> Kind | None:
    """What an annotation asks for; None where a value does not show whether it fits."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, TypeVar):
        return _any_of(annotation.__constraints__ or (annotation.__bound__,))
    if origin is Annotated:
        return _kind(arguments[0])
    if origin in (Union, UnionType):
        return _any_of(arguments)
    if origin is Literal:
        return Kind(lambda value: isinstance(value, str | int) and value in arguments, tuple(map(repr, arguments)))
    if annotation is NoneType or annotation is None:
        return Kind(lambda value: value is None, ())
    if origin is None:
        return _class(annotation)
    if origin in (dict, Mapping):
        return Kind(lambda value: isinstance(value, Mapping), ("a mapping",))
    if origin in SEVERAL:
        return _several(origin, arguments[0])
    return Kind(callable, ("a function",)) if origin is Callable else _class(origin)


def _any_of(annotations: Iterable[Any]) -> Kind | None:
    found = [_kind(each) for each in annotations]
    kinds = [kind for kind in found if kind is not None]
    if len(kinds) < len(found):
        return None
    words = dict.fromkeys(word for kind in kinds for word in kind.words)
    return Kind(lambda value: any(kind.fits(value) for kind in kinds), tuple(words))


def _class(wanted: Any) -> Kind | None:
    """Values of a class; a network may be in a wrapper. None for what is no class, or says nothing of its own."""
    if not isinstance(wanted, type) or wanted in (object, Any, inspect.Parameter.empty):
        return None
    if getattr(wanted, "_is_protocol", False) and not getattr(wanted, "_is_runtime_protocol", False):
        return None
    fits = ASKED.get(wanted, lambda value: any(isinstance(each, wanted) for each in _layers(value)))
    return Kind(fits, (WORDS.get(wanted) or _one(wanted.__name__),))


def _layers(value: Any) -> Iterator[Any]:
    """A value, and the networks that it wraps."""
    yield value
    inside = getattr(value, "_modules", None)
    for name in WRAPPERS:
        if isinstance(inside, Mapping) and inside.get(name) is not None:
            yield from _layers(inside[name])


def _several(origin: Any, element: Any) -> Kind:
    """Several of something: no text, and not just one of them; of anything also no array, which is one.

    Args:
        origin: how they are to come.
        element: what each is.
    """
    members = get_args(element) if get_origin(element) in (Union, UnionType) else (element,)
    each = [kind for kind in map(_class, members) if kind is not None]
    asked = ("__iter__",) if origin is Iterable else ("__len__", "__iter__")
    what = "a tuple" if origin is tuple else "a list or another iterable" if origin is Iterable else "a list"

    def fits(value: Any) -> bool:
        one = any(kind.fits(value) for kind in each) or (element is Any and hasattr(value, "ndim"))
        if one or isinstance(value, str | bytes):
            return False
        return all(hasattr(value, name) for name in asked) or hasattr(value, "__getitem__")

    of = " or ".join(MANY.get(kind.words[0], f"{kind.words[0].split()[-1]}s") for kind in each)
    return Kind(fits, (f"{what} of {of}" if of else what,))


def _given(value: Any) -> str:
    """A value in a line: a short one itself, others by their class."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return f"{value!r:.60}"
    return _one(type(value).__name__)


def _one(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
