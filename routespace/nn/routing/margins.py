"""Margins: how far each token is from opening. What gates read of a token's surroundings, and whom they follow.

    in_context(x, hw, side)       a token beside the mean and the deviation of its neighbourhood
    smoothed(margins, hw, side)   margins averaged over a neighbourhood
    of_windows(margins, hw, side) the best of each window's tokens
    MarginMap                     the leading row's margins, for maps of coarser rates
    Cut                           a threshold of one's own: a share of the batch is above it

Shape legend: B images · N tokens of a map of H×W · P places, N or fewer · C channels.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routespace.grid.spec import map_size
from routespace.nn.packing.maps import as_map, as_tokens, coarsen

LEAST_VARIANCE = 1e-5  # below it a neighbourhood is flat, and rounding must not decide
CUT_RATE = 0.05  # of the running mean of cuts: it follows features that learn, and averages some 20 batches
OPENS_ALL = -1e4  # a cut below every margin; finite, so that moving averages of a network stay numbers


def in_context(x: Tensor, hw: tuple[int, int], side: int) -> Tensor:
    """(B, N, C) → (B, N, 3C): each token, the mean and the standard deviation of the side×side tokens around it.

    No gradient goes back: what decides must not bend the features towards being easy to decide by.
    """
    tokens = as_map(x.detach().to(torch.promote_types(x.dtype, torch.float32)), hw)
    mean, square = (_around(part, side) for part in (tokens, tokens * tokens))
    deviation = (square - mean * mean).clamp(min=LEAST_VARIANCE).sqrt()
    return as_tokens(torch.cat([tokens, mean, deviation], 1))


def smoothed(margins: Tensor, hw: tuple[int, int], side: int) -> Tensor:
    """(B, N) → (B, N): the mean over the side×side tokens around each."""
    if side == 1:
        return margins
    return _around(margins.view(-1, 1, *hw), side).flatten(1)


def of_windows(margins: Tensor, hw: tuple[int, int], side: int) -> Tensor:
    """(B, N) → (B, ceil(H/side)·ceil(W/side)): the best of each window's tokens; with side 1 as they came."""
    if side == 1:
        return margins
    return F.max_pool2d(margins.view(-1, 1, *hw), side, side, ceil_mode=True).flatten(1)


def _around(tokens: Tensor, side: int) -> Tensor:
    """(B, C, H, W) → (B, C, H, W): the mean over each token's neighbourhood, of what of it is inside the map."""
    return F.avg_pool2d(tokens, side, 1, side // 2, count_include_pad=False)


def without_autocast(x: Tensor, *, wanted: bool) -> AbstractContextManager[object]:
    """A block in which autocast does not shorten numbers, where that is wanted and autocast is on."""
    if wanted and not x.is_meta and torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


class MarginMap(NamedTuple):
    """What the gate of the leading row says of each token.

    Attributes:
        margins: (B, N).
        hw: height and width of their map.
    """

    margins: Tensor
    hw: tuple[int, int]

    def at(self, hw: tuple[int, int]) -> Tensor:
        """(B, N') of a map of the same or a coarser rate: the maximum over the tokens that each token covers."""
        margins, size = self
        while size != hw:
            margins, size = coarsen(margins, size), map_size(size, 2)
        return margins


class Cut(nn.Module):
    """A threshold on margins that opens a share of a batch; a running mean of it for single images.

    A quantile over the whole batch gives images with more to see more of it. At inference, and wherever no share
    is asked for, the running mean holds, so that what is decided for an image never depends on its neighbours. A
    new one opens everything.
    """

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(OPENS_ALL))

    def forward(self, margins: Tensor, share: float | None) -> Tensor:
        """0-d: what margins (B, P) have to be above; in training with a share the running mean follows."""
        if share is None or not self.training or not margins.numel():
            return self.value
        cut = share_cut(margins.detach(), share)
        with torch.no_grad():
            self.value.copy_(torch.where(self.value == OPENS_ALL, cut, torch.lerp(self.value, cut, CUT_RATE)))
        return cut


def share_cut(margins: Tensor, share: float) -> Tensor:
    """0-d: above it are `share` of all margins (B, P), to the nearest whole place, but for equal ones."""
    margins = margins.flatten().float()
    number = round(share * margins.numel())
    if number >= margins.numel():
        return torch.nextafter(margins.min(), torch.tensor(-torch.inf, device=margins.device))
    return margins.kthvalue(margins.numel() - number).values
