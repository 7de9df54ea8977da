"""LayerNorm of narrow rows in one Triton kernel, forwards and backwards, with the sum in front of it; for CUDA.

torch gives each row a block of threads of its own: at 64 channels that takes ten times what the bytes need. Here a
program takes so many rows that each thread has something to do. A block's sum of two branches is written on the
way, and in the backward pass the gradient that comes around the norm is added on the way.

Shape legend: T rows · C channels · P programs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from routespace.nn.packing.launch import launch, parts, power_of_two

NUMBERS = 4096  # that a program normalises; with four warps 32 of each thread
BACK_NUMBERS = 2048  # in the backward pass, which keeps more of each
BACK_PROGRAMS = 1056  # at most, each with sums of its own: eight on each of 132 multiprocessors


# Triton reads annotations as code, in which only its own names may stand.
@triton.jit
def _norm_kernel(
    x: tl.tensor, added: tl.tensor, branch: tl.tensor, after: tl.tensor, weight: tl.tensor, bias: tl.tensor,
    total: tl.tensor, normed: tl.tensor, means: tl.tensor, rstds: tl.tensor, t: tl.tensor, eps: tl.tensor,
    C: tl.constexpr, ADD: tl.constexpr, BRANCH: tl.constexpr, AFTER: tl.constexpr, STATISTICS: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)
    row_ok, channel_ok = row < t, channel < C
    inside = row_ok[:, None] & channel_ok[None, :]
    place = row[:, None] * C + channel[None, :]
    given = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        given += tl.load(added + channel, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
    if BRANCH:
        given += tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
        rounded = given.to(total.dtype.element_ty)  # what others read of the sum is what is normed
        tl.store(total + place, rounded, mask=inside)
        given = rounded.to(tl.float32)
    mean = tl.sum(given, axis=1) / C
    centred = tl.where(channel_ok[None, :], given - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / C + eps)
    scale = tl.load(weight + channel, mask=channel_ok, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=channel_ok, other=0.0).to(tl.float32)
    found = centred * rstd[:, None] * scale[None, :] + shift[None, :]
    if AFTER:
        found += tl.load(after + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + place, found.to(normed.dtype.element_ty), mask=inside)
    if STATISTICS:
        tl.store(means + row, mean, mask=row_ok)
        tl.store(rstds + row, rstd, mask=row_ok)


@triton.jit
def _back_kernel(
    grad: tl.tensor, around: tl.tensor, rows: tl.tensor, weight: tl.tensor, means: tl.tensor, rstds: tl.tensor,
    grad_rows: tl.tensor, grad_branch: tl.tensor, sums: tl.tensor, t: tl.tensor, steps: tl.tensor,
    C: tl.constexpr, AROUND: tl.constexpr, BRANCH: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    channel = tl.arange(0, CHANNELS)
    channel_ok = channel < C
    scale = tl.load(weight + channel, mask=channel_ok, other=0.0).to(tl.float32)
    of_weight = tl.zeros((ROWS, CHANNELS), dtype=tl.float32)
    of_bias = tl.zeros((ROWS, CHANNELS), dtype=tl.float32)
    first = tl.program_id(0) * ROWS
    for _ in range(steps):
        row = first.to(tl.int64) + tl.arange(0, ROWS)
        row_ok = row < t
        inside = row_ok[:, None] & channel_ok[None, :]
        place = row[:, None] * C + channel[None, :]
        given = tl.load(rows + place, mask=inside, other=0.0).to(tl.float32)
        arriving = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(means + row, mask=row_ok, other=0.0)
        rstd = tl.load(rstds + row, mask=row_ok, other=0.0)
        unit = tl.where(inside, (given - mean[:, None]) * rstd[:, None], 0.0)
        of_weight += arriving * unit
        of_bias += arriving
        scaled = arriving * scale[None, :]
        along = tl.sum(scaled * unit, axis=1) / C
        level = tl.sum(scaled, axis=1) / C
        found = rstd[:, None] * (scaled - level[:, None] - unit * along[:, None])
        if AROUND:
            found += tl.load(around + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_rows + place, found.to(grad_rows.dtype.element_ty), mask=inside)
        if BRANCH:
            tl.store(grad_branch + place, found.to(grad_branch.dtype.element_ty), mask=inside)
        first += tl.num_programs(0) * ROWS  # so that programs that run together read rows that lie together
    own = sums + tl.program_id(0) * 2 * C + channel
    tl.store(own, tl.sum(of_weight, axis=0), mask=channel_ok)
    tl.store(own + C, tl.sum(of_bias, axis=0), mask=channel_ok)


class Normed(NamedTuple):
    """What the forward kernel gives.

    Attributes:
        normed: (T, C).
        total: (T, C) rows + branch, or the rows themselves where there is no branch.
        means, rstds: (T, 1) float32 means and reciprocal deviations, empty without `statistics`.
    """

    normed: Tensor
    total: Tensor
    means: Tensor
    rstds: Tensor


def normalize(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    statistics: bool,
    added: Tensor | None = None,
    branch: Tensor | None = None,
    after: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Normed:
    """LayerNorm over the last dimension.

    Args:
        rows: (T, C) contiguous, T > 0.
        weight, bias: (C,).
        eps: added to the variance.
        statistics: whether the backward pass will ask for them.
        added: (C,), what is added to each row before.
        branch: (T, C) contiguous, what is added to the rows before.
        after: (T, C) contiguous, what is added to what is normed.
        dtype: of what is normed; None for that of the rows.
    """
    t, c = rows.shape
    normed = torch.empty_like(rows, dtype=dtype)
    total = rows if branch is None else torch.empty_like(rows)
    means = rstds = rows.new_empty(0, 1, dtype=torch.float32)
    if statistics:
        means, rstds = rows.new_empty(2, t, 1, dtype=torch.float32)
    channels = power_of_two(c)
    each = max(1, NUMBERS // channels)
    launch(
        _norm_kernel,
        (parts(t, each),),
        (
            rows, weight if added is None else added, rows if branch is None else branch,
            rows if after is None else after, weight, bias, total, normed, means, rstds, t, eps,
        ),
        {
            "C": c, "ADD": added is not None, "BRANCH": branch is not None, "AFTER": after is not None,
            "STATISTICS": statistics, "ROWS": each, "CHANNELS": channels,
        },
    )  # fmt: skip
    return Normed(normed, total, means, rstds)


class NormGrads(NamedTuple):
    """What the backward kernel gives.

    Attributes:
        rows: (T, C).
        branch: (T, C), the same in another type; None where none was asked for.
        weight, bias: (C,) float32.
    """

    rows: Tensor
    branch: Tensor | None
    weight: Tensor
    bias: Tensor


def normalize_back(
    grad: Tensor,
    rows: Tensor,
    weight: Tensor,
    means: Tensor,
    rstds: Tensor,
    *,
    around: Tensor | None = None,
    also: torch.dtype | None = None,
) -> NormGrads:
    """The gradients of `normalize`; sums are made in one order, so that they come out alike each time.

    Args:
        grad: (T, C) contiguous, of what was normed, T > 0.
        rows: (T, C) contiguous, what was normed.
        weight: (C,).
        means, rstds: (T, 1) float32.
        around: (T, C) contiguous, the gradient of the rows by another way, which is added.
        also: a type in which the rows' gradient is given once more.
    """
    t, c = rows.shape
    channels = power_of_two(c)
    each = max(1, BACK_NUMBERS // channels)
    blocks = parts(t, each)
    programs = min(blocks, BACK_PROGRAMS)
    grad_rows = torch.empty_like(rows)
    grad_branch = grad_rows if also is None else torch.empty_like(rows, dtype=also)
    sums = rows.new_empty(programs, 2, c, dtype=torch.float32)
    launch(
        _back_kernel,
        (programs,),
        (
            grad, rows if around is None else around, rows, weight, means, rstds, grad_rows, grad_branch, sums, t,
            parts(blocks, programs),
        ),
        {"C": c, "AROUND": around is not None, "BRANCH": also is not None, "ROWS": each, "CHANNELS": channels},
    )  # fmt: skip
    of_weight, of_bias = sums.sum(0)
    return NormGrads(grad_rows, None if also is None else grad_branch, of_weight, of_bias)
