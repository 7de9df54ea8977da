"""Views: a module again, over the same weights, with settings of its own."""

from __future__ import annotations

from typing import TypeVar, cast

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def view_of(module: Module, seen: dict[int, nn.Module] | None = None) -> Module:
    """The same module with settings of its own: mode, compiled blocks, checkpointing, and which modules it holds.

    Weights, buffers and hooks are shared, also those that take their place later (`to`, `load_state_dict`).

    Args:
        module: what to look at; it is left alone.
        seen: views that were made already, by the id of their module: what is shared inside stays so.
    """
    seen = {} if seen is None else seen
    found = seen.get(id(module))
    if found is None:
        found = seen[id(module)] = object.__new__(type(module))
        found.__dict__.update(module.__dict__)
        found.__dict__.pop("_compiled_call_impl", None)  # of `module.compile()`: it would call the original
        found.__dict__["_modules"] = {
            name: None if child is None else view_of(child, seen) for name, child in module._modules.items()
        }
    return cast(Module, found)
