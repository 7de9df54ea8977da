"""LayerNorm of narrow rows in one Triton kernel, for CUDA.

torch gives each row a block of threads of its own: at 64 channels that takes ten times what the bytes need. Here a
program takes so many rows that each thread has something to do.

Shape legend: T rows · C channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS = 4096  # that a program normalises; with four warps 32 of each thread


# Triton reads annotations as code, in which only its own names may stand.
@triton.jit
def _norm_kernel(
    x: tl.tensor, added: tl.tensor, weight: tl.tensor, bias: tl.tensor, normed: tl.tensor, means: tl.tensor,
    rstds: tl.tensor, t: tl.tensor, eps: tl.tensor,
    C: tl.constexpr, ADD: tl.constexpr, STATISTICS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)
    row_ok, channel_ok = row < t, channel < C
    inside = row_ok[:, None] & channel_ok[None, :]
    place = row[:, None] * C + channel[None, :]
    given = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        given += tl.load(added + channel, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
    mean = tl.sum(given, axis=1) / C
    centred = tl.where(channel_ok[None, :], given - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / C + eps)
    scale = tl.load(weight + channel, mask=channel_ok, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=channel_ok, other=0.0).to(tl.float32)
    found = centred * rstd[:, None] * scale[None, :] + shift[None, :]
    tl.store(normed + place, found.to(normed.dtype.element_ty), mask=inside)
    if STATISTICS:
        tl.store(means + row, mean, mask=row_ok)
        tl.store(rstds + row, rstd, mask=row_ok)


def normalize(
    rows: Tensor, weight: Tensor, bias: Tensor, eps: float, *, statistics: bool, added: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm over the last dimension.

    Args:
        rows: (T, C) contiguous, T > 0.
        weight, bias: (C,).
        eps: added to the variance.
        statistics: whether the backward pass will ask for them.
        added: (C,), what is added to each row before.

    Returns:
        (T, C), and (T, 1) float32 means and reciprocal deviations, empty without `statistics`.
    """
    t, c = rows.shape
    normed = torch.empty_like(rows)
    means, rstds = rows.new_empty(2, t if statistics else 0, 1, dtype=torch.float32)
    channels = triton.next_power_of_2(c)
    each = max(1, NUMBERS // channels)
    _norm_kernel[(triton.cdiv(t, each),)](
        rows, weight if added is None else added, weight, bias, normed, means, rstds, t, eps,
        C=c, ADD=added is not None, STATISTICS=statistics, ROWS=each, CHANNELS=channels,
    )  # fmt: skip
    return normed, means, rstds
