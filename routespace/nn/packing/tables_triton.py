"""The index tables of kept tokens in two Triton kernels, for CUDA, where each of thirty small operations waits.

Shape legend: B images · H, W map sides · N = H·W tokens · n kept tokens of the whole batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from routespace.nn.packing.launch import launch, parts, power_of_two

BLOCK = 256


# Triton reads annotations as code, in which only its own names may stand.
@triton.jit
def _places_kernel(
    kept: tl.tensor, starts: tl.tensor, rows: tl.tensor, order: tl.tensor,
    tokens: tl.tensor, n: tl.tensor, per_image: tl.tensor,
    EQUAL: tl.constexpr, TOKENS: tl.constexpr,
) -> None:  # fmt: skip
    image = tl.program_id(0)
    token = tl.arange(0, TOKENS)
    inside = token < tokens
    here = tl.load(kept + image.to(tl.int64) * tokens + token, mask=inside, other=0).to(tl.int32)
    start = image * per_image if EQUAL else tl.load(starts + image).to(tl.int32)
    place = start + tl.cumsum(here, axis=0) - 1
    position = image.to(tl.int64) * tokens + token
    tl.store(order + position, tl.where(here > 0, place, n), mask=inside)
    tl.store(rows + place, position, mask=inside & (here > 0) & (place < n))


@triton.jit
def _neighbours_kernel(
    order: tl.tensor, rows: tl.tensor, neighbours: tl.tensor, n: tl.tensor, height: tl.tensor, width: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = j < n
    row = tl.load(rows + j, mask=ok, other=0)
    token = (row % (height * width)).to(tl.int32)
    y, x = token // width, token % width
    for k in tl.static_range(9):
        dy, dx = k // 3 - 1, k % 3 - 1
        inside = ok & (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        place = tl.load(order + row + dy * width + dx, mask=inside, other=n)
        tl.store(neighbours + k * n + j, place, mask=ok)


def places(kept: Tensor, n: int, starts: Tensor | None, per_image: int | None) -> tuple[Tensor, Tensor]:
    """Where kept tokens stand.

    Args:
        kept: (B, N) bool, contiguous.
        n: how many they are.
        starts: (B,) kept tokens of the images before each; None with `per_image`.
        per_image: kept tokens of every image, where they are equal.

    Returns:
        (n,) int64 positions in the flat (B·N) batch, increasing; (B·N,) int32 the place of each token among the
        kept ones, n where it is skipped.
    """
    b, tokens = kept.shape
    # With fewer kept tokens than an image was said to have, what is left over points at the first one.
    make = torch.empty if per_image is None else torch.zeros
    rows = make(n, dtype=torch.int64, device=kept.device)
    order = torch.empty(b * tokens, dtype=torch.int32, device=kept.device)
    launch(
        _places_kernel,
        (b,),
        (kept.view(torch.uint8), order if starts is None else starts, rows, order, tokens, n, per_image or 0),
        {"EQUAL": starts is None, "TOKENS": power_of_two(tokens)},
    )
    return rows, order


def neighbours(rows: Tensor, order: Tensor, hw: tuple[int, int]) -> Tensor:
    """(9, n) int32 the place of each kept token's 3×3 neighbours, n where one is skipped or outside.

    Args:
        rows, order: from `places`, n > 0.
        hw: height and width of the map.
    """
    n = rows.shape[0]
    found = torch.empty(9, n, dtype=torch.int32, device=rows.device)
    launch(_neighbours_kernel, (parts(n, BLOCK),), (order, rows, found, n, *hw), {"BLOCK": BLOCK})
    return found
