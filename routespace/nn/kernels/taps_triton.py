"""The nine weights of a depth-wise 3×3 convolution in Triton kernels, and the nine sums of their gradients.

A kernel knows no lists, so that each of the nine has a name there: row by row of the weight.
"""

from __future__ import annotations

import triton
import triton.language as tl


# Triton reads annotations as code, in which only its own names may stand.
@triton.jit
def _tap(kernel: tl.tensor, channel: tl.tensor, channel_ok: tl.tensor, K: tl.constexpr) -> tl.tensor:
    return tl.load(kernel + channel * 9 + K, mask=channel_ok, other=0.0).to(tl.float32)[None, :]


@triton.jit
def load_taps(kernel: tl.tensor, channel: tl.tensor, channel_ok: tl.tensor) -> tuple[tl.tensor, ...]:
    """Those of some channels, each (1, channels) of float32; `kernel` has the nine of a channel side by side."""
    return (
        _tap(kernel, channel, channel_ok, 0),
        _tap(kernel, channel, channel_ok, 1),
        _tap(kernel, channel, channel_ok, 2),
        _tap(kernel, channel, channel_ok, 3),
        _tap(kernel, channel, channel_ok, 4),
        _tap(kernel, channel, channel_ok, 5),
        _tap(kernel, channel, channel_ok, 6),
        _tap(kernel, channel, channel_ok, 7),
        _tap(kernel, channel, channel_ok, 8),
    )


@triton.jit
def store_sums(
    sums: tl.tensor, r: tl.tensor, channel_ok: tl.tensor, w0: tl.tensor, w1: tl.tensor, w2: tl.tensor,
    w3: tl.tensor, w4: tl.tensor, w5: tl.tensor, w6: tl.tensor, w7: tl.tensor, w8: tl.tensor,
) -> None:  # fmt: skip
    """Each of the nine, (rows, channels), summed over its rows; `sums` are of the channels, r apart."""
    tl.store(sums, tl.sum(w0, axis=0), mask=channel_ok)
    tl.store(sums + r, tl.sum(w1, axis=0), mask=channel_ok)
    tl.store(sums + 2 * r, tl.sum(w2, axis=0), mask=channel_ok)
    tl.store(sums + 3 * r, tl.sum(w3, axis=0), mask=channel_ok)
    tl.store(sums + 4 * r, tl.sum(w4, axis=0), mask=channel_ok)
    tl.store(sums + 5 * r, tl.sum(w5, axis=0), mask=channel_ok)
    tl.store(sums + 6 * r, tl.sum(w6, axis=0), mask=channel_ok)
    tl.store(sums + 7 * r, tl.sum(w7, axis=0), mask=channel_ok)
    tl.store(sums + 8 * r, tl.sum(w8, axis=0), mask=channel_ok)
