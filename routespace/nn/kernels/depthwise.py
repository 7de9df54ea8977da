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

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from routespace.nn.kernels.gelu import gelu
from routespace.nn.kernels.linear import linear, onednn_convolves, padded_linear, weight_grad
from routespace.nn.packing.maps import as_map
from routespace.nn.packing.rows import spread_rows, zero_behind

TAPS = 9
# Sums of so many rows are made first, and then the sums of these. A compiler adds up a few columns at a time, for
# which it goes through all the rows: one row in a page, and none in a cache. PVTv2-b2 on an Intel Xeon, half of 8
# maps of rate 4: nine gradients of taps take 12.8 ms with 32 rows at once, 14.7 with 16, 19.5 with 64.
ROWS_AT_ONCE = 32
# Of the normal distribution's tail: how near a number is to 0, a series of that, and the height of the bell.
NEARNESS = 0.3275911 * math.sqrt(0.5)
SERIES = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
BELL_HEIGHT = 1 / math.sqrt(2 * math.pi)


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


def depthwise_gelu(maps: Tensor, kernel: Tensor, offset: Tensor) -> Tensor:
    """Convolution and GELU of whole maps, without autograd; by oneDNN in one pass over the result.

    Args:
        maps: (B, R, H, W).
        kernel, offset: (R, 1, 3, 3) and (R,).

    Returns:
        (B, R, H, W).
    """
    one, groups = [1, 1], kernel.shape[0]
    activated: Tensor
    if onednn_convolves(maps, kernel, offset):
        pointwise = torch.ops.mkldnn._convolution_pointwise
        activated = pointwise(maps, kernel, offset, one, one, one, groups, "gelu", [], "none")
    else:
        activated = torch.ops.aten.gelu_(F.conv2d(maps, kernel, offset, padding=1, groups=groups))
    return activated


def scatter_depthwise(hidden: Tensor, conv: Callable[[Tensor], Tensor], layout: Layout) -> Tensor:
    """(n, R) → (n, R), a convolution of maps alone; for exporters, and for layers that are not torch's own."""
    b, h, w = layout.size
    full = as_map(spread_rows(hidden, layout.rows, b * h * w).view(b, h * w, -1), (h, w))
    return as_rows(conv(full)).index_select(0, layout.rows)


def _nine(padded: Tensor, neighbours: Tensor) -> list[Tensor]:
    """(n + 1, R) → nine (n, R), the neighbours of each row: to a compiler a gather of indices never negative.

    And one that it does not do again in a backward pass, as it would all of a forward pass that begins with
    `index_select`, to keep one map less.
    """
    return [F.embedding(neighbours[k], padded) for k in range(TAPS)]


def _nine_again(padded: Tensor, neighbours: Tensor) -> list[Tensor]:
    """As `_nine`, for a backward pass: told otherwise, or a compiler would keep those of the forward pass."""
    width = padded.shape[1]
    return [padded.gather(0, neighbours[k, :, None].long().expand(-1, width)) for k in range(TAPS)]


def _weighted(parts: list[Tensor], taps: Tensor) -> Tensor:
    total = parts[0] * taps[0]
    for part, tap in zip(parts[1:], taps[1:], strict=True):
        total = total + part * tap
    return total


class GatheredGrads(NamedTuple):
    """What `gathered_grads` returns.

    Attributes:
        hidden: (n, R) of the rows.
        behind: (R,) of the row behind them.
        taps: (9, R).
        offset: (R,).
    """

    hidden: Tensor
    behind: Tensor
    taps: Tensor
    offset: Tensor


def gathered_grads(grad: Tensor, padded: Tensor, taps: Tensor, neighbours: Tensor) -> GatheredGrads:
    """Backward of nine gathers and their bias, from (n, R) and what `gather_depthwise` was given.

    Token i is neighbour k of token j exactly when j is neighbour 8 − k of i: the backward gathers too. And what
    does not go to a row goes to the one behind them.
    """
    grad_hidden = _weighted(_nine_again(zero_behind(grad), neighbours), taps.flip(0))
    grad_offset = sum_of_rows(grad)
    grad_taps = torch.stack([sum_of_rows(grad * part) for part in _nine_again(padded, neighbours)])
    return GatheredGrads(grad_hidden, grad_offset * taps.sum(0) - sum_of_rows(grad_hidden), grad_taps, grad_offset)


