"""Drawing fresh weights, which takes longer than all else about making a network; and making one without it.

    truncated_normal_(weight, std=0.02)
    with undrawn():
        net = make()     zeros stand where weights would be drawn

That is for networks that are filled afterwards, and for those of which nothing but shapes is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary


def truncated_normal_(weight: Tensor, *, std: float) -> Tensor:
    """torch's `trunc_normal_` around zero, which alone of torch's ways of drawing does not ask modes first."""
    if has_torch_function_unary(weight):
        return handle_torch_function(truncated_normal_, (weight,), weight, std=std)
    return nn.init.trunc_normal_(weight, std=std)


# What blocks, heads and torch's own layers draw with; what is drawn otherwise is drawn.
DRAWING: set[Callable[..., Any]] = {
    truncated_normal_,
    nn.init.kaiming_normal_,
    nn.init.kaiming_uniform_,
    nn.init.normal_,
    nn.init.uniform_,
}


class undrawn(TorchFunctionMode):  # noqa: N801 (a context, as torch.no_grad)
    """A context in which modules are made without drawing their weights: they are zeros."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in DRAWING:
            return nn.init.zeros_(args[0] if args else given["tensor"])
        return func(*args, **given)
