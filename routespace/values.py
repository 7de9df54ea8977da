"""Value: the frozen pydantic model that every spec is, and its errors as one line in the user's words.

    class Limits(Value):
        macs: int | None = None

    Limits(macs=-1), Limits.parse({"macs": -1})      both raise SpecError

pydantic keeps its own errors where values are nested in each other, so that a line names the whole dotted field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from os import PathLike, fspath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from routespace.errors import RoutespaceError, SpecError

LONGEST_NAME = 80
_STARTS_WITH_FIELD = re.compile(r"[a-z_.]+: ")
# What is allowed, by pydantic's type of error; the braces are filled from the error's context.
_ALLOWED = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "a number greater than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "a number less than {lt}",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "tuple_type": "a list",
    "list_type": "a list",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "union_tag_invalid": "{discriminator} one of {expected_tags}",
    "union_tag_not_found": "a mapping with {discriminator}",
}


class Value(BaseModel):
    """A frozen value that refuses unknown fields.

    Raises:
        SpecError: by the constructor and by `parse`, in one line: the field, what was given, what is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise SpecError(explain(error, type(self))) from error

    # pydantic's own mark of a constructor that only validates. Without it pydantic would call the constructor for
    # values nested in others, too, and the inner line would hide which field of the outer one is meant.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # pydantic's own mark

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            kind = type(self).__name__
            raise SpecError(f"{name}: a {kind} does not change; make another one with this value") from error

    @model_validator(mode="before")
    @classmethod
    def _paths_as_text(cls, data: Any) -> Any:
        """Files hold text, and Python's own paths are as good."""
        if not isinstance(data, Mapping):
            return data
        return {name: fspath(value) if isinstance(value, PathLike) else value for name, value in data.items()}

    @model_validator(mode="before")
    @classmethod
    def _refuse_truth(cls, data: Any) -> Any:
        """True and False are no numbers, though Python takes them for 1 and 0: `clip_grad: true` is a mistake."""
        for name, value in data.items() if isinstance(data, Mapping) else ():
            entries = value if isinstance(value, list | tuple) else (value,)
            if name in cls.model_fields and any(isinstance(entry, bool) for entry in entries):
                kinds = set(_plain_kinds(cls.model_fields[name].annotation))
                if kinds & {int, float} and not kinds & {bool, Any}:
                    wanted = "a number" if float in kinds else "a whole number"
                    raise ValueError(f"{name}: {value!r:.60} is not allowed; give {wanted}")
        return data

    @classmethod
    def parse(cls, data: Any, *, name: str = "") -> Self:
        """Validate a mapping.

        Args:
            data: field → content, as JSON or YAML give it.
            name: what the value is called in the file that it comes from; errors put it before the field.

        Raises:
            SpecError: one line: the field, what was given, what is allowed.
        """
        try:
            return super().model_validate(data)
        except ValidationError as error:
            raise SpecError(explain(error, cls, name=name)) from error

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """pydantic's name of `parse`; raises SpecError, too."""
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise SpecError(explain(error, cls)) from error

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """`parse` of JSON text; raises SpecError, too."""
        try:
            return super().model_validate_json(json_data, **options)
        except ValidationError as error:
            raise SpecError(explain(error, cls)) from error

    @classmethod
    def field_names(cls) -> list[str]:
        """What a mapping may hold, as errors list it."""
        return list(cls.model_fields)


def explain(error: ValidationError, model: type[BaseModel], *, name: str = "") -> str:
    """The first problem of a pydantic error as one line: the dotted field, what was given, what is allowed.

    Args:
        error: what validating `model` raised.
        model: tells fields from the names that pydantic gives to the members of a union.
        name: what the whole value is called.
    """
    problems = [(_Place.find(model, problem), problem) for problem in error.errors()]
    top = problems[0][0].path[:1]
    # Of the members of a union the one counts that came furthest: of (0, 1) for "a number or a list of numbers"
    # it is said which entry is wrong, not that it is no number.
    place, first = max(
        (found for found in problems if found[0].path[:1] == top), key=lambda found: len(found[0].path)
    )
    same = [problem for other, problem in problems if other.path == place.path]
    field = ".".join((name, *place.path) if name else place.path)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RoutespaceError | ValueError):
        message = str(cause)
        if _STARTS_WITH_FIELD.match(message):  # raised for a whole value: the message names the field in it
            return f"{field}.{message}" if field else message
        return f"{field}: {message} (given: {first['input']!r:.60})" if field else message
    if first["type"] == "extra_forbidden":
        return f"{field}: {unknown_field(place.path[-1], place.known)}"
    if first["type"] == "missing":
        return f"{field}: missing; it must be given"
    given = f"{field or model.__name__}: {first['input']!r:.60} is not allowed"
    hints = dict.fromkeys(_hint(problem) for problem in same)
    return f"{given}; give {', or '.join(hints)}"


