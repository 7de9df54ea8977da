"""Linear layer, 3×3 depth-wise convolution, GELU on packed tokens; a skipped neighbour counts as zero.

Three ways, one result:

    expand            eager. A zero row behind the packed ones makes the map by one `index_select`, then
                      convolution, then back: half the memory traffic of writing rows into a zero map. The
                      backward makes the map again instead of keeping it.
    scatter_depthwise the convolution of that, in plain operations with shapes that exporters know.
    gather_depthwise  nine gathers: only good where a compiler fuses them (eager, they would write nine maps),
                      and then close to the ideal.

On CUDA `routespace.nn.kernels.depthwise_ops` fuses the nine gathers with bias and GELU by hand.

Shape legend: B images · H, W map sides · N = H·W · n kept tokens of the whole batch · C, R channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from routespace.nn.kernels.linear import linear, padded_linear, weight_grad
from routespace.nn.packing.maps import as_map
from routespace.nn.packing.rows import spread_rows, zero_behind

TAPS = 9


class Expansion(NamedTuple):
    """The weights of the expanding half of a feed-forward layer.

    Attributes:
        weight, bias: (R, C) and (R,) of the linear layer.
        kernel, offset: (R, 1, 3, 3) and (R,) of the depth-wise convolution.
    """

    weight: Tensor
    bias: Tensor
    kernel: Tensor
    offset: Tensor

    def part(self, channels: slice) -> Expansion:
        """Some of the R hidden channels, without a copy: a depth-wise convolution never mixes them."""
        return Expansion(*(weight[channels] for weight in self))


class Layout(NamedTuple):
    """Where packed rows stand.

    Attributes:
        rows: (n,) distinct positions in the flat (B·N) batch.
        order: (B·N,) the row of each position, n where it is skipped.
        size: B, H, W.
    """

    rows: Tensor
    order: Tensor
    size: tuple[int, int, int]


def as_rows(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B·N, C), without a copy where the map is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _unpack(padded: Tensor, layout: Layout) -> Tensor:
    """(n + 1, R), the last row zero → (B, R, H, W), channels-last."""
    b, h, w = layout.size
    return as_map(padded.index_select(0, layout.order).view(b, h * w, -1), (h, w))


def _expand(rows: Tensor, weights: Expansion, layout: Layout) -> tuple[Tensor, Tensor]:
    """(n, C) → the hidden rows with a zero row (n + 1, R), and the convolved ones (n, R)."""
    hidden = padded_linear(rows, weights.weight, weights.bias)
    full = F.conv2d(_unpack(hidden, layout), weights.kernel, weights.offset, padding=1, groups=hidden.shape[1])
    return hidden, as_rows(full).index_select(0, layout.rows)


class _Expand(Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, kernel: Tensor, offset: Tensor, layout: Layout
    ) -> Tensor:
        hidden, convolved = _expand(rows, Expansion(weight, bias, kernel, offset), layout)
        ctx.save_for_backward(rows, weight, kernel, hidden, convolved, layout.rows, layout.order)
        ctx.size = layout.size
        return F.gelu(convolved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, kernel, hidden, convolved, positions, order = ctx.saved_tensors
        layout, n = Layout(positions, order, ctx.size), rows.shape[0]
        padded = torch.empty_like(hidden)
        torch.ops.aten.gelu_backward.grad_input(grad.contiguous(), convolved, grad_input=padded[:n])
        padded[n:].zero_()
        one, groups = [1, 1], kernel.shape[0]
        grad_map, grad_kernel, _ = torch.ops.aten.convolution_backward(
            _unpack(padded, layout), _unpack(hidden, layout), kernel, None,
            one, one, one, False, [0, 0], groups, [True, True, False],
        )  # fmt: skip
        grad_hidden = as_rows(grad_map).index_select(0, positions)
        grad_weight, grad_bias = weight_grad(grad_hidden, rows), grad_hidden.sum(0)
        return linear(grad_hidden, weight.t()), grad_weight, grad_bias, grad_kernel, padded[:n].sum(0), None


def expand(rows: Tensor, weights: Expansion, layout: Layout) -> Tensor:
    """Linear, convolution, GELU: (n, C) → (n, R). Follows autocast, as the layers themselves would."""
    device = rows.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return expand(rows.to(dtype), Expansion(*(w.to(dtype) for w in weights)), layout)
    if torch.is_grad_enabled() and any(part.requires_grad for part in (rows, *weights)):
        activated: Tensor = _Expand.apply(rows, *weights, layout)
    else:
        activated = torch.ops.aten.gelu_(_expand(rows, weights, layout)[1])
    return activated


def scatter_depthwise(hidden: Tensor, conv: Callable[[Tensor], Tensor], layout: Layout) -> Tensor:
    """(n, R) → (n, R), a convolution of maps alone; for exporters, and for layers that are not torch's own."""
    b, h, w = layout.size
    full = as_map(spread_rows(hidden, layout.rows, b * h * w).view(b, h * w, -1), (h, w))
    return as_rows(conv(full)).index_select(0, layout.rows)


