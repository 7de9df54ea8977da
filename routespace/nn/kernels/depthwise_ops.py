"""The depth-wise Triton kernels as operators of ours: a compiled step and torch's counters know them so.

On a CPU they are plain operations. Their backward passes are operators too; a second derivative makes the plain
composition again from what went in.

Shape legend: B images · H, W map sides · N = H·W · n kept tokens of the whole batch · R hidden channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from routespace.nn.kernels.depthwise import TAPS
from routespace.nn.kernels.depthwise_impls import convolved_maps, convolved_rows

Grads = tuple[Tensor | None, ...]


def map_gelu(hidden: Tensor, kernel: Tensor, offset: Tensor, hw: tuple[int, int]) -> Tensor:
    """gelu(3×3 depth-wise convolution + bias) of whole token maps.

    Args:
        hidden: (B, N, R).
        kernel, offset: (R, 1, 3, 3) and (R,); taken to the type of `hidden`, as autocast would.
        hw: height and width of the maps.

    Returns:
        (B, N, R).
    """
    kernel, offset = kernel.to(hidden.dtype), offset.to(hidden.dtype)
    activated: Tensor
    activated, _ = torch.ops.routespace.map_gelu(hidden, kernel, offset, *hw, _learns(hidden, kernel, offset))
    return activated


def gathered_gelu(hidden: Tensor, taps: Tensor, offset: Tensor, neighbours: Tensor) -> Tensor:
    """gelu(3×3 depth-wise convolution + bias) of packed rows; a skipped neighbour counts as zero.

    Args:
        hidden: (n, R).
        taps: (9, R), from `depthwise.taps_of`.
        offset: (R,).
        neighbours: (9, n), see `KeptTokens.neighbours`.

    Returns:
        (n, R), of the type of `hidden`.
    """
    slope = _learns(hidden, taps, offset)
    activated: Tensor
    activated, _ = torch.ops.routespace.gather_gelu(hidden, taps, offset, neighbours, slope)
    return activated


def _learns(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(part.requires_grad for part in inputs)


def _only_once(grad_slope: Tensor | None) -> None:
    if grad_slope is not None:
        raise RuntimeError(
            "the GELU's derivative is for the backward operator alone; differentiate what is activated"
        )


def _chosen(found: Sequence[Tensor], wanted: Sequence[bool]) -> Grads:
    return tuple(grad if want else None for grad, want in zip(found, wanted, strict=True))


def _second(
    plain: Callable[[Tensor, Tensor, Tensor], Tensor], given: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> Grads:
    """Backward of a backward operator.

    Args:
        plain: from hidden, weights and bias to what goes into the GELU.
        given: the gradient, hidden, weights and bias that the operator got.
        grads: of the three gradients that it gave, None where nobody asked.

    Returns:
        One gradient, or None, for each of `given`.
    """
    goes_on = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: the gradient may itself depend on the others, which is for the caller to follow.
        parts = [p.view_as(p) if p.requires_grad else p.detach().requires_grad_() for p in given]
        grad, *inputs = parts
        found = torch.autograd.grad(F.gelu(plain(*inputs)), inputs, grad, create_graph=True)
        asked = [pair for pair in zip(found, grads, strict=True) if pair[1] is not None]
        if not asked:
            return (None,) * len(given)
        first, weights = zip(*asked, strict=True)
        return torch.autograd.grad(first, parts, weights, create_graph=goes_on, allow_unused=True)


# Whole maps


def _save_map(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, kernel, offset, height, width, _ = inputs
    ctx.save_for_backward(hidden, kernel, offset, output[1])
    ctx.hw = height, width
    ctx.set_materialize_grads(False)


def _map_backward(ctx: Any, grad: Tensor | None, grad_slope: Tensor | None) -> Grads:
    _only_once(grad_slope)
    if grad is None:
        return (None,) * 6
    wanted = ctx.needs_input_grad[:3]
    found = torch.ops.routespace.map_gelu_backward(
        grad, *ctx.saved_tensors, *ctx.hw, wanted[0], wanted[1] or wanted[2]
    )
    return *_chosen(found, wanted), None, None, None


def _save_map_again(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.hw = inputs[5:7]
    ctx.set_materialize_grads(False)


def _map_backward_again(ctx: Any, *grads: Tensor | None) -> Grads:
    return *_second(partial(convolved_maps, hw=ctx.hw), ctx.saved_tensors, grads), *(None,) * 5


torch.library.register_autograd("routespace::map_gelu", _map_backward, setup_context=_save_map)
torch.library.register_autograd(
    "routespace::map_gelu_backward", _map_backward_again, setup_context=_save_map_again
)


# Packed rows


def _save_rows(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, taps, offset, neighbours, _ = inputs
    ctx.save_for_backward(hidden, taps, offset, output[1], neighbours)
    ctx.set_materialize_grads(False)


def _rows_backward(ctx: Any, grad: Tensor | None, grad_slope: Tensor | None) -> Grads:
    _only_once(grad_slope)
    if grad is None:
        return (None,) * 5
    wanted = ctx.needs_input_grad[:3]
    found = torch.ops.routespace.gather_gelu_backward(grad, *ctx.saved_tensors, wanted[0], wanted[1] or wanted[2])
    return *_chosen(found, wanted), None, None


def _save_rows_again(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4], inputs[5])
    ctx.set_materialize_grads(False)


def _rows_backward_again(ctx: Any, *grads: Tensor | None) -> Grads:
    *given, neighbours = ctx.saved_tensors
    return *_second(partial(convolved_rows, neighbours=neighbours), given, grads), *(None,) * 4


torch.library.register_autograd("routespace::gather_gelu", _rows_backward, setup_context=_save_rows)
torch.library.register_autograd(
    "routespace::gather_gelu_backward", _rows_backward_again, setup_context=_save_rows_again
)


# Operations, two a multiply-add as torch counts a convolution's


@register_flop_formula(torch.ops.routespace.map_gelu)
def _map_gelu_flops(hidden: Any, *_: object, **__: object) -> int:
    """Of a shape (B, N, R)."""
    return int(2 * TAPS * hidden[0] * hidden[1] * hidden[2])


@register_flop_formula(torch.ops.routespace.gather_gelu)
def _gather_gelu_flops(hidden: Any, *_: object, **__: object) -> int:
    """Of a shape (n, R)."""
    return int(2 * TAPS * hidden[0] * hidden[1])


@register_flop_formula(torch.ops.routespace.map_gelu_backward)
def _map_gelu_backward_flops(
    grad: Any, hidden: Any, kernel: Any, offset: Any, slope: Any, height: int, width: int,
    into_hidden: bool, into_weights: bool, **__: object,
) -> int:  # fmt: skip
    return (into_hidden + into_weights) * _map_gelu_flops(hidden)


@register_flop_formula(torch.ops.routespace.gather_gelu_backward)
def _gather_gelu_backward_flops(
    grad: Any, hidden: Any, taps: Any, offset: Any, slope: Any, neighbours: Any,
    into_hidden: bool, into_weights: bool, **__: object,
) -> int:  # fmt: skip
    return (into_hidden + into_weights) * _gather_gelu_flops(hidden)
