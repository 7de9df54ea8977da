"""Gather, 3×3 depth-wise convolution, bias and GELU of packed tokens in one Triton kernel, for CUDA.

At fine scales a GPU waits for memory, not for arithmetic: this reads each hidden row from the cache nine times
and writes it once, where scatter, convolution, gather and GELU would write four maps. The backward gathers too,
because token i is neighbour k of j exactly when j is neighbour 8 − k of i.

Shape legend: n kept tokens of the whole batch · R hidden channels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from routespace.nn.kernels.gelu_triton import gelu

TAPS = 9
# Of the forward pass; the fastest of six shapes on an H200.
BLOCK_ROWS, BLOCK_CHANNELS, WARPS = 16, 64, 4
SUM_BLOCK_ROWS = 16
SUM_ROWS = 256  # rows that one program of the weight gradient adds up before it writes


# Triton reads annotations as code, in which only its own names may stand.
@triton.jit
def _gather_kernel(
    hidden: tl.tensor, taps: tl.tensor, offset: tl.tensor, neighbours: tl.tensor, summed: tl.tensor,
    activated: tl.tensor, n: tl.tensor, r: tl.tensor,
    ACTIVATE: tl.constexpr, SUM: tl.constexpr, FLIP: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    # Channels are the inner ones of the programs: those that run together read whole rows of memory.
    blocks = tl.cdiv(r, CHANNELS)
    row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    row_ok, channel_ok = row < n, channel < r
    total = tl.zeros((ROWS, CHANNELS), dtype=tl.float32)
    for k in tl.static_range(9):
        index = tl.load(neighbours + k * n + row, mask=row_ok, other=n)
        here = (index < n)[:, None] & channel_ok[None, :]
        place = index[:, None].to(tl.int64) * r + channel[None, :]
        part = tl.load(hidden + place, mask=here, other=0.0).to(tl.float32)
        tap = 8 - k if FLIP else k
        total += part * tl.load(taps + tap * r + channel, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
    place = row[:, None].to(tl.int64) * r + channel[None, :]
    inside = row_ok[:, None] & channel_ok[None, :]
    if ACTIVATE:
        total += tl.load(offset + channel, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
        tl.store(activated + place, gelu(total).to(activated.dtype.element_ty), mask=inside)
    if SUM:
        tl.store(summed + place, total.to(summed.dtype.element_ty), mask=inside)


@triton.jit
def _taps_kernel(
    grad: tl.tensor, hidden: tl.tensor, neighbours: tl.tensor, grad_taps: tl.tensor, n: tl.tensor, r: tl.tensor,
    STEPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    k = tl.program_id(2)
    channel_ok = channel < r
    total = tl.zeros((CHANNELS,), dtype=tl.float32)
    for step in range(STEPS):
        row = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        index = tl.load(neighbours + k * n + row, mask=row < n, other=n)
        here = (index < n)[:, None] & channel_ok[None, :]
        source = index[:, None].to(tl.int64) * r + channel[None, :]
        part = tl.load(hidden + source, mask=here, other=0.0).to(tl.float32)
        place = row[:, None].to(tl.int64) * r + channel[None, :]
        total += tl.sum(part * tl.load(grad + place, mask=here, other=0.0).to(tl.float32), axis=0)
    tl.atomic_add(grad_taps + k * r + channel, total, mask=channel_ok)


def _gather(
    hidden: Tensor,
    taps: Tensor,
    offset: Tensor | None,
    neighbours: Tensor,
    *,
    flip: bool = False,
    total: bool = True,
) -> tuple[Tensor, Tensor]:
    """The sums (n, R), where `total` wants them, and with an offset what is activated; else the sums again."""
    n, r = hidden.shape
    activated = torch.empty_like(hidden)
    summed = torch.empty_like(hidden) if offset is not None and total else activated
    _gather_kernel[(triton.cdiv(n, BLOCK_ROWS) * triton.cdiv(r, BLOCK_CHANNELS),)](
        hidden, taps, taps if offset is None else offset, neighbours, summed, activated, n, r,
        ACTIVATE=offset is not None, SUM=total, FLIP=flip,
        ROWS=BLOCK_ROWS, CHANNELS=BLOCK_CHANNELS, num_warps=WARPS,
    )  # fmt: skip
    return summed, activated


class _GatherGelu(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, taps: Tensor, offset: Tensor, neighbours: Tensor) -> Tensor:
        hidden = hidden.contiguous()
        summed, activated = _gather(hidden, taps, offset, neighbours)
        ctx.save_for_backward(hidden, taps, neighbours, summed)
        return activated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        hidden, taps, neighbours, summed = ctx.saved_tensors
        grad = torch.ops.aten.gelu_backward(grad.contiguous(), summed)
        grad_hidden, _ = _gather(grad, taps, None, neighbours, flip=True)
        n, r = hidden.shape
        grad_taps = torch.zeros(TAPS, r, device=grad.device, dtype=torch.float32)
        grid = (triton.cdiv(n, SUM_ROWS), triton.cdiv(r, BLOCK_CHANNELS), TAPS)
        _taps_kernel[grid](
            grad, hidden, neighbours, grad_taps, n, r,
            STEPS=SUM_ROWS // SUM_BLOCK_ROWS, ROWS=SUM_BLOCK_ROWS, CHANNELS=BLOCK_CHANNELS,
        )  # fmt: skip
        return grad_hidden, grad_taps.to(taps.dtype), grad.sum(0), None


def gather_gelu(hidden: Tensor, taps: Tensor, offset: Tensor, neighbours: Tensor) -> Tensor:
    """gelu(depth-wise convolution + bias) of packed rows; a skipped neighbour counts as zero.

    Args:
        hidden: (n, R), n > 0.
        taps: (9, R) contiguous, from `depthwise.taps_of`.
        offset: (R,).
        neighbours: (9, n) contiguous, see `KeptTokens.neighbours`.

    Returns:
        (n, R).
    """
    if torch.is_grad_enabled() and any(part.requires_grad for part in (hidden, taps, offset)):
        activated: Tensor = _GatherGelu.apply(hidden, taps, offset, neighbours)
    else:  # the sums are for the backward pass alone: a third of what is written and read
        _, activated = _gather(hidden.contiguous(), taps, offset, neighbours, total=False)
    return activated