def _nine(padded: Tensor, neighbours: Tensor) -> list[Tensor]:
    """(n + 1, R) → nine (n, R), the neighbours of each row."""
    return [padded.index_select(0, neighbours[k]) for k in range(TAPS)]


def _weighted(padded: Tensor, taps: Tensor, neighbours: Tensor) -> Tensor:
    parts = _nine(padded, neighbours)
    total = parts[0] * taps[0]
    for part, tap in zip(parts[1:], taps[1:], strict=True):
        total = total + part * tap
    return total


def gathered_grads(grad: Tensor, padded: Tensor, taps: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
    """Backward of nine gathers: from (n, R) and what `gather_depthwise` was given to (n, R) and (9, R).

    Token i is neighbour k of token j exactly when j is neighbour 8 − k of i: the backward gathers too.
    """
    grad_hidden = _weighted(zero_behind(grad), taps.flip(0), neighbours)
    return grad_hidden, torch.stack([(grad * part).sum(0) for part in _nine(padded, neighbours)])


class _GatherConv(Function):
    @staticmethod
    def forward(ctx: Any, padded: Tensor, taps: Tensor, neighbours: Tensor) -> Tensor:
        ctx.save_for_backward(padded, taps, neighbours)
        return _weighted(padded, taps, neighbours)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        padded, taps, neighbours = ctx.saved_tensors
        grad_hidden, grad_taps = gathered_grads(grad, padded, taps, neighbours)
        return zero_behind(grad_hidden), grad_taps, None


def _gather_conv(padded: Tensor, taps: Tensor, neighbours: Tensor) -> Tensor:
    convolved: Tensor = _GatherConv.apply(padded, taps, neighbours)
    return convolved


@cache
def tell_compiler() -> None:
    """Before anything here is compiled: nine gathers are one operation to the compiler, taken apart when it
    is differentiated; torch 2.11 fails before. (Not where this file is imported: saying so loads the compiler.)
    """
    torch.compiler.allow_in_graph(_gather_conv)


def taps_of(weight: Tensor) -> Tensor:
    """(R, 1, 3, 3) → (9, R), contiguous. Make it outside the compiled function: fused, it is read with strides."""
    return weight.view(weight.shape[0], TAPS).t().contiguous()


def gather_depthwise(padded: Tensor, taps: Tensor, bias: Tensor, neighbours: Tensor) -> Tensor:
    """Nine gathers; call it inside a compiled function.

    Args:
        padded: (n + 1, R), the last row zero: what a skipped neighbour reads. No gather asks where its row lies,
            as it would of a padding that the compiler does without.
        taps: (9, R), from `taps_of`.
        bias: (R,).
        neighbours: (9, n), see `KeptTokens.neighbours`.

    Returns:
        (n, R).
    """
    if torch.is_grad_enabled() and padded.requires_grad:
        convolved: Tensor = _gather_conv(padded, taps, neighbours) + bias
        return convolved
    return _weighted(padded, taps, neighbours) + bias
