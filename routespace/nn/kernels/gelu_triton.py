"""The exact GELU for Triton kernels, in half the instructions that `erf` takes.

gelu(x) = max(x, 0) − |x|·Φ(−|x|), and the logarithm of Φ(−a) is nearly a polynomial: this one is right to 4e-7,
float32's own rounding. From 9 on the product is nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl


# Triton reads annotations as code, in which only its own names may stand.
@triton.jit
def gelu(x: tl.tensor) -> tl.tensor:
    """x·Φ(x) of float32; what is no number stays none."""
    a = tl.minimum(tl.abs(x), 9.0)
    power = 2.9521418e-05 * a - 0.0007362092
    power = power * a + 0.007964845
    power = power * a - 0.053217523
    power = power * a - 0.45893222
    power = power * a - 1.1511412
    power = power * a - 1.0000007
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - a * tl.exp2(power)
