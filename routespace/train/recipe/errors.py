"""One line for whatever is wrong with a recipe: the dotted field, what was given, what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from routespace.errors import RoutespaceError
from routespace.train.recipe.parts import CHOICES, RANGE

_STARTS_WITH_FIELD = re.compile(r"[a-z_.]+: ")


def fields_at(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str] | None:
    """Names of the fields of the section at `path`; None when there is no such section."""
    current: type[BaseModel] | None = model
    for part in path:
        field = current.model_fields.get(str(part)) if current is not None else None
        current = next(_models(field.annotation), None) if field is not None else None
    if current is None:
        return None
    return [*current.model_fields, "preset"] if path == ("grid",) else list(current.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models inside an annotation such as `SearchSpec | None`."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            yield candidate


def explain_recipe(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem as one line."""
    first = error.errors()[0]
    loc = tuple(part for part in first["loc"] if part not in (RANGE, CHOICES))
    field = ".".join(str(part) for part in loc)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RoutespaceError | ValueError):
        message = str(cause)
        if message.startswith("preset: "):
            return f"grid.{message}"
        if _STARTS_WITH_FIELD.match(message):  # raised for a section: the message names the field in it
            return f"{field}.{message}" if field else message
        return f"{field}: {message}"
    if first["type"] == "extra_forbidden":
        allowed = fields_at(model, loc[:-1])
        return f"{field}: unknown field" + (f"; allowed: {', '.join(allowed)}" if allowed else "")
    if first["type"] == "missing":
        return f"{field}: missing; it must be given"
    message = first["msg"]
    return f"{field}: {message[0].lower()}{message[1:]} (given: {first['input']!r:.60})"
