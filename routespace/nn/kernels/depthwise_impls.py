"""What the operators of `depthwise_ops` do: Triton kernels on CUDA, plain operations on a CPU, shapes alone for a
compiler.

Each forward operator also gives the GELU's derivative where a backward pass will come: all that this needs of the
sums. A backward operator gives the gradients of kernel and bias both or neither, as one reading makes them.

Shape legend: B images · H, W map sides · N = H·W · n kept tokens of the whole batch · R hidden channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from routespace.nn.kernels.depthwise import as_rows, gather_depthwise, gathered_grads
from routespace.nn.packing.maps import as_map, as_tokens
from routespace.nn.packing.rows import zero_behind

torch.library.define(
    "routespace::map_gelu",
    "(Tensor hidden, Tensor kernel, Tensor offset, int height, int width, bool slope) -> (Tensor, Tensor)",
)
torch.library.define(
    "routespace::map_gelu_backward",
    "(Tensor grad, Tensor hidden, Tensor kernel, Tensor offset, Tensor slope, int height, int width, "
    "bool into_hidden, bool into_weights) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "routespace::gather_gelu",
    "(Tensor hidden, Tensor taps, Tensor offset, Tensor neighbours, bool slope) -> (Tensor, Tensor)",
)
torch.library.define(
    "routespace::gather_gelu_backward",
    "(Tensor grad, Tensor hidden, Tensor taps, Tensor offset, Tensor slope, Tensor neighbours, "
    "bool into_hidden, bool into_weights) -> (Tensor, Tensor, Tensor)",
)


def _activated(summed: Tensor, slope: bool) -> tuple[Tensor, Tensor]:
    if not slope:
        return F.gelu(summed), summed.new_empty(0)
    return F.gelu(summed), torch.ops.aten.gelu_backward(torch.ones_like(summed), summed)


def _shapes(
    hidden: Tensor, kernel: Tensor, offset: Tensor, into_hidden: bool, into_weights: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape if into_hidden else (0,)),
        kernel.new_empty(kernel.shape if into_weights else (0,)),
        offset.new_empty(offset.shape if into_weights else (0,)),
    )


def _nothing(
    hidden: Tensor, kernel: Tensor, offset: Tensor, into_hidden: bool, into_weights: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients where there is no token at all."""
    grad_hidden, grad_kernel, grad_offset = _shapes(hidden, kernel, offset, into_hidden, into_weights)
    return grad_hidden, grad_kernel.zero_(), grad_offset.zero_()


# Whole maps


@torch.library.impl("routespace::map_gelu", "CUDA")
def _map_gelu(
    hidden: Tensor, kernel: Tensor, offset: Tensor, height: int, width: int, slope: bool
) -> tuple[Tensor, Tensor]:
    if not hidden.numel():
        return torch.empty_like(hidden), hidden.new_empty(hidden.shape if slope else 0)
    from routespace.nn.kernels.map_triton import depthwise_gelu

    return depthwise_gelu(
        hidden.contiguous(), kernel.contiguous(), offset.contiguous(), height, width, slope=slope
    )


