"""The backward pass of `map_triton.depthwise_gelu` in one Triton kernel, for CUDA.

The forward pass left the GELU's derivative, so what goes into the convolution's backward is one product, made
where it is read. Each program walks down strips of rows: of the gradient it keeps two running sums, as the forward
pass does of the hidden numbers, and of these it keeps three rows, each read once. The nine weights' and the bias's
gradients gather in registers over all its strips; in the end it writes one partial sum of each, and adding up
these few is left to torch: a seed always gives the same result.

Shape legend: B images · H, W map sides · N = H·W · R hidden channels · P programs per block of channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from routespace.nn.kernels.map_triton import strip_rows
from routespace.nn.kernels.taps_triton import load_taps, store_sums
from routespace.nn.packing.launch import launch, parts

TAPS = 9
COLUMNS, CHANNELS, WARPS = 8, 64, 4  # four numbers a thread: 36 registers of weights, 40 of their gradients
REGISTERS = 168  # at most, which lets three programs of 128 threads run on a multiprocessor; nothing spills
PROGRAMS = 2048  # in all; each leaves ten sums of its channels


# Triton reads annotations as code, in which only its own names may stand.
@triton.jit(do_not_specialize=["tasks", "group", "strip", "strips", "columns", "height", "width"])
def _map_backward_kernel(  # noqa: PLR0915 — nine taps, each a name, as a kernel knows no lists
    grad: tl.tensor, slope: tl.tensor, hidden: tl.tensor, kernel: tl.tensor, grad_hidden: tl.tensor,
    partial: tl.tensor, tasks: tl.tensor, group: tl.tensor, strip: tl.tensor, strips: tl.tensor,
    columns: tl.tensor, height: tl.tensor, width: tl.tensor, r: tl.tensor,
    INTO_HIDDEN: tl.constexpr, INTO_WEIGHTS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    # Channels are the inner ones of the programs: those that run together read whole rows of memory.
    blocks = tl.cdiv(r, CHANNELS)
    program = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    channel_ok = channel < r
    step = width * r
    if INTO_HIDDEN:
        k0, k1, k2, k3, k4, k5, k6, k7, k8 = load_taps(kernel, channel, channel_ok)
    zero = tl.zeros((COLUMNS, CHANNELS), dtype=tl.float32)
    w0, w1, w2, w3, w4, w5, w6, w7, w8, shift = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    for task in range(program * group, tl.minimum((program + 1) * group, tasks)):
        column = task // strips * COLUMNS + tl.arange(0, COLUMNS)
        first = task % strips * strip
        last = tl.minimum(first + strip, height)  # the first row that is not of this strip
        image, x = column // width, column % width
        here = (column < columns)[:, None] & channel_ok[None, :]
        left_ok = here & (x > 0)[:, None]
        right_ok = here & (x < width - 1)[:, None]
        # Positions in the row above the strip; each pass of the loop goes one row down.
        place = ((image.to(tl.int64) * height + first - 1) * width + x)[:, None] * r + channel[None, :]
        above = first > 0
        grad_left = tl.load(grad + place - r, mask=left_ok & above, other=0.0)
        grad_middle = tl.load(grad + place, mask=here & above, other=0.0)
        grad_right = tl.load(grad + place + r, mask=right_ok & above, other=0.0)
        slope_left = tl.load(slope + place - r, mask=left_ok & above, other=0.0)
        slope_middle = tl.load(slope + place, mask=here & above, other=0.0)
        slope_right = tl.load(slope + place + r, mask=right_ok & above, other=0.0)
        later_grad = tl.load(grad + place + step, mask=here, other=0.0)
        later_slope = tl.load(slope + place + step, mask=here, other=0.0)
        current, below = zero, zero
        if INTO_WEIGHTS:  # the hidden rows above, at and below the gradient's row, where they are of the strip
            # Two values: of one that two names share, Triton does not see that it moves between them in a loop.
            own = tl.zeros((COLUMNS, CHANNELS), dtype=tl.float32)
            under = tl.zeros((COLUMNS, CHANNELS), dtype=tl.float32)
            next_hidden = tl.load(hidden + place + step, mask=here, other=0.0)
            later_hidden = tl.load(hidden + place + 2 * step, mask=here & (first + 1 < last), other=0.0)
        for y in range(first - 1, last + 1):
            left = grad_left.to(tl.float32) * slope_left.to(tl.float32)
            middle = grad_middle.to(tl.float32) * slope_middle.to(tl.float32)
            right = grad_right.to(tl.float32) * slope_right.to(tl.float32)
            # While this pass computes, the reads of the next ones are on their way: from memory two rows ahead,
            # and one row ahead those of neighbours, which the cache then has.
            place += step
            inside = (y < last) & (y + 1 < height)
            grad_left = tl.load(grad + place - r, mask=left_ok & inside, other=0.0)
            grad_right = tl.load(grad + place + r, mask=right_ok & inside, other=0.0)
            slope_left = tl.load(slope + place - r, mask=left_ok & inside, other=0.0)
            slope_right = tl.load(slope + place + r, mask=right_ok & inside, other=0.0)
            grad_middle, slope_middle = later_grad, later_slope
            inside = (y + 1 < last) & (y + 2 < height)
            later_grad = tl.load(grad + place + step, mask=here & inside, other=0.0)
            later_slope = tl.load(slope + place + step, mask=here & inside, other=0.0)
            if INTO_WEIGHTS:
                over, own, under = own, under, next_hidden.to(tl.float32)
                next_hidden = later_hidden
                later_hidden = tl.load(hidden + place + 2 * step, mask=here & (y + 3 < last), other=0.0)
                w0 += over * right
                w1 += over * middle
                w2 += over * left
                w3 += own * right
                w4 += own * middle
                w5 += own * left
                w6 += under * right
                w7 += under * middle
                w8 += under * left
                shift += tl.where((y >= first) & (y < last), middle, 0.0)
            if INTO_HIDDEN:
                total = current + left * k2 + middle * k1 + right * k0
                current = below + left * k5 + middle * k4 + right * k3
                below = left * k8 + middle * k7 + right * k6
                target = grad_hidden + place - 2 * step
                tl.store(target, total.to(grad_hidden.dtype.element_ty), mask=here & (y > first))
    if INTO_WEIGHTS:
        sums = partial + program.to(tl.int64) * 10 * r + channel
        store_sums(sums, r, channel_ok, w0, w1, w2, w3, w4, w5, w6, w7, w8)
        tl.store(sums + 9 * r, tl.sum(shift, axis=0), mask=channel_ok)


def depthwise_gelu_backward(
    grad: Tensor, hidden: Tensor, kernel: Tensor, slope: Tensor, height: int, width: int,
    *, into_hidden: bool, into_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of gelu(depth-wise convolution + bias) of token maps.

    Args:
        grad: (B, N, R) contiguous, of what is activated.
        hidden: (B, N, R) contiguous, N = height·width > 0.
        kernel: (R, 1, 3, 3) contiguous.
        slope: (B, N, R) contiguous, from `depthwise_gelu`.
        height, width: of the maps.
        into_hidden: whether the hidden numbers' gradient is wanted.
        into_weights: whether the kernel's or the bias's is.

    Returns:
        (B, N, R), (R, 1, 3, 3) and (R,) of the types of hidden and kernel; empty where they are not wanted.
    """
    r, columns = hidden.shape[2], hidden.shape[0] * width
    blocks, across = parts(r, CHANNELS), parts(columns, COLUMNS)
    strip = strip_rows(height, across * blocks)
    strips = parts(height, strip)
    group = parts(across * strips, max(1, PROGRAMS // blocks))
    programs = parts(across * strips, group)
    grad_hidden = torch.empty_like(hidden) if into_hidden else hidden.new_empty(0)
    partial = hidden.new_empty(programs if into_weights else 0, TAPS + 1, r, dtype=torch.float32)
    launch(
        _map_backward_kernel,
        (programs * blocks,),
        (
            grad, slope, hidden, kernel, grad_hidden if into_hidden else grad, partial,
            across * strips, group, strip, strips, columns, height, width, r,
        ),
        {"INTO_HIDDEN": into_hidden, "INTO_WEIGHTS": into_weights, "COLUMNS": COLUMNS, "CHANNELS": CHANNELS},
        num_warps=WARPS,
        maxnreg=REGISTERS,
    )  # fmt: skip
    if not into_weights:
        return grad_hidden, kernel.new_empty(0), kernel.new_empty(0)
    sums = partial.sum(0).to(kernel.dtype)
    return grad_hidden, sums[:TAPS].t().contiguous().view(r, 1, 3, 3), sums[TAPS].clone()
