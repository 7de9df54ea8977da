"""The backward pass of `depthwise_triton.gather_gelu` in two Triton kernels, for CUDA.

Token i is neighbour k of j exactly when j is neighbour 8 − k of i: so one gather of the gradient's nine neighbours
gives both the hidden numbers' gradient and, times the row's own hidden numbers, the nine weights'. A program walks
over rows that follow each other, so that the cache has most neighbours, and keeps the weights' sums in registers;
in the end it writes one partial sum of each, and adding up these few is left to torch: a seed always gives the
same result.

Shape legend: n kept tokens of the whole batch · R hidden channels · P programs per block of channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from routespace.nn.kernels.taps_triton import store_sums
from routespace.nn.packing.launch import launch, parts

TAPS = 9
ROWS, CHANNELS, WARPS = 8, 64, 4  # four numbers a thread: 36 registers of weights, 36 of their gradients
PROGRAMS = 2048  # in all; each leaves nine sums of its channels
PRODUCT_ROWS, PRODUCT_PROGRAMS = 16, 4096


# Triton reads annotations as code, in which only its own names may stand.
@triton.jit(do_not_specialize=["n", "group"])
def _product_kernel(
    grad: tl.tensor, slope: tl.tensor, product: tl.tensor, partial: tl.tensor,
    n: tl.tensor, group: tl.tensor, r: tl.tensor, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    blocks = tl.cdiv(r, CHANNELS)
    program = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    channel_ok = channel < r
    total = tl.zeros((ROWS, CHANNELS), dtype=tl.float32)
    for block in range(program * group, tl.minimum((program + 1) * group, tl.cdiv(n, ROWS))):
        row = block * ROWS + tl.arange(0, ROWS)
        inside = (row < n)[:, None] & channel_ok[None, :]
        place = row[:, None].to(tl.int64) * r + channel[None, :]
        given = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        found = given * tl.load(slope + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(product + place, found.to(product.dtype.element_ty), mask=inside)
        total += found
    tl.store(partial + program.to(tl.int64) * r + channel, tl.sum(total, axis=0), mask=channel_ok)


@triton.jit
def _neighbour(
    grad: tl.tensor, neighbours: tl.tensor, row: tl.tensor, channel: tl.tensor, row_ok: tl.tensor,
    channel_ok: tl.tensor, n: tl.tensor, r: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """What stands in the neighbours' rows, zero where one is skipped; `neighbours` of one of the nine."""
    index = tl.load(neighbours + row, mask=row_ok, other=n)
    here = (index < n)[:, None] & channel_ok[None, :]
    place = index[:, None].to(tl.int64) * r + channel[None, :]
    return tl.load(grad + place, mask=here, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["n", "group"])
