"""What several commands read from their arguments: counts, numbers, sizes, words, recipes. No torch here."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from routespace.errors import SpecError

if TYPE_CHECKING:
    from routespace.train.recipe.recipe import Recipe


def parse_macs(text: str, field: str = "macs") -> int:
    """MACs from "12M", "1.2G", "850K" or a plain number, as recipes write them.

    Raises:
        SpecError: anything else, or nothing above zero; the message names `field`.
    """
    from routespace.train.recipe.parts import parse_count

    try:
        macs = parse_count(text)
    except ValueError as error:
        raise SpecError(f"{field}: {error}") from error
    if not isinstance(macs, int) or macs < 1:
        raise SpecError(f"{field}: {text!r:.40} is not above 0; give a number such as 12M, 1.2G or 850000")
    return macs


def parse_limits(given: Iterable[str]) -> dict[str, float]:
    """Resource → the most allowed, from "params=2M" and the like.

    Raises:
        SpecError: no such form or resource, an amount that is not above zero, or one resource twice.
    """
    from routespace.grid.resources import RESOURCES

    limits: dict[str, float] = {}
    for text in given:
        name, equals, number = text.partition("=")
        if not equals or name not in RESOURCES or name in limits:
            twice = "; it is limited twice" if name in limits else ""
            raise SpecError(f"limit: {text!r:.60}{twice}; give NAME=AMOUNT with one of {', '.join(RESOURCES)}")
        limits[name] = _amount(number, f"limit.{name}")
    return limits


def _amount(text: str, field: str) -> float:
    """A number above zero, with K, M or G behind it or without; raises SpecError."""
    from routespace.train.recipe.parts import parse_count

    for read in (float, parse_count):
        with contextlib.suppress(ValueError):
            found = read(text)
            if isinstance(found, int | float) and 0 < found < math.inf:
                return found
    raise SpecError(f"{field}: {text!r:.40} is not allowed; give a number above 0, such as 2M")


def parse_numbers(text: str, field: str, kind: type[int] | type[float] = int) -> list[Any]:
    """Numbers from "64,128,320,512".

    Raises:
        SpecError: naming the field.
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise SpecError(f"{field}: {text!r:.60} is not allowed; give numbers with commas between them") from error


def parse_size(text: str) -> list[int]:
    """Height and width from "224" or "160x256"; raises SpecError."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip())
    if not match:
        raise SpecError(
            f"image_size: {text!r:.60} is not allowed; give a side such as 224, or HxW such as 160x256"
        )
    return [int(match[1]), int(match[2] or match[1])]


def size_pair(text: str | None) -> tuple[int, int] | None:
    """Height and width from --image-size; None where it is not given. Raises SpecError."""
    if text is None:
        return None
    height, width = parse_size(text)
    return height, width


def parse_sizes(text: str | None) -> list[tuple[int, int]]:
    """Height and width of each size from "96,112x128"; none where it is not given. Raises SpecError."""
    pairs = (size_pair(part) for part in ([] if text is None else text.split(",")))
    return [pair for pair in pairs if pair is not None]


def one_of(field: str, given: str, allowed: Iterable[str]) -> str:
    """A word that is one of several; raises SpecError naming the field and the others."""
    words = tuple(allowed)
    if given not in words:
        raise SpecError(f"{field}: {given!r:.40} is not allowed; give {' or '.join(words)}")
    return given


def said_once(
    field: str, option: str, value: Any, given: Mapping[str, Any], *, way: str = "--set", read: Any = None
) -> None:
    """Raise SpecError where an option of its own and assignments say two things of one field.

    Args:
        field: such as "train.device".
        option, value: what the option is called, and what it says; None says nothing.
        given: dotted field → value, as assignments give them; a whole section may be one of them.
        way: what assignments are called.
        read: makes values comparable, such as paths.
    """
    other = _assigned(field, given)
    same = read or (lambda found: found)
    if value is None or other is None or same(value) == same(other):
        return
    raise SpecError(f"{field}: {option} says {value!s:.80}, {way} says {other!s:.80}; give one of them")


def _assigned(field: str, given: Mapping[str, Any]) -> Any:
    """What assignments say of a dotted field, by its own name or within a section; None for nothing."""
    if field in given:
        return given[field]
    section, dot, rest = field.partition(".")
    inside = given.get(section)
    return _assigned(rest, inside) if dot and isinstance(inside, Mapping) else None


def several_of(field: str, given: str, allowed: Iterable[str]) -> list[str]:
    """Words with commas between them, each once; raises SpecError naming the field and the allowed ones."""
    words = tuple(allowed)
    return list(dict.fromkeys(one_of(field, word.strip(), words) for word in given.split(",")))


def named_recipe(name: str | None) -> Recipe | None:
    """The recipe that --recipe names; None where it is not given."""
    from routespace.recipes import load_recipe

    return None if name is None else load_recipe(name)
