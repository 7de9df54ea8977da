"""GELU for compiled inference steps on a CPU, where torch's own takes half of a loop's time for its `erf`.

The compiler calls `erf` for eight numbers at a time, and puts away every register before it. A quotient of two
polynomials stays in the loop.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# erf(z) is nearly z·P(z²) / Q(z²), highest power first, and from FLAT on nearly 1: right to 4e-7 in float32.
ABOVE = (
    2.2905065861350646e-4, 3.4082910107109506e-3, 5.0955695062380861e-2, 0.18520832239976145, 1.128379143519084,
)  # fmt: skip
BELOW = (
    -1.1791602954361697e-7, 2.3547966471313185e-5, 1.0179625278914885e-3, 1.4070470171167667e-2,
    0.11098505178285362, 0.49746925110067538, 1.0,
)  # fmt: skip
FLAT = 3.832506856900711


def gelu(x: Tensor) -> Tensor:
    """x·Φ(x) of any shape; call it inside a compiled function: eager, it would write every step of the sums."""
    if torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype != torch.float32:
        return F.gelu(x)
    z = (x * math.sqrt(0.5)).clamp(-FLAT, FLAT)
    square = z * z
    erf = (z * _polynomial(square, ABOVE) / _polynomial(square, BELOW)).clamp(-1, 1)
    return x * 0.5 * (1 + erf)


def _polynomial(x: Tensor, factors: tuple[float, ...]) -> Tensor:
    total = x * factors[0] + factors[1]
    for factor in factors[2:]:
        total = total * x + factor
    return total
