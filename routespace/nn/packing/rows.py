"""Moving rows between a whole batch and its kept part, with backward passes that move rows too.

The rows taken are distinct, so the gradient is written, not accumulated: autograd's own backward of
`index_select` would add row by row.

Shape legend: T rows of the whole · n distinct rows of the part · … any further dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class _Take(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.total = x.shape[0]
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return grad.new_zeros(ctx.total, *grad.shape[1:]).index_copy_(0, rows, grad), None


def take(x: Tensor, rows: Tensor) -> Tensor:
    """(T, …) → (n, …): the given rows, which must be distinct."""
    if x.requires_grad and torch.is_grad_enabled():
        taken: Tensor = _Take.apply(x, rows)
        return taken
    return x.index_select(0, rows)


def spread_rows(part: Tensor, rows: Tensor, total: int) -> Tensor:
    """(n, …) → (total, …): the rows at their places, zero elsewhere."""
    return part.new_zeros(total, *part.shape[1:]).index_copy_(0, rows, part)  # out of place would copy the zeros


def put(x: Tensor, rows: Tensor, part: Tensor) -> Tensor:
    """(T, …) with the given rows replaced; without autograd x itself is written to."""
    if torch.is_grad_enabled():
        return x.index_copy(0, rows, part)
    return x.index_copy_(0, rows, part)


def zero_behind(x: Tensor) -> Tensor:
    """(T, C) → (T + 1, C): a row of zeros behind the others; a compiler writes both in place."""
    return torch.cat((x, x.new_zeros(1, x.shape[1])))
