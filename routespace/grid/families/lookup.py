"""Families by name: the built-in ones, and those of one's own that may be named by what is read.

A file never decides what is imported; who reads it does.

    GridSpec(layers=4, family=VIT)                      a family is passed
    GridSpec.parse(data, families=[VIT])                … or allowed to the file that names it,
    with allow_families(VIT): load_bundle(folder)       … or to everything that is read in a block
    routespace evaluate BUNDLE --family-module vit_family:VIT
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from routespace.errors import RoutespaceError, SpecError
from routespace.grid.families.base import Family
from routespace.grid.presets import FAMILIES

_ALLOWED: ContextVar[tuple[Family, ...]] = ContextVar("families that are allowed", default=())


@contextmanager
def allow_families(*families: Family) -> Iterator[None]:
    """Let grids, recipes, bundles and tables that are read inside of the block name these families.

    Raises:
        SpecError: something that is no Family, or has the name of a built-in one.
    """
    for family in families:
        if not isinstance(family, Family):
            raise SpecError(f"families: {family!r:.60} is a {type(family).__name__}; give Family objects")
        _refuse_taken_name(family)
    token = _ALLOWED.set((*families, *_ALLOWED.get()))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def known_families() -> dict[str, Family]:
    """Name → family, of those that a file may name now: in nested blocks the innermost family of a name."""
    return dict(FAMILIES) | {family.name: family for family in reversed(_ALLOWED.get())}


def find_family(value: object) -> Family:
    """The family that a spec is given: an object as it is, a name among the built-in and the allowed ones.

    Raises:
        SpecError: no such name, or one's own family has the name of a built-in one.
    """
    family = known_families().get(value) if isinstance(value, str) else value
    if isinstance(value, str) and ":" in value:  # the name of a Python object, which is never imported from here
        raise SpecError(
            f"family: {value!r:.80} is not allowed; allow it with --family-module (in Python families=[…]), and "
            f"write here the family's own name; allowed: {', '.join(known_families())}"
        )
    if not isinstance(family, Family):
        raise SpecError(
            f"family: {value!r:.80} is not known; allowed: {', '.join(known_families())}, or one of your own: "
            f"as an object, by families=[…], or on the command line by --family-module package.module:FAMILY"
        )
    _refuse_taken_name(family)
    return family


def _refuse_taken_name(family: Family) -> None:
    if family != FAMILIES.get(family.name, family):
        raise SpecError(f"family: {family.name!r} is a built-in family; give yours another name")


def import_family(name: str) -> Family:
    """The family that the user names as `package.module:FAMILY`. This runs the module's code.

    Raises:
        SpecError: no such module or attribute, it is not a Family, or the module fails, however it does.
    """
    module, _, attribute = name.partition(":")
    wanted = "give package.module:FAMILY of a module that Python finds"
    if not module or not attribute or module.startswith("."):
        raise SpecError(f"family-module: {name!r:.80} is no such name; {wanted}")
    family = import_attribute(module, attribute, what="family-module")
    if not isinstance(family, Family):
        raise SpecError(f"family-module: {name!r:.80} is a {type(family).__name__}, not a Family; {wanted}")
    return family


def import_attribute(module: str, attribute: str, *, what: str) -> object:
    """What a module calls `attribute`; for names that the user or the code gives, never a file.

    Raises:
        SpecError: it is not there, or the module fails, however it does; the line begins with `what`.
    """
    try:
        return getattr(importlib.import_module(module), attribute)
    except (KeyboardInterrupt, RoutespaceError):
        raise
    except BaseException as error:  # a module may do anything, such as to end the program
        reason = " ".join(str(error).split())
        raise SpecError(
            f"{what}: {attribute} of {module!r:.80} cannot be imported ({type(error).__name__}: {reason:.200}); "
            f"give a module that Python finds and can run"
        ) from error
