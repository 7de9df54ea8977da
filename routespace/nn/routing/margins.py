"""Margins: how far each token is from opening. What gates read of a token's surroundings, and whom they follow.

    in_context(x, hw, side)       a token beside the mean and the deviation of its neighbourhood, in one
    surroundings(x, hw, side)     the same three, apart
    weighed(parts, weight, bias)  what a linear layer makes of them: a margin
    smoothed(margins, hw, side)   margins averaged over a neighbourhood
    of_windows(margins, hw, side) the best of each window's tokens
    MarginMap                     the leading row's margins, for maps of coarser rates
    Cut                           a threshold of one's own: a share of the batch is above it

Shape legend: B images · N tokens of a map of H×W · P places, N or fewer · C channels.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routespace.grid.spec import map_size
from routespace.nn.packing.compiler import is_plain_run
from routespace.nn.packing.maps import as_map, as_tokens, coarsen

LEAST_VARIANCE = 1e-5  # below it a neighbourhood is flat, and rounding must not decide
FEW_NUMBERS = 1 << 14  # of a map: of fewer, two products take less time than a convolution's call
CUT_RATE = 0.05  # of the running mean of cuts: it follows features that learn, and averages some 20 batches
OPENS_ALL = -1e4  # a cut below every margin; finite, so that moving averages of a network stay numbers


def in_context(x: Tensor, hw: tuple[int, int], side: int) -> Tensor:
    """(B, N, C) → (B, N, 3C): each token, the mean and the standard deviation of the side×side tokens around it.

    No gradient goes back: what decides must not bend the features towards being easy to decide by.
    """
    return torch.cat(surroundings(x, hw, side), 2)


def surroundings(x: Tensor, hw: tuple[int, int], side: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, C) → the three parts of `in_context`, each (B, N, C)."""
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    if not _pools(x) and x.numel() <= FEW_NUMBERS:  # in this order: a graph must not depend on a size
        mean, square = _by_bands(torch.stack((x, x * x)), hw, side).unbind()
    else:
        mean, square = (as_tokens(_around(as_map(part, hw), side)) for part in (x, x * x))
    deviation = square.addcmul_(mean, mean, value=-1).clamp_(min=LEAST_VARIANCE).sqrt_()
    return x, mean, deviation


def margin_of(logits: Tensor) -> Tensor:
    """(B, P, 1 or 2) → (B, P): a logit, or how far the first is above the second."""
    return logits[..., 0] - logits[..., 1] if logits.shape[-1] == 2 else logits[..., 0]


def weighed(parts: tuple[Tensor, ...], weight: Tensor, bias: Tensor) -> Tensor:
    """(B, P): the margins of places, of which parts (B, P, C) are given, by a linear layer over all of them.

    Two logits are two products, and priced so, but a CPU is given their difference: on narrow maps a matrix of two
    columns and a bias for each row of it take several times as long.
    """
    first, *others = parts
    if first.is_cpu and is_plain_run(first):
        slopes = margin_of(weight.to(first.dtype).t()).split([part.shape[2] for part in parts])
        margins = torch.mv(first.flatten(0, 1), slopes[0])
        for part, own in zip(others, slopes[1:], strict=True):
            margins = torch.addmv(margins, part.flatten(0, 1), own)
        return margins.view(first.shape[:2]).float() + margin_of(bias[None].float())
    weights = weight.to(first.dtype).split([part.shape[2] for part in parts], 1)
    logits = F.linear(first, weights[0], bias.to(first.dtype))
    for part, own in zip(others, weights[1:], strict=True):
        logits = logits + F.linear(part, own)
    return margin_of(logits.float())


def smoothed(margins: Tensor, hw: tuple[int, int], side: int) -> Tensor:
    """(B, N) → (B, N): the mean over the side×side tokens around each."""
    if side == 1:
        return margins
    if _pools(margins):
        return _pooled(margins.view(-1, 1, *hw), side).flatten(1)
    down, across = (_band(length, side).to(margins.dtype) for length in hw)  # torch pools one channel slowly
    with without_autocast(margins, wanted=True):
        lines = (margins.view(-1, hw[1]) @ across.t()).view(-1, *hw)
        return torch.bmm(down.expand(lines.shape[0], *down.shape), lines).flatten(1)


