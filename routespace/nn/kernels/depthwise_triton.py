"""Gather, 3×3 depth-wise convolution, bias and GELU of packed tokens in one Triton kernel, for CUDA.

At fine scales a GPU waits for memory, not for arithmetic: this reads each hidden row from the cache nine times
and writes it once, where scatter, convolution, gather and GELU would write four maps.

Shape legend: n kept tokens of the whole batch · R hidden channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from routespace.nn.kernels.gelu_triton import gelu, gelu_and_slope
from routespace.nn.packing.launch import launch, parts

BLOCK_ROWS, BLOCK_CHANNELS, WARPS = 16, 64, 4  # the fastest of six shapes on an H200


# Triton reads annotations as code, in which only its own names may stand.
@triton.jit
def _gather_kernel(
    hidden: tl.tensor, taps: tl.tensor, offset: tl.tensor, neighbours: tl.tensor, slope: tl.tensor,
    activated: tl.tensor, n: tl.tensor, r: tl.tensor,
    SLOPE: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    # Channels are the inner ones of the programs: those that run together read whole rows of memory.
    blocks = tl.cdiv(r, CHANNELS)
    row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    row_ok, channel_ok = row < n, channel < r
    total = tl.load(offset + channel, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
    for k in tl.static_range(9):
        index = tl.load(neighbours + k * n + row, mask=row_ok, other=n)
        here = (index < n)[:, None] & channel_ok[None, :]
        place = index[:, None].to(tl.int64) * r + channel[None, :]
        part = tl.load(hidden + place, mask=here, other=0.0).to(tl.float32)
        total += part * tl.load(taps + k * r + channel, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
    place = row[:, None].to(tl.int64) * r + channel[None, :]
    inside = row_ok[:, None] & channel_ok[None, :]
    if SLOPE:
        total, found = gelu_and_slope(total)
        tl.store(slope + place, found.to(slope.dtype.element_ty), mask=inside)
    else:
        total = gelu(total)
    tl.store(activated + place, total.to(activated.dtype.element_ty), mask=inside)


def gather_gelu(
    hidden: Tensor, taps: Tensor, offset: Tensor, neighbours: Tensor, *, slope: bool
) -> tuple[Tensor, Tensor]:
    """gelu(depth-wise convolution + bias) of packed rows; a skipped neighbour counts as zero.

    Args:
        hidden: (n, R) contiguous, n > 0.
        taps: (9, R) contiguous, from `depthwise.taps_of`.
        offset: (R,).
        neighbours: (9, n) contiguous, see `KeptTokens.neighbours`.
        slope: also give the GELU's derivative, all that a backward pass needs of the sums.

    Returns:
        (n, R) activated, and the GELU's derivative of the same shape, empty without `slope`.
    """
    n, r = hidden.shape
    activated = torch.empty_like(hidden)
    slopes = torch.empty_like(hidden) if slope else hidden.new_empty(0)
    launch(
        _gather_kernel,
        (parts(n, BLOCK_ROWS) * parts(r, BLOCK_CHANNELS),),
        (hidden, taps, offset, neighbours, slopes if slope else activated, activated, n, r),
        {"SLOPE": slope, "ROWS": BLOCK_ROWS, "CHANNELS": BLOCK_CHANNELS},
        num_warps=WARPS,
    )
    return activated, slopes
