"""Scout: a small convolutional network that looks for what is worth computing (`gates.scout`).

It reads the map that the leading row's gate reads, square by square of its tokens, and gives features from which
that gate's linear layer makes margins. On photographs a token and the statistics of what is around it do not tell
an object from its background; a few convolutions do it better. What it is made of stands in
`routespace/grid/scout.py`.

Shape legend: B images · N tokens of a map of H×W · S squares of tokens · C channels · D the scout's channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routespace.grid.scout import AROUND_SIDE, ScoutShape
from routespace.grid.spec import map_size
from routespace.nn.packing.maps import as_map, as_tokens
from routespace.nn.routing.margins import LEAST_VARIANCE, without_autocast

IMAGE_NDIM = 4  # of images and of a convolution's kernels
AVERAGED = "ema_"  # before the name of a weight: its moving average, for inference


class Scout(nn.Module):
    """(B, N, C) → (B, S, D): what a gate's linear layer reads of each square of tokens.

    No gradient goes back into what it reads. At inference the moving averages of its weights are used.

    Args:
        shape: its size.
    """

    def __init__(self, shape: ScoutShape) -> None:
        super().__init__()
        self.shape = shape
        own, blocks = shape.channels, shape.blocks
        self._add("enter_weight", _uniform(own, 2 * shape.width, fan_in=2 * shape.width))
        self._add("enter_bias", torch.zeros(own))
        self._add("around_weight", _uniform(blocks, own, 1, AROUND_SIDE, AROUND_SIDE, fan_in=AROUND_SIDE**2))
        self._add("around_bias", torch.zeros(blocks, own))
        self._add("norm_weight", torch.ones(blocks, own))
        self._add("norm_bias", torch.zeros(blocks, own))
        self._add("mix_weight", _uniform(blocks, own, own, fan_in=own))
        self._add("mix_bias", torch.zeros(blocks, own))

    def _add(self, name: str, weight: Tensor) -> None:
        """A weight and its moving average."""
        self.register_parameter(name, nn.Parameter(weight))
        self.register_buffer(AVERAGED + name, weight.clone())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to` and its like do to each weight: kernels of all blocks are one tensor of five dimensions, which
        torch would take for a video's and refuse to lay out as `channels_last`.
        """

        def each(t: Tensor) -> Tensor:
            return fn(t.flatten(0, 1)).unflatten(0, t.shape[:2]) if t.ndim > IMAGE_NDIM else fn(t)

        super()._apply(each, recurse)  # type: ignore[no-untyped-call]  # torch's
        return self

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """(B, N, C) → (B, S, D), in at least 32 bits."""
        with without_autocast(x, wanted=True):
            return self._features(square_statistics(x, hw, self.shape.side), map_size(hw, self.shape.side))

    def _features(self, squares: Tensor, hw: tuple[int, int]) -> Tensor:
        """(B, S, 2C) → (B, S, D); `hw` are the squares' rows and columns."""
        dtype = squares.dtype
        z = F.linear(squares, self._weight("enter_weight", dtype), self._weight("enter_bias", dtype))
        names = ("around_weight", "around_bias", "norm_weight", "norm_bias", "mix_weight", "mix_bias")
        around, around_bias, norm, norm_bias, mix, mix_bias = (self._weight(name, dtype) for name in names)
        for block in range(self.shape.blocks):
            seen = F.conv2d(
                as_map(z, hw),
                around[block],
                around_bias[block],
                padding=AROUND_SIDE // 2,
                groups=self.shape.channels,
            )
            normed = F.layer_norm(as_tokens(seen), (self.shape.channels,), norm[block], norm_bias[block])
            z = z + F.linear(F.gelu(normed), mix[block], mix_bias[block])
        return F.gelu(z)

    def _weight(self, name: str, dtype: torch.dtype) -> Tensor:
        """A weight, or its moving average at inference."""
        weight: Tensor = getattr(self, name if self.training else AVERAGED + name)
        return weight.to(dtype)

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """Move the averages towards the weights."""
        for name, weight in self.named_parameters(recurse=False):
            getattr(self, AVERAGED + name).lerp_(weight, 1 - decay)


def square_statistics(x: Tensor, hw: tuple[int, int], side: int) -> Tensor:
    """(B, N, C) → (B, S, 2C): the mean and the standard deviation of each square of tokens, without gradient.

    Squares at the edges of a map of odd sides are those of the tokens that are there.
    """
    tokens = as_map(x.detach().to(torch.promote_types(x.dtype, torch.float32)), hw)
    mean, square = (
        F.avg_pool2d(part, side, side, ceil_mode=True, count_include_pad=False)
        for part in (tokens, tokens * tokens)
    )
    deviation = (square - mean * mean).clamp(min=LEAST_VARIANCE).sqrt()
    return as_tokens(torch.cat([mean, deviation], 1))


def _uniform(*size: int, fan_in: int) -> Tensor:
    """Weights as torch's own layers begin with."""
    bound = 1 / math.sqrt(fan_in)
    return torch.empty(size).uniform_(-bound, bound)
