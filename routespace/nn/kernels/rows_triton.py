"""What stands around the products of a packed block, in one pass over memory each, for inference on CUDA.

    enter       the norm of a map, and of its kept tokens packed
    join        rows added to a map at their places, and the norm of what is there then

Shape legend: T tokens of the whole batch · n kept ones · C channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from routespace.nn.packing.launch import launch, parts, power_of_two

NUMBERS = 4096  # that a program normalises
JOINED = 2048  # that a program adds: its reads are scattered, so more programs shall wait at a time
ALL, KEPT, SOME = 0, 1, 2  # whose norms stand in the map
# Of which Triton is not to compile a variant where 16 divides it, or where it is 1.
NEW_EACH_TIME = ("n",)


# Triton reads annotations as code, in which only its own names may stand.
@triton.jit(do_not_specialize=NEW_EACH_TIME)
def _enter_kernel(
    x: tl.tensor, weight: tl.tensor, bias: tl.tensor, order: tl.tensor, visible: tl.tensor, normed: tl.tensor,
    packed: tl.tensor, t: tl.tensor, n: tl.tensor, eps: tl.tensor,
    C: tl.constexpr, SEEN: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)
    row_ok, channel_ok = row < t, channel < C
    inside = row_ok[:, None] & channel_ok[None, :]
    place = row[:, None] * C + channel[None, :]
    to = tl.load(order + row, mask=row_ok, other=n)
    kept = to < n
    if SEEN == 1:
        given = tl.load(x + place, mask=kept[:, None] & channel_ok[None, :], other=0.0).to(tl.float32)
    else:
        given = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(given, axis=1) / C
    centred = tl.where(channel_ok[None, :], given - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / C + eps)
    scale = tl.load(weight + channel, mask=channel_ok, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=channel_ok, other=0.0).to(tl.float32)
    found = (centred * rstd[:, None] * scale[None, :] + shift[None, :]).to(normed.dtype.element_ty)
    target = to[:, None].to(tl.int64) * C + channel[None, :]
    tl.store(packed + target, found, mask=kept[:, None] & channel_ok[None, :])
    if SEEN == 1:
        found = tl.where(kept[:, None], found, 0.0)
    elif SEEN == 2:
        seen = tl.load(visible + row, mask=row_ok, other=0) > 0
        found = tl.where(seen[:, None], found, 0.0)
    tl.store(normed + place, found.to(normed.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=NEW_EACH_TIME)
def _join_kernel(
    x: tl.tensor, rows: tl.tensor, branch: tl.tensor, weight: tl.tensor, bias: tl.tensor, normed: tl.tensor,
    n: tl.tensor, eps: tl.tensor,
    C: tl.constexpr, NORM: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)
    row_ok, channel_ok = row < n, channel < C
    inside = row_ok[:, None] & channel_ok[None, :]
    place = row[:, None] * C + channel[None, :]
    stands = tl.load(rows + row, mask=row_ok, other=0)
    target = stands[:, None] * C + channel[None, :]
    added = tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
    total = (tl.load(x + target, mask=inside, other=0.0).to(tl.float32) + added).to(x.dtype.element_ty)
    tl.store(x + target, total, mask=inside)
    if NORM:
        given = total.to(tl.float32)  # what the next reader of x finds
        mean = tl.sum(given, axis=1) / C
        centred = tl.where(channel_ok[None, :], given - mean[:, None], 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / C + eps)
        scale = tl.load(weight + channel, mask=channel_ok, other=0.0).to(tl.float32)
        shift = tl.load(bias + channel, mask=channel_ok, other=0.0).to(tl.float32)
        found = centred * rstd[:, None] * scale[None, :] + shift[None, :]
        tl.store(normed + place, found.to(normed.dtype.element_ty), mask=inside)


def enter(
    x: Tensor,
    norm: tuple[Tensor, Tensor, float],
    order: Tensor,
    n: int,
    *,
    sees_kept: bool = False,
    visible: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The norm of a map for keys and values, and of its kept tokens for queries.

    Args:
        x: (T, C) contiguous, T > 0.
        norm: weight (C,), bias (C,), and what is added to the variance.
        order: (T,) the place of each token among the kept ones, n where it is skipped.
        n: how many are kept.
        sees_kept: the map holds the kept tokens alone, zero elsewhere.
        visible: (T,) bool, contiguous, the tokens that the map holds; None for all.

    Returns:
        (T, C) the map, and (n, C).
    """
    (t, c), (weight, bias, eps) = x.shape, norm
    normed, packed = torch.empty_like(x), x.new_empty(n, c)
    channels = power_of_two(c)
    each = max(1, NUMBERS // channels)
    seen = KEPT if sees_kept else ALL if visible is None else SOME
    mask = visible.view(torch.uint8) if seen == SOME and visible is not None else order
    launch(
        _enter_kernel,
        (parts(t, each),),
        (x, weight, bias, order, mask, normed, packed, t, n, eps),
        {"C": c, "SEEN": seen, "ROWS": each, "CHANNELS": channels},
    )
    return normed, packed


def join(x: Tensor, rows: Tensor, branch: Tensor, norm: tuple[Tensor, Tensor, float] | None = None) -> Tensor:
    """Add a branch's rows to a map, which is written to.

    Args:
        x: (T, C) contiguous.
        rows: (n,) distinct positions, n > 0.
        branch: (n, C) contiguous, what is added there.
        norm: weight (C,), bias (C,), and what is added to the variance, of the norm of what is there then.

    Returns:
        (n, C) its norm; `branch` without one.
    """
    n, c = branch.shape
    weight, bias, eps = (branch, branch, 0.0) if norm is None else norm
    normed = branch if norm is None else torch.empty_like(branch)
    channels = power_of_two(c)
    each = max(1, JOINED // channels)
    launch(
        _join_kernel,
        (parts(n, each),),
        (x, rows, branch, weight, bias, normed, n, eps),
        {"C": c, "NORM": norm is not None, "ROWS": each, "CHANNELS": channels},
    )
    return normed
