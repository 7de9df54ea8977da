"""Random numbers that are a pure function of what they are for: the same in whatever batch, order or process."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # splitmix64


def uniform(*words: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """A number in [0, 1) for each combination of the broadcastable whole numbers `words`, all at once.

    A counter-based generator: the same words always give the same number, whatever else is drawn.
    Chained finalisers of splitmix64 (Steele, Lea & Flood, 2014), the upper 53 bits.
    """
    state = np.zeros(1, np.uint64)  # never a scalar: numpy warns when those wrap around
    for word in words:
        state = (state ^ np.asarray(word).astype(np.uint64)) + np.uint64(_GOLDEN)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(_MIX1)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(_MIX2)
        state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
