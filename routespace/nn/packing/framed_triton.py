"""All index tables of kept tokens that inference on CUDA reads, by one Triton kernel.

They are about maps with a frame of one skipped cell on each side: whoever looks at a cell's neighbours there asks
for no border.

Shape legend: B images · H, W map sides · N = H·W tokens · n kept tokens of the whole batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from routespace.nn.packing.launch import launch, power_of_two

WARPS = 8
MOST_IMAGES = 8192  # whose counts each program adds up


class FramedTables(NamedTuple):
    """Where kept tokens stand.

    Attributes:
        rows: (n,) int64 positions in the flat (B·N) batch, increasing.
        order: (B·N,) int32 the place of each token among the kept ones, n where it is skipped.
        cells: (n,) int32 positions in the flat batch of framed maps, B·(H + 2)·(W + 2).
        framed: (B, H + 2, W + 2) int32, `order` in a frame of n.
        starts: (B + 1,) int32 kept tokens of the images before each, and of all.
    """

    rows: Tensor
    order: Tensor
    cells: Tensor
    framed: Tensor
    starts: Tensor


# Of which Triton is not to compile a variant where 16 divides it, or where it is 1.
NEW_EACH_TIME = ("n",)


# Triton reads annotations as code, in which only its own names may stand.
@triton.jit(do_not_specialize=NEW_EACH_TIME)
def _frame_kernel(
    kept: tl.tensor, counts: tl.tensor, rows: tl.tensor, order: tl.tensor, cells: tl.tensor, framed: tl.tensor,
    starts: tl.tensor, n: tl.tensor, height: tl.tensor, width: tl.tensor, per_image: tl.tensor,
    EQUAL: tl.constexpr, IMAGES: tl.constexpr, CELLS: tl.constexpr,
) -> None:  # fmt: skip
    image = tl.program_id(0)
    if EQUAL:
        start = image * per_image
    else:
        before = tl.arange(0, IMAGES)
        start = tl.sum(tl.load(counts + before, mask=before < image, other=0), axis=0).to(tl.int32)
    cell = tl.arange(0, CELLS)
    y, x = cell // (width + 2) - 1, cell % (width + 2) - 1
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    position = image * (height * width) + y * width + x
    here = tl.load(kept + position, mask=inside, other=0).to(tl.int32)
    place = start + tl.cumsum(here, axis=0) - 1
    found = tl.where(here > 0, place, n)
    area = (height + 2) * (width + 2)
    tl.store(framed + image * area + cell, found, mask=cell < area)
    tl.store(order + position, found, mask=inside)
    listed = (here > 0) & (place < n)
    tl.store(rows + place, position.to(tl.int64), mask=listed)
    tl.store(cells + place, image * area + cell, mask=listed)
    tl.store(starts + image, start)
    if image == tl.num_programs(0) - 1:
        tl.store(starts + image + 1, n)


def framed_tables(
    kept: Tensor, n: int, counts: Tensor | None, hw: tuple[int, int], per_image: int | None
) -> FramedTables:
    """The tables of some kept tokens.

    Args:
        kept: (B, N) bool, contiguous; B·(H + 2)·(W + 2) fits 31 bits.
        n: how many they are.
        counts: (B,) kept tokens of each image, B at most MOST_IMAGES; None with `per_image`.
        hw: height and width of the maps.
        per_image: kept tokens of every image, where they are equal.
    """
    b, (h, w), device = kept.shape[0], hw, kept.device
    if per_image is None:
        rows = torch.empty(n, dtype=torch.int64, device=device)
        cells = torch.empty(n, dtype=torch.int32, device=device)
    else:  # with fewer kept tokens than an image was said to have, what is left over points at the first one
        rows = torch.zeros(n, dtype=torch.int64, device=device)
        cells = torch.full((n,), w + 3, dtype=torch.int32, device=device)
    order = torch.empty(kept.numel(), dtype=torch.int32, device=device)
    framed = torch.empty(b, h + 2, w + 2, dtype=torch.int32, device=device)
    starts = torch.empty(b + 1, dtype=torch.int32, device=device)
    numbers = order if counts is None else counts
    launch(
        _frame_kernel,
        (b,),
        (kept.view(torch.uint8), numbers, rows, order, cells, framed, starts, n, h, w, per_image or 0),
        {"EQUAL": counts is None, "IMAGES": power_of_two(b), "CELLS": power_of_two((h + 2) * (w + 2))},
        num_warps=WARPS,
    )
    return FramedTables(rows, order, cells, framed, starts)
