"""Computing a part of a network again in the backward pass, in place of keeping what it made.

Shape legend: B images · N tokens · C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Channels for each token of an image from which on a transformer edge keeps what it made: of an image that is then
# less than half of what its weights take, and to make it again would mean to read all of these.
WIDE = 4


def keeps_inputs() -> bool:
    """Whether `computed_again` may stand for a call: somebody will go backwards, and no graph is exported."""
    return torch.is_grad_enabled() and not torch.compiler.is_exporting()


def is_worth_it(x: Tensor) -> bool:
    """Whether to compute a transformer edge from (B, N, C) again."""
    return x.shape[2] < WIDE * x.shape[1]


def computed_again(run: Callable[..., Tensor], *inputs: object) -> Tensor:
    """`run(*inputs)`, of which only the inputs are kept for the backward pass.

    That runs it again, up to what its last operation reads: a product at its end is not made twice.
    """
    found: Tensor = checkpoint(run, *inputs, use_reentrant=False)
    return found
