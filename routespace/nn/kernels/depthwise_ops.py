"""The depth-wise Triton kernels as operators of ours: a compiled step and torch's counters know them so.

On a CPU they are plain operations.

Shape legend: B images · H, W map sides · N = H·W · n kept tokens of the whole batch · R hidden channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from routespace.nn.kernels.depthwise import TAPS, as_rows, gather_depthwise
from routespace.nn.packing.maps import as_map, as_tokens
from routespace.nn.packing.rows import zero_behind

torch.library.define(
    "routespace::map_gelu",
    "(Tensor hidden, Tensor kernel, Tensor offset, int height, int width, bool total) -> (Tensor, Tensor)",
)
torch.library.define(
    "routespace::gather_gelu", "(Tensor hidden, Tensor taps, Tensor offset, Tensor neighbours) -> Tensor"
)


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
    total = torch.is_grad_enabled() and any(part.requires_grad for part in (hidden, kernel, offset))
    activated: Tensor
    activated, _ = torch.ops.routespace.map_gelu(hidden, kernel, offset, *hw, total)
    return activated


def gathered_gelu(hidden: Tensor, taps: Tensor, offset: Tensor, neighbours: Tensor) -> Tensor:
    """As `depthwise_triton.gather_gelu`, without a backward pass."""
    activated: Tensor = torch.ops.routespace.gather_gelu(hidden, taps, offset, neighbours)
    return activated


@torch.library.impl("routespace::map_gelu", "CUDA")
def _map_gelu(
    hidden: Tensor, kernel: Tensor, offset: Tensor, height: int, width: int, total: bool
) -> tuple[Tensor, Tensor]:
    if not hidden.numel():
        return torch.empty_like(hidden), hidden.new_empty(hidden.shape if total else 0)
    from routespace.nn.kernels.map_triton import depthwise_gelu

    return depthwise_gelu(
        hidden.contiguous(), kernel.contiguous(), offset.contiguous(), height, width, total=total
    )


@torch.library.impl("routespace::map_gelu", "CPU")
def _plain_map_gelu(
    hidden: Tensor, kernel: Tensor, offset: Tensor, height: int, width: int, total: bool
) -> tuple[Tensor, Tensor]:
    maps = as_map(hidden.contiguous(), (height, width))
    summed = as_tokens(F.conv2d(maps, kernel, offset, padding=1, groups=hidden.shape[2])).contiguous()
    return F.gelu(summed), summed if total else hidden.new_empty(0)


@torch.library.register_fake("routespace::map_gelu")
def _map_gelu_shape(
    hidden: Tensor, kernel: Tensor, offset: Tensor, height: int, width: int, total: bool
) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape), hidden.new_empty(hidden.shape if total else (0,))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, kernel, _, height, width, _ = inputs
    ctx.save_for_backward(hidden, kernel, output[1])
    ctx.hw = height, width
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, grad_summed: Tensor | None) -> tuple[Tensor | None, ...]:
    hidden, kernel, summed = ctx.saved_tensors
    if grad is not None:  # a second derivative asks for that of what goes into the GELU, too
        grad = torch.ops.aten.gelu_backward(grad.contiguous(), summed)
        grad = grad if grad_summed is None else grad + grad_summed
    elif grad_summed is None:
        return (None,) * 6
    else:
        grad = grad_summed.contiguous()
    one, groups = [1, 1], hidden.shape[2]
    into_hidden, into_kernel, into_offset, *_rest = ctx.needs_input_grad
    grad_maps, grad_kernel, _none = torch.ops.aten.convolution_backward(
        as_map(grad, ctx.hw), as_map(hidden.contiguous(), ctx.hw), kernel, None,
        one, one, one, False, [0, 0], groups, [into_hidden, into_kernel, False],
    )  # fmt: skip
    grad_hidden = as_tokens(grad_maps) if into_hidden else None
    return (
        grad_hidden,
        grad_kernel,
        as_rows(as_map(grad, ctx.hw)).sum(0) if into_offset else None,
        None,
        None,
        None,
    )


torch.library.register_autograd("routespace::map_gelu", _backward, setup_context=_save)


@torch.library.impl("routespace::gather_gelu", "CUDA")
def _gather_gelu(hidden: Tensor, taps: Tensor, offset: Tensor, neighbours: Tensor) -> Tensor:
    if not hidden.numel():
        return torch.empty_like(hidden)
    from routespace.nn.kernels.depthwise_triton import gather_gelu

    return gather_gelu(hidden, taps.contiguous(), offset.contiguous(), neighbours.contiguous())


@torch.library.impl("routespace::gather_gelu", "CPU")
def _plain_gather_gelu(hidden: Tensor, taps: Tensor, offset: Tensor, neighbours: Tensor) -> Tensor:
    return F.gelu(gather_depthwise(zero_behind(hidden), taps, offset, neighbours))


@torch.library.register_fake("routespace::gather_gelu")
def _gather_gelu_shape(hidden: Tensor, taps: Tensor, offset: Tensor, neighbours: Tensor) -> Tensor:
    return hidden.new_empty(hidden.shape)


@register_flop_formula(torch.ops.routespace.map_gelu)
def _map_gelu_flops(hidden: Any, *_: object, **__: object) -> int:
    """Shape (B, N, R) → operations, two a multiply-add as torch counts a convolution's."""
    return int(2 * TAPS * hidden[0] * hidden[1] * hidden[2])


@register_flop_formula(torch.ops.routespace.gather_gelu)
def _gather_gelu_flops(hidden: Any, *_: object, **__: object) -> int:
    """Shape (n, R) → operations."""
    return int(2 * TAPS * hidden[0] * hidden[1])
