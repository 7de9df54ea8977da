"""How much of a batch a CPU is given at a time in inference, so that what a block makes of it stays near.

Two ways to run, two measures. An eager block makes its widest maps by some channels at a time (`BYTES_AT_ONCE`;
see the family's block), so that more images than fit may go through it together. A compiled step makes them
whole: its parts are so many images that the widest rows which it computes take that much, more images where
fewer tokens are kept. Measured on an Intel Xeon, PVTv2-b2, a batch of 8: compiled, everything computed in parts
of one image at rate 4 took 0.90 to 0.97 of the time of parts of 16384 tokens; of a quarter of the tokens, parts
of one image took 1.03 to 1.07 of it, and parts of four 0.97. On a Zen 3 beside other programs, half and a quarter
of the tokens in parts of 16 MiB took 0.93 to 0.97 of the time of parts of 8 MiB at rates 4 and 8; at the others
all 8 images are one part either way. Eager, 16384 tokens were the best of 3136, 6272, 16384 and 25088 together
with 8 MiB, the best of 2, 4 and 8. Those tokens had 64 channels; of narrower maps as many numbers go together, as
calls then weigh more than caches.

Shape legend: B images · N tokens · C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from routespace.nn.packing.compiler import is_jit_tracing

# Of each thread. 8 MiB are what 2048 pages of 4 KiB hold, which is what a processor finds without looking up where
# a page is; second-level caches are smaller, and third-level ones larger.
BYTES_AT_ONCE = 8 << 20
PACKED_BYTES_AT_ONCE = 16 << 20  # in a packed compiled step, each call of which also takes what no tokens save
TOKENS_AT_ONCE = 16384  # of as many channels as follow, or more
CHANNELS_AT_ONCE = 64


def in_parts(x: Tensor) -> bool:
    """Whether to compute a part of the work at a time, as fits the caches: in inference on a CPU, not traced."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    return not (torch.compiler.is_compiling() or is_jit_tracing())


def image_parts(x: Tensor, *, row_bytes: int | None = None, share: float = 1.0, packed: bool = False) -> list[int]:
    """How many images of a (B, N, C) batch to run through a stage at a time; they add up to B.

    Args:
        x: the batch.
        row_bytes: what a compiled step makes of a token at its widest; None for eager execution.
        share: of the tokens that it computes.
        packed: it computes kept tokens alone. Two images or more are then a part, as one is a graph of its own.
    """
    images, tokens = x.shape[:2]
    if not in_parts(x):
        return [images]
    threads = torch.get_num_threads()
    if row_bytes is None:
        narrow = max(1, CHANNELS_AT_ONCE // max(1, x.shape[2]))
        together = TOKENS_AT_ONCE * narrow * threads // max(1, tokens)
    else:
        at_once = PACKED_BYTES_AT_ONCE if packed else BYTES_AT_ONCE
        together = int(at_once * threads / max(1.0, share * tokens * row_bytes))
    parts = max(1, min(-(-images // max(1, together)), images // (2 if packed else 1)))
    return [images // parts + (i < images % parts) for i in range(parts)]
