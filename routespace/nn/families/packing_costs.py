"""What packing a block costs on a CPU, by which `auto` decides whether to pack."""

from __future__ import annotations

from typing import NamedTuple


class PackingCosts(NamedTuple):
    """What packing costs in eager execution on a CPU, by which it pays later on small or narrow maps.

    The unit is the time that a dense block's element-wise parts take for one number.

    Attributes:
        channels: a dense block's matrix products take C / channels for one number.
        calls: what a packed block's further calls take.
        moves: what moving one number takes.
    """

    channels: int
    calls: int
    moves: float


# Measured on PVTv2-b2, a batch of 1 and of 8, before its whole maps were given cheaper operations. They still
# hold for PVTv2 where these do not run: on a Zen 3 (AVX2) blocks of b2 break even at 0.88 to 0.95 of the tokens
# of an image, and those of rate 4 with 8 channels at 0.68 and 0.73 of 8 and 32 maps of 32×32.
PACKING_COSTS = PackingCosts(channels=100, calls=20_000, moves=0.2)