def of_windows(margins: Tensor, hw: tuple[int, int], side: int) -> Tensor:
    """(B, N) → (B, ceil(H/side)·ceil(W/side)): the best of each window's tokens; with side 1 as they came."""
    if side == 1:
        return margins
    return F.max_pool2d(margins.view(-1, 1, *hw), side, side, ceil_mode=True).flatten(1)


def _around(tokens: Tensor, side: int) -> Tensor:
    """(B, C, H, W) → (B, C, H, W): the mean over each token's neighbourhood, of what of it is inside the map."""
    if _pools(tokens):
        return _pooled(tokens, side)
    # On a CPU a convolution takes a fifth of the time of torch's pooling, which no library does for it.
    channels, hw = tokens.shape[1], (tokens.shape[2], tokens.shape[3])
    ones = tokens.new_ones(1, 1, side, side).expand(channels, 1, side, side)
    with without_autocast(tokens, wanted=True):
        sums = F.conv2d(tokens, ones, padding=side // 2, groups=channels)
    return sums.mul_(_shares(hw, side, channels).to(tokens.dtype))


def _by_bands(tokens: Tensor, hw: tuple[int, int], side: int) -> Tensor:
    """(…, N, C) → (…, N, C): the same as `_around` by products, lines first."""
    (h, w), channels = hw, tokens.shape[-1]
    down, across = (_band(length, side).to(tokens.dtype) for length in hw)
    maps = tokens.view(-1, h, w * channels)
    with without_autocast(tokens, wanted=True):
        sums = torch.bmm(down.expand(maps.shape[0], h, h), maps).view(-1, w, channels)
        return torch.bmm(across.expand(sums.shape[0], w, w), sums).view(tokens.shape)


def _pools(x: Tensor) -> bool:
    """Whether torch's own pooling is right: on a GPU, and for all who know it."""
    return not x.is_cpu or not is_plain_run(x)


def _pooled(tokens: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(tokens, side, 1, side // 2, count_include_pad=False)


@lru_cache(maxsize=64)
def _band(length: int, side: int) -> Tensor:
    """(L, L): row i averages those of the `side` places around i that are inside."""
    with torch.inference_mode(False), torch.no_grad():  # whoever asks next may be training
        places = torch.arange(length)
        near = ((places[:, None] - places).abs() <= side // 2).float()
        return near / near.sum(1, keepdim=True)


@lru_cache(maxsize=64)
def _shares(hw: tuple[int, int], side: int, channels: int) -> Tensor:
    """(C, H, W) one over the places that are inside, laid out as sums are: a factor that all channels of a token
    share would be multiplied token by token.
    """
    with torch.inference_mode(False), torch.no_grad():
        down, across = ((_band(length, side) > 0).sum(1) for length in hw)
        shares = (down[:, None] * across).float().reciprocal()
        return shares[:, :, None].expand(*hw, channels).contiguous().permute(2, 0, 1)


def without_autocast(x: Tensor, *, wanted: bool) -> AbstractContextManager[object]:
    """A block in which autocast does not shorten numbers, where that is wanted and autocast is on."""
    if wanted and not x.is_meta and torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


class MarginMap:
    """What the gate of the leading row says of each token, for the rows of all rates.

    Args:
        margins: (B, N).
        hw: height and width of their map.
    """

    def __init__(self, margins: Tensor, hw: tuple[int, int]) -> None:
        self._sizes = [hw]  # fine to coarse, as far as somebody asked
        self._margins = [margins]

    def at(self, hw: tuple[int, int]) -> Tensor:
        """(B, N') of a map of the same or a coarser rate: the maximum over the tokens that each token covers."""
        while hw not in self._sizes:
            size = self._sizes[-1]
            self._margins.append(coarsen(self._margins[-1], size))
            self._sizes.append(map_size(size, 2))
        return self._margins[self._sizes.index(hw)]


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
        return torch.nextafter(margins.min(), margins.new_full((), -torch.inf))
    return margins.kthvalue(margins.numel() - number).values