def sum_of_rows(x: Tensor) -> Tensor:
    """(n, R) → (R,), in blocks and a rest; to a compiler numbers of 0 and of 1 would be graphs of their own."""
    n, width = x.shape
    if n < 2 * ROWS_AT_ONCE + 2:
        return x.sum(0)
    whole = n - 2 - (n - 2) % ROWS_AT_ONCE
    blocks = x[:whole].view(-1, ROWS_AT_ONCE, width).sum(1)
    return blocks.sum(0) + x[whole:].sum(0)


def _gelu_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    """GELU and its derivative from one exponential: Abramowitz and Stegun's 7.1.26, right to 1.5e-7."""
    if x.dtype == torch.float64:
        return F.gelu(x), torch.ops.aten.gelu_backward(torch.ones_like(x), x)
    wide = x.float()
    near = 1 / (1 + NEARNESS * wide.abs())
    bell = torch.exp(-0.5 * wide * wide)
    series = torch.zeros_like(near)
    for factor in SERIES:
        series = (series + factor) * near
    tail = series * (0.5 * bell)
    below = torch.where(wide > 0, 1 - tail, tail)
    return (wide * below).to(x.dtype), (below + wide * bell * BELL_HEIGHT).to(x.dtype)


class _GatherGelu(Function):
    @staticmethod
    def forward(ctx: Any, padded: Tensor, taps: Tensor, offset: Tensor, neighbours: Tensor) -> Tensor:
        activated, slope = _gelu_and_slope(_weighted(_nine(padded, neighbours), taps) + offset)
        ctx.save_for_backward(padded, taps, slope, neighbours)
        return activated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        padded, taps, slope, neighbours = ctx.saved_tensors
        found = gathered_grads(grad * slope, padded, taps, neighbours)
        return torch.cat((found.hidden, found.behind[None])), found.taps, found.offset, None


def _gather_gelu(padded: Tensor, taps: Tensor, offset: Tensor, neighbours: Tensor) -> Tensor:
    activated: Tensor = _GatherGelu.apply(padded, taps, offset, neighbours)
    return activated


@cache
def tell_compiler() -> None:
    """Before anything here is compiled: nine gathers are one operation to the compiler, taken apart when it
    is differentiated; torch 2.11 fails before. (Not where this file is imported: saying so loads the compiler.)
    """
    torch.compiler.allow_in_graph(_gather_gelu)


def taps_of(weight: Tensor) -> Tensor:
    """(R, 1, 3, 3) → (9, R), contiguous. Make it outside the compiled function: fused, it is read with strides."""
    return weight.view(weight.shape[0], TAPS).t().contiguous()


def gather_depthwise(padded: Tensor, taps: Tensor, bias: Tensor, neighbours: Tensor) -> Tensor:
    """Nine gathers; call it inside a compiled function.

    Args:
        padded: (n + 1, R), the last row being what a skipped neighbour reads. No gather asks where its row lies,
            as it would of a padding that the compiler does without.
        taps: (9, R), from `taps_of`.
        bias: (R,).
        neighbours: (9, n), see `KeptTokens.neighbours`.

    Returns:
        (n, R).
    """
    return _weighted(_nine(padded, neighbours), taps) + bias


def gather_gelu(padded: Tensor, taps: Tensor, bias: Tensor, neighbours: Tensor) -> Tensor:
    """As `gather_depthwise`, and then GELU; its backward pass gathers too, where autograd's own would scatter."""
    if torch.is_grad_enabled() and padded.requires_grad:
        return _gather_gelu(padded, taps, bias, neighbours)
    return gelu(gather_depthwise(padded, taps, bias, neighbours))