@torch.library.impl("routespace::map_gelu_backward", "CUDA")
def _map_gelu_backward(
    grad: Tensor, hidden: Tensor, kernel: Tensor, offset: Tensor, slope: Tensor, height: int, width: int,
    into_hidden: bool, into_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if not hidden.numel():
        return _nothing(hidden, kernel, offset, into_hidden, into_weights)
    from routespace.nn.kernels.map_backward_triton import depthwise_gelu_backward

    return depthwise_gelu_backward(
        grad.contiguous(), hidden.contiguous(), kernel.contiguous(), slope.contiguous(), height, width,
        into_hidden=into_hidden, into_weights=into_weights,
    )  # fmt: skip


def convolved_maps(hidden: Tensor, kernel: Tensor, offset: Tensor, hw: tuple[int, int]) -> Tensor:
    """(B, N, R) → (B, N, R), plainly: what goes into the GELU."""
    maps = as_map(hidden.contiguous(), hw)
    return as_tokens(F.conv2d(maps, kernel, offset, padding=1, groups=hidden.shape[2])).contiguous()


@torch.library.impl("routespace::map_gelu", "CPU")
def _plain_map_gelu(
    hidden: Tensor, kernel: Tensor, offset: Tensor, height: int, width: int, slope: bool
) -> tuple[Tensor, Tensor]:
    return _activated(convolved_maps(hidden, kernel, offset, (height, width)), slope)


@torch.library.impl("routespace::map_gelu_backward", "CPU")
def _plain_map_gelu_backward(
    grad: Tensor, hidden: Tensor, kernel: Tensor, offset: Tensor, slope: Tensor, height: int, width: int,
    into_hidden: bool, into_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    product = as_map((grad * slope).contiguous(), (height, width))
    one, groups = [1, 1], hidden.shape[2]
    grad_maps, grad_kernel, _none = torch.ops.aten.convolution_backward(
        product, as_map(hidden.contiguous(), (height, width)), kernel, None,
        one, one, one, False, [0, 0], groups, [into_hidden, into_weights, False],
    )  # fmt: skip
    return (
        as_tokens(grad_maps).contiguous() if into_hidden else hidden.new_empty(0),
        grad_kernel.contiguous() if into_weights else kernel.new_empty(0),
        as_rows(product).sum(0) if into_weights else offset.new_empty(0),
    )


@torch.library.register_fake("routespace::map_gelu")
def _map_gelu_shape(
    hidden: Tensor, kernel: Tensor, offset: Tensor, height: int, width: int, slope: bool
) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape), hidden.new_empty(hidden.shape if slope else (0,))


@torch.library.register_fake("routespace::map_gelu_backward")
def _map_gelu_backward_shape(
    grad: Tensor, hidden: Tensor, kernel: Tensor, offset: Tensor, slope: Tensor, height: int, width: int,
    into_hidden: bool, into_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _shapes(hidden, kernel, offset, into_hidden, into_weights)


# Packed rows


@torch.library.impl("routespace::gather_gelu", "CUDA")
def _gather_gelu(
    hidden: Tensor, taps: Tensor, offset: Tensor, neighbours: Tensor, slope: bool
) -> tuple[Tensor, Tensor]:
    if not hidden.numel():
        return torch.empty_like(hidden), hidden.new_empty(hidden.shape if slope else 0)
    from routespace.nn.kernels.depthwise_triton import gather_gelu

    return gather_gelu(
        hidden.contiguous(), taps.contiguous(), offset.contiguous(), neighbours.contiguous(), slope=slope
    )


@torch.library.impl("routespace::gather_gelu_backward", "CUDA")
def _gather_gelu_backward(
    grad: Tensor, hidden: Tensor, taps: Tensor, offset: Tensor, slope: Tensor, neighbours: Tensor,
    into_hidden: bool, into_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if not hidden.numel():
        return _nothing(hidden, taps, offset, into_hidden, into_weights)
    from routespace.nn.kernels.gather_backward_triton import gather_gelu_backward

    return gather_gelu_backward(
        grad.contiguous(), hidden.contiguous(), taps.contiguous(), slope.contiguous(), neighbours.contiguous(),
        into_hidden=into_hidden, into_weights=into_weights,
    )  # fmt: skip


def convolved_rows(hidden: Tensor, taps: Tensor, offset: Tensor, neighbours: Tensor) -> Tensor:
    """(n, R) → (n, R), plainly: what goes into the GELU."""
    return gather_depthwise(zero_behind(hidden), taps, offset, neighbours).to(hidden.dtype)


@torch.library.impl("routespace::gather_gelu", "CPU")
def _plain_gather_gelu(
    hidden: Tensor, taps: Tensor, offset: Tensor, neighbours: Tensor, slope: bool
) -> tuple[Tensor, Tensor]:
    return _activated(convolved_rows(hidden, taps, offset, neighbours), slope)


@torch.library.impl("routespace::gather_gelu_backward", "CPU")
def _plain_gather_gelu_backward(
    grad: Tensor, hidden: Tensor, taps: Tensor, offset: Tensor, slope: Tensor, neighbours: Tensor,
    into_hidden: bool, into_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    product = grad * slope
    found = gathered_grads(product, zero_behind(hidden), taps, neighbours)
    return (
        found.hidden.to(hidden.dtype) if into_hidden else hidden.new_empty(0),
        found.taps.to(taps.dtype) if into_weights else taps.new_empty(0),
        found.offset.to(offset.dtype) if into_weights else offset.new_empty(0),
    )


@torch.library.register_fake("routespace::gather_gelu")
def _gather_gelu_shape(
    hidden: Tensor, taps: Tensor, offset: Tensor, neighbours: Tensor, slope: bool
) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape), hidden.new_empty(hidden.shape if slope else (0,))


@torch.library.register_fake("routespace::gather_gelu_backward")
def _gather_gelu_backward_shape(
    grad: Tensor, hidden: Tensor, taps: Tensor, offset: Tensor, slope: Tensor, neighbours: Tensor,
    into_hidden: bool, into_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _shapes(hidden, taps, offset, into_hidden, into_weights)
