"""3×3 depth-wise convolution, bias and GELU of whole channels-last maps in one Triton kernel, for CUDA.

Each hidden number is read from memory once and its result written once. A program takes some columns of the maps
(of all images side by side) and some channels, and walks down a strip of rows. Two sums go with it, of the row
above and of this one; the shifted reads of left and right neighbours hit the cache.

Shape legend: B images · H, W map sides · N = H·W · R hidden channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from routespace.nn.kernels.gelu_triton import gelu, gelu_and_slope
from routespace.nn.kernels.taps_triton import load_taps
from routespace.nn.packing.launch import launch, parts

COLUMNS, CHANNELS, WARPS = 16, 64, 4  # the fastest of six shapes on an H200
PROGRAMS = 2048  # that keep a GPU busy: with fewer, strips are made shorter
LEAST_STRIP = 2


# Triton reads annotations as code, in which only its own names may stand.
@triton.jit
def _map_kernel(  # noqa: PLR0915 — nine taps, each a name, as a kernel knows no lists
    hidden: tl.tensor, kernel: tl.tensor, offset: tl.tensor, slope: tl.tensor, activated: tl.tensor,
    columns: tl.tensor, height: tl.tensor, width: tl.tensor, r: tl.tensor,
    SLOPE: tl.constexpr, STRIP: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    # Channels are the inner ones of the programs: those that run together read whole rows of memory.
    blocks = tl.cdiv(r, CHANNELS)
    column = tl.program_id(0) // blocks * COLUMNS + tl.arange(0, COLUMNS)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.program_id(1) * STRIP
    channel_ok = channel < r
    image, x = column // width, column % width
    here = (column < columns)[:, None] & channel_ok[None, :]
    left_ok = here & (x > 0)[:, None]
    right_ok = here & (x < width - 1)[:, None]
    step = width * r
    # Positions in the row above the strip; each pass of the loop goes one row down.
    place = ((image.to(tl.int64) * height + first - 1) * width + x)[:, None] * r + channel[None, :]

    k0, k1, k2, k3, k4, k5, k6, k7, k8 = load_taps(kernel, channel, channel_ok)
    shift = tl.load(offset + channel, mask=channel_ok, other=0.0).to(tl.float32)[None, :]

    # The row above counts towards the strip's first row alone, and that one towards itself and the next.
    above = first > 0
    left = tl.load(hidden + place - r, mask=left_ok & above, other=0.0).to(tl.float32)
    middle = tl.load(hidden + place, mask=here & above, other=0.0).to(tl.float32)
    right = tl.load(hidden + place + r, mask=right_ok & above, other=0.0).to(tl.float32)
    below = shift + left * k0 + middle * k1 + right * k2
    place += step
    left = tl.load(hidden + place - r, mask=left_ok, other=0.0).to(tl.float32)
    middle = tl.load(hidden + place, mask=here, other=0.0).to(tl.float32)
    right = tl.load(hidden + place + r, mask=right_ok, other=0.0).to(tl.float32)
    current = below + left * k3 + middle * k4 + right * k5
    below = shift + left * k0 + middle * k1 + right * k2
    place += step
    inside = first + 1 < height
    next_left = tl.load(hidden + place - r, mask=left_ok & inside, other=0.0)
    next_middle = tl.load(hidden + place, mask=here & inside, other=0.0)
    next_right = tl.load(hidden + place + r, mask=right_ok & inside, other=0.0)
    later_middle = tl.load(hidden + place + step, mask=here & (first + 2 < height), other=0.0)
    for done in range(STRIP):
        y = first + done
        left, middle, right = next_left.to(tl.float32), next_middle.to(tl.float32), next_right.to(tl.float32)
        # While this pass computes, the reads of the next ones are on their way: from memory two rows ahead, and
        # one row ahead those of neighbours, which the cache then has.
        place += step
        inside = y + 2 < height
        next_left = tl.load(hidden + place - r, mask=left_ok & inside, other=0.0)
        next_right = tl.load(hidden + place + r, mask=right_ok & inside, other=0.0)
        next_middle = later_middle
        later_middle = tl.load(hidden + place + step, mask=here & (y + 3 < height), other=0.0)
        total = current + left * k6 + middle * k7 + right * k8
        current = below + left * k3 + middle * k4 + right * k5
        below = shift + left * k0 + middle * k1 + right * k2
        written = here & (y < height)
        if SLOPE:
            total, found = gelu_and_slope(total)
            tl.store(slope + place - 2 * step, found.to(slope.dtype.element_ty), mask=written)
        else:
            total = gelu(total)
        tl.store(activated + place - 2 * step, total.to(activated.dtype.element_ty), mask=written)


def strip_rows(height: int, programs: int) -> int:
    """How many rows a program walks down, where `programs` of them would take whole maps."""
    strip = height
    while programs * -(-height // strip) < PROGRAMS and strip > LEAST_STRIP:
        strip = -(-strip // 2)
    return strip


def depthwise_gelu(
    hidden: Tensor, kernel: Tensor, offset: Tensor, height: int, width: int, *, slope: bool
) -> tuple[Tensor, Tensor]:
    """gelu(depth-wise convolution + bias) of token maps.

    Args:
        hidden: (B, N, R) contiguous, N = height·width > 0.
        kernel: (R, 1, 3, 3) contiguous.
        offset: (R,).
        height, width: of the maps.
        slope: also give the GELU's derivative, all that a backward pass needs of the sums.

    Returns:
        (B, N, R) activated, and the GELU's derivative of the same shape, empty without `slope`.
    """
    r, columns = hidden.shape[2], hidden.shape[0] * width
    activated = torch.empty_like(hidden)
    slopes = torch.empty_like(hidden) if slope else hidden.new_empty(0)
    blocks = parts(columns, COLUMNS) * parts(r, CHANNELS)
    strip = strip_rows(height, blocks)
    launch(
        _map_kernel,
        (blocks, parts(height, strip)),
        (hidden, kernel, offset, slopes if slope else activated, activated, columns, height, width, r),
        {"SLOPE": slope, "STRIP": strip, "COLUMNS": COLUMNS, "CHANNELS": CHANNELS},
        num_warps=WARPS,
    )
    return activated, slopes
