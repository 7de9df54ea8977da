"""ScoutShape: the size and the price of a scout, the small convolutional network that may make the one map.

It looks at squares of tokens, so at a coarser rate (`gates.source: map` with `gates.scout`):

    squares     the mean and the deviation of each square of side×side tokens, 2·C numbers, → `channels`
    blocks      z + mix(GELU(norm(around(z)))): a depth-wise 5×5 convolution, LayerNorm over channels, a product
    features    GELU(z), which the gate's linear layer reads

Counted are convolutions and products, as everywhere; pooling, norms and activations are not.

Shape legend: C channels of the map that is read · S squares of tokens.
"""

from __future__ import annotations

from typing import NamedTuple

AROUND_SIDE = 5  # of its depth-wise convolutions, in squares


class ScoutShape(NamedTuple):
    """A scout.

    Attributes:
        width: C.
        channels: of its own maps.
        blocks: how many; a square sees 4·blocks + 1 squares across.
        side: of a square, in tokens.
    """

    width: int
    channels: int
    blocks: int
    side: int

    @property
    def params(self) -> int:
        """Learned numbers, without the gate's linear layer."""
        own = self.channels
        enter, around, mix = (2 * self.width + 1) * own, (AROUND_SIDE**2 + 1) * own, (own + 1) * own
        return enter + self.blocks * (around + 2 * own + mix)

    @property
    def square_macs(self) -> int:
        """Multiply-adds for each square."""
        own = self.channels
        return 2 * self.width * own + self.blocks * (AROUND_SIDE**2 * own + own * own)

    @property
    def square_numbers(self) -> int:
        """Numbers read and written for each square."""
        own = self.channels
        return (self.side**2 + 2) * self.width + (2 * self.width + own) + self.blocks * 8 * own + 2 * own

    def squares(self, map_size: tuple[int, int]) -> int:
        """S of a map of (H, W) tokens; squares at the edges may be cut."""
        return -(-map_size[0] // self.side) * -(-map_size[1] // self.side)
