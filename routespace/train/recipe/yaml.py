"""Recipes as text: YAML in and out, and assignments from a command line.

YAML's 1.2 core schema is read: `no` and `on` are words (PyYAML's 1.1 makes them booleans), `1e-3` is a number
(PyYAML makes it a word), and a key that stands twice is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

from routespace.errors import SpecError

_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.(nan|NaN)")
_NULL = re.compile(r"~|null|Null|NULL|")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[Any, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are all different."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                line = node.value[i][0].start_mark.line + 1
                raise yaml.constructor.ConstructorError(None, None, f"line {line}: {key!r} stands twice")
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A decimal number; PyYAML's own reads 1.1's octal ones: 0100 would be 64."""
        return int(self.construct_scalar(node))


class _Dumper(yaml.SafeDumper):
    """Mappings as blocks, lists on one line."""


for _tag, _pattern, _first in (
    ("bool", _BOOL, "tTfF"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("null", _NULL, ["~", "n", "N", ""]),
):
    _whole = re.compile(f"^(?:{_pattern.pattern})$")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole, list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def read_yaml(text: str) -> Any:
    """YAML text as data; raises SpecError with the line where it is no YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SpecError(f"yaml: {where}{problem}; a recipe is a YAML mapping") from error


def write_yaml(data: Any) -> str:
    """Data as YAML text that `read_yaml` reads back."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """`["train.epochs=5", "grid.depths=[1, 2]"]` as {dotted field: value}, values typed as in YAML.

    Raises:
        SpecError: an entry without `=`, or a value that is no YAML.
    """
    found: dict[str, Any] = {}
    for text in assignments:
        field, sign, value = text.partition("=")
        if not sign or not field.strip():
            raise SpecError(f"set: {text!r:.60} is no assignment; write field=value, such as train.epochs=5")
        try:
            found[field.strip()] = read_yaml(value)
        except SpecError as error:
            raise SpecError(f"{field.strip()}: {value!r:.60} is no YAML value; quote it") from error
    return found
