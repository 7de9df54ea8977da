"""Queries, keys and values of cosine attention out of one product, in one Triton kernel; for CUDA in inference.

A product's rows hold all heads side by side; attention wants them apart, queries and keys at length one. Done with
torch's operations that is a copy of everything, two sums, two divisions and a multiplication.

Shape legend: R rows of the product · A places of a window · h heads · d channels of a head · S parts.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from routespace.nn.packing.launch import launch, power_of_two

ROWS = 64  # that a program takes, of one head


# Triton reads annotations as code, in which only its own names may stand.
@triton.jit
def _heads_kernel(
    product: tl.tensor, scales: tl.tensor, found: tl.tensor, r: tl.tensor, area: tl.tensor,
    HEADS: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr, FIRST: tl.constexpr, ROWS: tl.constexpr,
    DIMS: tl.constexpr,
) -> None:  # fmt: skip
    # Heads are the inner ones of the programs: those that run together read whole rows of memory.
    head = tl.program_id(0) % HEADS
    row = (tl.program_id(0) // HEADS).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dim = tl.arange(0, DIMS)
    inside = (row < r)[:, None] & (dim < D)[None, :]
    place = ((row // area) * HEADS + head) * area + row % area
    for part in tl.static_range(PARTS):
        source = row[:, None] * (PARTS * HEADS * D) + part * HEADS * D + head * D + dim[None, :]
        x = tl.load(product + source, mask=inside, other=0.0).to(tl.float32)
        if FIRST + part < 2:
            square = tl.sum(x * x, axis=1)
            factor = tl.where(square > 0, tl.rsqrt(square), 0.0)
            if FIRST + part == 0:
                factor *= tl.load(scales + head).to(tl.float32)
            x = x * factor[:, None]
        target = part * r.to(tl.int64) * HEADS * D + place[:, None] * D + dim[None, :]
        tl.store(found + target, x.to(found.dtype.element_ty), mask=inside)


def split_heads(product: Tensor, scales: Tensor, heads: int, area: int, names: str) -> Tensor:
    """Parts of a product, head by head.

    Args:
        product: (R, S·h·d) contiguous, R > 0.
        scales: (h,), what queries are multiplied by.
        heads, area: h and A; R is a multiple of A.
        names: its parts, `qkv`, `kv` or `q`. Queries and keys come out at length one; zero vectors stay zero.

    Returns:
        (S, R/A, h, A, d).
    """
    rows, parts = product.shape[0], len(names)
    d = product.shape[1] // (parts * heads)
    found = product.new_empty(parts, rows // area, heads, area, d)
    constants = {"HEADS": heads, "D": d, "PARTS": parts, "FIRST": "qkv".index(names[0]), "ROWS": ROWS}
    launch(
        _heads_kernel,
        (-(-rows // ROWS) * heads,),
        (product, scales, found, rows, area),
        constants | {"DIMS": power_of_two(d)},
    )
    return found
