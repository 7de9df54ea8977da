"""The numbers per rate of a grid: what was given for it, and what its family's named size has for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from routespace.errors import SpecError
from routespace.grid.families.base import Family, PerRate, Shape
from routespace.values import shown, unknown_field


def read_parameters(
    family: Family, given: Mapping[str, Any], *, known: Iterable[Family], fields: Iterable[str]
) -> dict[str, PerRate]:
    """The family's own parameters from what a grid was given beside its fields, checked.

    Args:
        family: the grid's.
        given: name → value; None is as good as not given.
        known: families that may be named, for the message about a parameter of another one.
        fields: all that may be given, for the message about an unknown name.

    Raises:
        SpecError: a name that the family lacks, or a value that it does not allow.
    """
    found = {}
    for name, value in given.items():
        if name in family.parameters:
            if value is not None:
                found[name] = family.parameters[name].read(name, value)
            continue
        others = [other.name for other in known if name in other.parameters]
        if not others:
            raise SpecError(f"{shown(name)}: {unknown_field(str(name), fields)}")
        if value is not None:
            raise SpecError(f"{name}: family {family} has none; leave it out, or use {' or '.join(others)}")
    return found


def resolve_shape(family: Family, size: str | None, given: Mapping[str, Any], rates: tuple[int, ...]) -> Shape:
    """Numbers for each rate.

    Args:
        family: the grid's.
        size: one of its sizes; None for its first, or for none at all when widths are given.
        given: widths, heads, mlp_ratios and the family's own parameters by name; None or left out: as in the size.
        rates: fine to coarse.

    Raises:
        SpecError: a size that the family lacks, a number that is missing, or too few or too many for the rates.
    """
    if size is None and given.get("widths") is None:
        size = next(iter(family.sizes))
    if size is not None and size not in family.sizes:
        raise SpecError(f"size: family {family} has no size {size!r}; allowed: {', '.join(family.sizes)}")
    base: dict[str, Any] = {}
    if size is not None:
        base = family.sizes[size]._asdict()
        base |= base.pop("own")
    names = ("widths", "heads", "mlp_ratios")
    widths, heads, mlp_ratios = (_per_rate(name, given.get(name), base.get(name), rates) for name in names)
    return Shape(widths, heads, mlp_ratios, _own(family, given, base, rates))


def _own(
    family: Family, given: Mapping[str, Any], base: Mapping[str, Any], rates: tuple[int, ...]
) -> dict[str, PerRate]:
    """The family's own parameters, but for those that have their default.

    One number where it may stand for all rates and all have the same, so that both ways to write it are the same
    grid.
    """
    found: dict[str, PerRate] = {}
    for name, parameter in family.parameters.items():
        value: PerRate | None = given.get(name, base.get(name, parameter.default))
        if not isinstance(value, int):
            values: tuple[int, ...] = _per_rate(name, given.get(name), base.get(name), rates)
            value = values[0] if parameter.one_for_all and len(set(values)) == 1 else values
        if value != parameter.default:
            found[name] = value
    return found


def _per_rate(name: str, given: Any, base: Any, rates: tuple[int, ...]) -> Any:
    n = len(rates)
    values = given if given is not None else base
    if values is None:
        raise SpecError(f"{name}: missing; without a size give {n} numbers, one per rate {list(rates)}")
    if len(values) < n or (given is not None and len(values) != n):
        origin = "given" if given is not None else "in the size"
        raise SpecError(
            f"{name}: {len(values)} numbers {origin} for {n} rates {list(rates)}; give {n}, one per rate"
        )
    return tuple(values[:n])
