"""Two ways to convolve packed tokens 3×3 depth-wise, with bias and GELU, in one Triton kernel each, for CUDA.

    pick_gelu   takes kept tokens as they come: nine reads each, of those neighbours that are kept
    walk_gelu   walks down the map with two running sums: three reads a position, kept or not

Both read the convolution's weight as it is, once for many tokens, and find neighbours in a framed map (see
`packing/framed_triton.py`), where none of them lies outside. For inference: nothing is kept for a backward pass.

Shape legend: B images · H, W map sides · n kept tokens of the whole batch · R hidden channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from routespace.nn.kernels.gelu_triton import gelu
from routespace.nn.kernels.map_triton import strip_rows
from routespace.nn.kernels.taps_triton import load_taps
from routespace.nn.packing.launch import launch, parts

# The fastest of five on an H200: with 134 registers, as many as Triton would take, a program fewer runs at a time,
# and with 96 some numbers have no place. Weights that each step reads anew took 1.03 times as long, products
# with diagonal matrices on tensor cores 1.3 to 2.5 times.
PICK_ROWS, PICK_STEPS, PICK_CHANNELS, PICK_WARPS, PICK_REGISTERS = 16, 16, 64, 4, 128
COLUMNS, CHANNELS, WARPS = 16, 64, 4
MARGIN = 4096  # rows behind the last one, of which blocks make places
WALK_FROM = 0.75  # share of kept tokens from which on walking takes less time than picking
# Of which Triton is not to compile a variant where 16 divides it, or where it is 1.
NEW_EACH_TIME = ("n",)


# Triton reads annotations as code, in which only its own names may stand.
@triton.jit
def _three(
    framed: tl.tensor, cell: tl.tensor, ok: tl.tensor, n: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    left = tl.load(framed + cell - 1, mask=ok, other=n)
    middle = tl.load(framed + cell, mask=ok, other=n)
    right = tl.load(framed + cell + 1, mask=ok, other=n)
    return left, middle, right


@triton.jit
def _rows_at(
    hidden: tl.tensor, index: tl.tensor, channel: tl.tensor, channel_ok: tl.tensor, n: tl.tensor, r: tl.tensor,
    WIDE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    here = (index < n)[:, None] & channel_ok[None, :]
    return tl.load(hidden + _place(index, channel, r, WIDE), mask=here, other=0.0)


@triton.jit
def _place(index: tl.tensor, channel: tl.tensor, r: tl.tensor, WIDE: tl.constexpr) -> tl.tensor:
    if WIDE:
        index = index.to(tl.int64)
    return index[:, None] * r + channel[None, :]


@triton.jit(do_not_specialize=NEW_EACH_TIME)
def _pick_kernel(
    hidden: tl.tensor, kernel: tl.tensor, offset: tl.tensor, framed: tl.tensor, cells: tl.tensor,
    activated: tl.tensor, n: tl.tensor, width: tl.tensor, r: tl.tensor,
    WIDE: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    # Channels are the inner ones of the programs: those that run together read whole rows of memory.
    blocks = tl.cdiv(r, CHANNELS)
    row = tl.program_id(0) // blocks * (ROWS * STEPS) + tl.arange(0, ROWS)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    channel_ok, down = channel < r, width + 2
    k0, k1, k2, k3, k4, k5, k6, k7, k8 = load_taps(kernel, channel, channel_ok)
    shift = tl.load(offset + channel, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
    # Where the next step's tokens stand is read two steps ahead, and their neighbours' places one step ahead.
    ok = row < n
    cell = tl.load(cells + row, mask=ok, other=0)
    a0, a1, a2 = _three(framed, cell - down, ok, n)
    a3, a4, a5 = _three(framed, cell, ok, n)
    a6, a7, a8 = _three(framed, cell + down, ok, n)
    cell = tl.load(cells + row + ROWS, mask=row + ROWS < n, other=0)
    for _step in range(STEPS):
        part0 = _rows_at(hidden, a0, channel, channel_ok, n, r, WIDE)
        part1 = _rows_at(hidden, a1, channel, channel_ok, n, r, WIDE)
        part2 = _rows_at(hidden, a2, channel, channel_ok, n, r, WIDE)
        part3 = _rows_at(hidden, a3, channel, channel_ok, n, r, WIDE)
        part4 = _rows_at(hidden, a4, channel, channel_ok, n, r, WIDE)
        part5 = _rows_at(hidden, a5, channel, channel_ok, n, r, WIDE)
        part6 = _rows_at(hidden, a6, channel, channel_ok, n, r, WIDE)
        part7 = _rows_at(hidden, a7, channel, channel_ok, n, r, WIDE)
        part8 = _rows_at(hidden, a8, channel, channel_ok, n, r, WIDE)
        ok = row + ROWS < n
        a0, a1, a2 = _three(framed, cell - down, ok, n)
        a3, a4, a5 = _three(framed, cell, ok, n)
        a6, a7, a8 = _three(framed, cell + down, ok, n)
        cell = tl.load(cells + row + 2 * ROWS, mask=row + 2 * ROWS < n, other=0)
        total = shift + part0.to(tl.float32) * k0 + part1.to(tl.float32) * k1 + part2.to(tl.float32) * k2
        total = total + part3.to(tl.float32) * k3 + part4.to(tl.float32) * k4 + part5.to(tl.float32) * k5
        total = total + part6.to(tl.float32) * k6 + part7.to(tl.float32) * k7 + part8.to(tl.float32) * k8
        place = _place(row, channel, r, WIDE)
        inside = (row < n)[:, None] & channel_ok[None, :]
        tl.store(activated + place, gelu(total).to(activated.dtype.element_ty), mask=inside)
        row += ROWS


@triton.jit(do_not_specialize=NEW_EACH_TIME)
def _walk_kernel(  # noqa: PLR0915 — nine taps, each a name, as a kernel knows no lists
    hidden: tl.tensor, kernel: tl.tensor, offset: tl.tensor, framed: tl.tensor, activated: tl.tensor,
    columns: tl.tensor, n: tl.tensor, height: tl.tensor, width: tl.tensor, r: tl.tensor,
    WIDE: tl.constexpr, STRIP: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    blocks = tl.cdiv(r, CHANNELS)
    column = tl.program_id(0) // blocks * COLUMNS + tl.arange(0, COLUMNS)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.program_id(1) * STRIP
    column_ok, channel_ok, down = column < columns, channel < r, width + 2
    # Cells in the row above the strip; the frame is one more row above and below.
    cell = (column // width * (height + 2) + first) * down + column % width + 1
    k0, k1, k2, k3, k4, k5, k6, k7, k8 = load_taps(kernel, channel, channel_ok)
    shift = tl.load(offset + channel, mask=channel_ok, other=0.0).to(tl.float32)[None, :]

    # The row above counts towards the strip's first row alone, and that one towards itself and the next. Where
    # tokens stand is read two rows further ahead than the tokens.
    left_at, middle_at, right_at = _three(framed, cell, column_ok, n)
    left = _rows_at(hidden, left_at, channel, channel_ok, n, r, WIDE).to(tl.float32)
    middle = _rows_at(hidden, middle_at, channel, channel_ok, n, r, WIDE).to(tl.float32)
    right = _rows_at(hidden, right_at, channel, channel_ok, n, r, WIDE).to(tl.float32)
    below = shift + left * k0 + middle * k1 + right * k2
    left_at, to, right_at = _three(framed, cell + down, column_ok, n)
    left = _rows_at(hidden, left_at, channel, channel_ok, n, r, WIDE).to(tl.float32)
    middle = _rows_at(hidden, to, channel, channel_ok, n, r, WIDE).to(tl.float32)
    right = _rows_at(hidden, right_at, channel, channel_ok, n, r, WIDE).to(tl.float32)
    current = below + left * k3 + middle * k4 + right * k5
    below = shift + left * k0 + middle * k1 + right * k2
    left_at, next_to, right_at = _three(framed, cell + 2 * down, column_ok & (first + 1 <= height), n)
    next_left = _rows_at(hidden, left_at, channel, channel_ok, n, r, WIDE)
    next_middle = _rows_at(hidden, next_to, channel, channel_ok, n, r, WIDE)
    next_right = _rows_at(hidden, right_at, channel, channel_ok, n, r, WIDE)
    cell += 3 * down
    left_at, middle_at, right_at = _three(framed, cell, column_ok & (first + 2 <= height), n)
    later_middle = _rows_at(hidden, middle_at, channel, channel_ok, n, r, WIDE)
    cell += down
    far_left_at, far_middle_at, far_right_at = _three(framed, cell, column_ok & (first + 3 <= height), n)
    for done in range(STRIP):
        left, middle, right = next_left.to(tl.float32), next_middle.to(tl.float32), next_right.to(tl.float32)
        next_left = _rows_at(hidden, left_at, channel, channel_ok, n, r, WIDE)
        next_right = _rows_at(hidden, right_at, channel, channel_ok, n, r, WIDE)
        next_middle = later_middle
        later_middle = _rows_at(hidden, far_middle_at, channel, channel_ok, n, r, WIDE)
        total = current + left * k6 + middle * k7 + right * k8
        current = below + left * k3 + middle * k4 + right * k5
        below = shift + left * k0 + middle * k1 + right * k2
        inside = ((to < n) & (first + done < height))[:, None] & channel_ok[None, :]
        place = _place(to, channel, r, WIDE)
        tl.store(activated + place, gelu(total).to(activated.dtype.element_ty), mask=inside)
        to, next_to = next_to, middle_at
        left_at, middle_at, right_at = far_left_at, far_middle_at, far_right_at
        cell += down
        ahead = column_ok & (first + done + 4 <= height)
        far_left_at, far_middle_at, far_right_at = _three(framed, cell, ahead, n)


def _is_wide(hidden: Tensor) -> bool:
    """Whether places of (n, R) numbers need more than 31 bits; those behind it, which nobody reads, too."""
    return hidden.numel() + MARGIN * hidden.shape[1] >= 1 << 31


def pick_gelu(hidden: Tensor, kernel: Tensor, offset: Tensor, framed: Tensor, cells: Tensor) -> Tensor:
    """gelu(depth-wise convolution + bias) of packed rows; a skipped neighbour counts as zero.

    Args:
        hidden: (n, R) contiguous, n > 0.
        kernel: (R, 1, 3, 3) contiguous.
        offset: (R,).
        framed: (B, H + 2, W + 2) int32 the place of each cell's token among the rows, n where it is skipped.
        cells: (n,) int32 where in the flat `framed` each row stands.

    Returns:
        (n, R).
    """
    n, r = hidden.shape
    activated = torch.empty_like(hidden)
    constants = {"WIDE": _is_wide(hidden), "STEPS": PICK_STEPS, "ROWS": PICK_ROWS, "CHANNELS": PICK_CHANNELS}
    launch(
        _pick_kernel,
        (parts(n, PICK_ROWS * PICK_STEPS) * parts(r, PICK_CHANNELS),),
        (hidden, kernel, offset, framed, cells, activated, n, framed.shape[2] - 2, r),
        constants,
        num_warps=PICK_WARPS,
        maxnreg=PICK_REGISTERS,
    )
    return activated


def walk_gelu(hidden: Tensor, kernel: Tensor, offset: Tensor, framed: Tensor) -> Tensor:
    """As `pick_gelu`, in the time of all positions, and with each row read once from memory."""
    n, r = hidden.shape
    height, width = framed.shape[1] - 2, framed.shape[2] - 2
    activated, columns = torch.empty_like(hidden), framed.shape[0] * width
    blocks = parts(columns, COLUMNS) * parts(r, CHANNELS)
    strip = strip_rows(height, blocks)
    launch(
        _walk_kernel,
        (blocks, parts(height, strip)),
        (hidden, kernel, offset, framed, activated, columns, n, height, width, r),
        {"WIDE": _is_wide(hidden), "STRIP": strip, "COLUMNS": COLUMNS, "CHANNELS": CHANNELS},
        num_warps=WARPS,
    )
    return activated


def framed_gelu(
    hidden: Tensor, kernel: Tensor, offset: Tensor, framed: Tensor, cells: Tensor, *, tokens: int
) -> Tensor:
    """As `pick_gelu`, by whichever takes less time of one kept token in `tokens` / n."""
    if hidden.shape[0] >= WALK_FROM * tokens:
        return walk_gelu(hidden, kernel, offset, framed)
    return pick_gelu(hidden, kernel, offset, framed, cells)