def _gather_backward_kernel(  # noqa: PLR0915 — nine taps, each a name, as a kernel knows no lists
    grad: tl.tensor, hidden: tl.tensor, taps: tl.tensor, neighbours: tl.tensor, grad_hidden: tl.tensor,
    partial: tl.tensor, n: tl.tensor, group: tl.tensor, r: tl.tensor,
    INTO_HIDDEN: tl.constexpr, INTO_TAPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    # Channels are the inner ones of the programs: those that run together read whole rows of memory.
    blocks = tl.cdiv(r, CHANNELS)
    program = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    channel_ok = channel < r
    if INTO_HIDDEN:
        tap = taps + channel
        k0 = tl.load(tap, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
        k1 = tl.load(tap + r, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
        k2 = tl.load(tap + 2 * r, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
        k3 = tl.load(tap + 3 * r, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
        k4 = tl.load(tap + 4 * r, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
        k5 = tl.load(tap + 5 * r, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
        k6 = tl.load(tap + 6 * r, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
        k7 = tl.load(tap + 7 * r, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
        k8 = tl.load(tap + 8 * r, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
    zero = tl.zeros((ROWS, CHANNELS), dtype=tl.float32)
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    for block in range(program * group, tl.minimum((program + 1) * group, tl.cdiv(n, ROWS))):
        row = block * ROWS + tl.arange(0, ROWS)
        ok = row < n
        inside = ok[:, None] & channel_ok[None, :]
        place = row[:, None].to(tl.int64) * r + channel[None, :]
        p0 = _neighbour(grad, neighbours, row, channel, ok, channel_ok, n, r)
        p1 = _neighbour(grad, neighbours + n, row, channel, ok, channel_ok, n, r)
        p2 = _neighbour(grad, neighbours + 2 * n, row, channel, ok, channel_ok, n, r)
        p3 = _neighbour(grad, neighbours + 3 * n, row, channel, ok, channel_ok, n, r)
        p4 = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)  # a row's middle neighbour is itself
        p5 = _neighbour(grad, neighbours + 5 * n, row, channel, ok, channel_ok, n, r)
        p6 = _neighbour(grad, neighbours + 6 * n, row, channel, ok, channel_ok, n, r)
        p7 = _neighbour(grad, neighbours + 7 * n, row, channel, ok, channel_ok, n, r)
        p8 = _neighbour(grad, neighbours + 8 * n, row, channel, ok, channel_ok, n, r)
        if INTO_HIDDEN:
            total = p0 * k8 + p1 * k7 + p2 * k6 + p3 * k5 + p4 * k4 + p5 * k3 + p6 * k2 + p7 * k1 + p8 * k0
            tl.store(grad_hidden + place, total.to(grad_hidden.dtype.element_ty), mask=inside)
        if INTO_TAPS:
            own = tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32)
            w0 += own * p8
            w1 += own * p7
            w2 += own * p6
            w3 += own * p5
            w4 += own * p4
            w5 += own * p3
            w6 += own * p2
            w7 += own * p1
            w8 += own * p0
    if INTO_TAPS:
        sums = partial + program.to(tl.int64) * 9 * r + channel
        store_sums(sums, r, channel_ok, w0, w1, w2, w3, w4, w5, w6, w7, w8)


def _shares(n: int, rows: int, programs: int) -> tuple[int, int]:
    """How many of the n rows' blocks a program takes, and how many programs that makes."""
    group = parts(parts(n, rows), max(1, programs))
    return group, parts(parts(n, rows), group)


def product_and_sum(grad: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """grad · slope, (n, R) each and contiguous, n > 0; and that summed over the rows: (R,) float32."""
    n, r = grad.shape
    blocks = parts(r, CHANNELS)
    group, programs = _shares(n, PRODUCT_ROWS, PRODUCT_PROGRAMS // blocks)
    product = torch.empty_like(grad)
    partial = grad.new_empty(programs, r, dtype=torch.float32)
    launch(
        _product_kernel,
        (programs * blocks,),
        (grad, slope, product, partial, n, group, r),
        {"ROWS": PRODUCT_ROWS, "CHANNELS": CHANNELS},
        num_warps=4,
    )
    return product, partial.sum(0)


def gather_gelu_backward(
    grad: Tensor, hidden: Tensor, taps: Tensor, slope: Tensor, neighbours: Tensor,
    *, into_hidden: bool, into_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of gelu(depth-wise convolution + bias) of packed rows.

    Args:
        grad: (n, R) contiguous, n > 0, of what is activated.
        hidden: (n, R) contiguous.
        taps: (9, R) contiguous.
        slope: (n, R) contiguous, from `gather_gelu`.
        neighbours: (9, n) contiguous, see `KeptTokens.neighbours`.
        into_hidden: whether the hidden numbers' gradient is wanted.
        into_weights: whether the taps' or the bias's is.

    Returns:
        (n, R), (9, R) and (R,) of the types of hidden and taps; empty where they are not wanted.
    """
    n, r = hidden.shape
    product, grad_offset = product_and_sum(grad, slope)
    blocks = parts(r, CHANNELS)
    group, programs = _shares(n, ROWS, PROGRAMS // blocks)
    grad_hidden = torch.empty_like(hidden) if into_hidden else hidden.new_empty(0)
    partial = hidden.new_empty(programs if into_weights else 0, TAPS, r, dtype=torch.float32)
    launch(
        _gather_backward_kernel,
        (programs * blocks,),
        (product, hidden, taps, neighbours, grad_hidden if into_hidden else product, partial, n, group, r),
        {"INTO_HIDDEN": into_hidden, "INTO_TAPS": into_weights, "ROWS": ROWS, "CHANNELS": CHANNELS},
        num_warps=WARPS,
    )
    if not into_weights:
        return grad_hidden, taps.new_empty(0), taps.new_empty(0)
    return grad_hidden, partial.sum(0).to(taps.dtype), grad_offset.to(taps.dtype)
