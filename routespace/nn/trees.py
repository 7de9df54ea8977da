"""What a network returns, made known to torch's tree functions: exporters and torch.func look into it.

torch has no public name yet for a class that is no dataclass. Where its private ones change, the networks work as
before, and only an export of their whole output (not of the plain module) is refused by torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch.export

Part = TypeVar("Part")


def register_mapping(kind: type[Mapping[str, Part]], name: str) -> None:
    """Let torch see the values of a mapping class, in its order.

    Args:
        kind: a class that can be made from a dict.
        name: what saved programs call it.
    """

    def parts(value: Mapping[str, Part]) -> tuple[list[Part], list[str]]:
        return list(value.values()), list(value)

    def rebuilt(values: object, keys: list[str]) -> Mapping[str, Part]:
        return kind(dict(zip(keys, values, strict=True)))  # type: ignore[call-arg, call-overload]  # see `kind`

    try:
        from torch.utils import _pytree as pytree

        def with_keys(value: Mapping[str, Part]) -> tuple[list[tuple[Any, Part]], list[str]]:
            return [(pytree.MappingKey(key), part) for key, part in value.items()], list(value)

        pytree.register_pytree_node(
            kind, parts, rebuilt, serialized_type_name=name, flatten_with_keys_fn=with_keys
        )
    except (ImportError, AttributeError, TypeError):
        return


def register_value(
    kind: type[Part], parts: Callable[[Part], tuple[Any, Any]], rebuilt: Callable[[Any, Any], Part]
) -> None:
    """Let torch see the tensors in a value that also holds something else.

    Args:
        kind: its class.
        parts: value → its tensors, and what else it holds.
        rebuilt: the way back.
    """
    try:
        from torch.utils import _pytree as pytree

        pytree.register_pytree_node(
            kind, lambda value: (list(parts(value)[0]), parts(value)[1]), lambda some, rest: rebuilt(some, rest)
        )
    except (ImportError, AttributeError, TypeError):
        return


def register_dataclass(kind: type, name: str) -> None:
    """Let torch see the fields of a dataclass; `name` is what saved programs call it."""
    torch.export.register_dataclass(kind, serialized_type_name=name)


def register_namedtuple(kind: type[tuple[object, ...]], name: str) -> None:
    """Let torch save programs that return a named tuple; `name` is what they call it."""
    try:
        from torch.utils import _pytree as pytree

        pytree._register_namedtuple(kind, serialized_type_name=name)
    except (ImportError, AttributeError, TypeError):
        return