def unknown_field(name: str, known: Iterable[str]) -> str:
    """What is said of a name that is none of the known ones: those that it may have been meant for first."""
    known = list(known)
    close = " or ".join(get_close_matches(name, known, n=2))
    return f"unknown field{f'; perhaps {close}' if close else ''}; allowed: {', '.join(known)}"


def _hint(problem: Mapping[str, Any]) -> str:
    template = _ALLOWED.get(problem["type"])
    if template is None:
        message: str = problem["msg"]
        return f"another value ({message[0].lower()}{message[1:]})"
    return template.format(**problem.get("ctx", {}))


class _Place:
    """Where in a value a problem lies.

    Attributes:
        path: names of fields, keys of mappings and positions in lists, outermost first.
        known: the fields of the value that holds the last of them.
    """

    def __init__(self, path: tuple[str, ...], known: list[str]) -> None:
        self.path = path
        self.known = known

    @classmethod
    def find(cls, model: type[BaseModel], problem: Mapping[str, Any]) -> _Place:
        """Follow the location of one of pydantic's problems, leaving out the names of union members."""
        path: list[str] = []
        here, known = [model], list[str]()
        unknown = problem["loc"][-1] if problem["type"] == "extra_forbidden" else None
        for part in problem["loc"]:
            models = [a for a in here if isinstance(a, type) and issubclass(a, BaseModel)]
            inner = list(_step(here, part))
            if inner:
                known = names_of(models)
                path.append(shown(part))
                here = inner
            elif part == unknown:
                known = names_of(models)
                path.append(shown(part))
            else:
                here = [a for a in models if _tagged(a, part)] or here
        return cls(tuple(path), known)


def shown(name: object) -> str:
    """The name of a field or a key that somebody else may have written, fit for a line."""
    text = str(name)
    return text if text.isprintable() and len(text) <= LONGEST_NAME else f"{text!r:.{LONGEST_NAME}}"


def names_of(models: Sequence[type[BaseModel]]) -> list[str]:
    """The fields of one model, or of the members of a union, each once."""
    lists = (m.field_names() if issubclass(m, Value) else list(m.model_fields) for m in models)
    return list(dict.fromkeys(name for names in lists for name in names))


def members(annotation: Any) -> Iterator[Any]:
    """The types that an annotation such as `Annotated[A | B, …] | None` allows, None left out."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from members(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from members(member)
    elif annotation is not NoneType:
        yield annotation


def _plain_kinds(annotation: Any) -> Iterator[Any]:
    """The types of the single values that an annotation allows, also as entries of a list."""
    for member in members(annotation):
        origin, arguments = get_origin(member), get_args(member)
        if origin is Literal:
            yield from map(type, arguments)
        elif origin in (list, tuple):
            for entry in arguments:
                yield from _plain_kinds(entry)
        else:
            yield member


def _step(here: Sequence[Any], part: str | int) -> Iterator[Any]:
    """The types of what lies at `part` of values of the types `here`; nothing where they have no such part."""
    for annotation in here:
        origin, arguments = get_origin(annotation), get_args(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields.get(str(part))
            if field is not None:
                yield from members(field.annotation)
        elif isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(part, str):
            yield from members(arguments[1])
        elif isinstance(origin, type) and issubclass(origin, Sequence) and isinstance(part, int):
            several = len(arguments) > 1 and arguments[1] is not ...
            yield from members(arguments[part] if several and part < len(arguments) else arguments[0])


def _tagged(model: type[BaseModel], tag: str | int) -> bool:
    """Whether `tag` is what a union's member is told by: the value of a Literal field."""
    return any(
        get_origin(field.annotation) is Literal and tag in get_args(field.annotation)
        for field in model.model_fields.values()
    )


def fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str] | None:
    """Names of the fields of the section at a path of field names; None when there is no such section."""
    here: list[Any] = [model]
    for part in path:
        here = list(_step(here, part))
    models = [a for a in here if isinstance(a, type) and issubclass(a, BaseModel)]
    return names_of(models) if models else None
