"""Windows of a token map: which token stands where, and which may see which.

Everything follows timm's SwinV2: a map is rolled by the shift, then padded on the right and at the bottom to whole
windows. A padded place is a zero token: it takes part as a key (zero key, the value's bias) and is thrown away
as a query. In shifted windows, tokens that are no neighbours on the map are kept apart by a penalty.

Shape legend: B images · H, W map sides · N = H·W tokens · V windows of an image · A places of a window ·
K kinds of windows.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from routespace.grid.families.swin_v2 import padded_size, window_sides

APART = -100.0  # what the official code and timm add to a score that should not count


class Windows(NamedTuple):
    """How a map is cut into windows.

    Attributes:
        hw: height and width of the map in tokens.
        sides: height and width of a window, no larger than the map.
        shift: tokens by which the map is rolled up and left before it is cut.
        trained: side of the windows that the weights were first trained in; 0: of these.
    """

    hw: tuple[int, int]
    sides: tuple[int, int]
    shift: tuple[int, int]
    trained: int = 0

    @classmethod
    def of(cls, hw: tuple[int, int], window: int, *, shifted: bool, trained: int = 0) -> Windows:
        """The windows of a map; a side that one window spans is not shifted (as in timm)."""
        sides = window_sides(hw, window)
        shift = [window // 2 if shifted and length > side else 0 for length, side in zip(hw, sides, strict=True)]
        return cls(hw, sides, (shift[0], shift[1]), trained)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the map of whole windows."""
        return padded_size(self.hw, self.sides)

    @property
    def number(self) -> int:
        """V, windows of an image."""
        return self.padded[0] // self.sides[0] * (self.padded[1] // self.sides[1])

    @property
    def area(self) -> int:
        """A, places of a window."""
        return self.sides[0] * self.sides[1]

    @property
    def shifted(self) -> bool:
        """Whether the windows were shifted along either side."""
        return any(self.shift)


class WindowTable(NamedTuple):
    """Index tables of one way to cut a map, for one device.

    Attributes:
        tokens: (V·A,) the token at each place, 0 at padding.
        real: (V·A,) bool, False at padding; None without padding.
        places: (N,) the place of each token.
        kinds: (V,) inner, right edge, bottom edge or corner (0…3); None where windows are not shifted.
        penalty: (K, 1, A, A) float, what to add to the scores of each kind; None likewise.
        positions: (places, 2) float, the relative positions inside a window; see `position_table`.
        pairs: (A·A,) the row of `positions` for each pair of places, queries first.
    """

    tokens: Tensor
    real: Tensor | None
    places: Tensor
    kinds: Tensor | None
    penalty: Tensor | None
    positions: Tensor
    pairs: Tensor


def window_table(windows: Windows, like: Tensor) -> WindowTable:
    """The tables of `windows` on the device of `like`; kept between calls except where a tracer watches."""
    if type(like) is not Tensor or torch.compiler.is_compiling():  # a fake tensor must not outlive its tracer
        return _build_table(windows, like.device)
    return _kept_table(windows, like.device)


@lru_cache(maxsize=64)
def _kept_table(windows: Windows, device: torch.device) -> WindowTable:
    with torch.inference_mode(False):  # a table made at inference serves training too
        return _build_table(windows, device)


def _build_table(windows: Windows, device: torch.device) -> WindowTable:
    (h, w), (tall, wide), (a, b) = windows.hw, windows.padded, windows.sides
    y = torch.arange(tall, device=device)[:, None].expand(tall, wide)
    x = torch.arange(wide, device=device)[None, :].expand(tall, wide)
    inside = (y < h) & (x < w)
    token = (y + windows.shift[0]) % h * w + (x + windows.shift[1]) % w
    tokens = _cut(torch.where(inside, token, 0), windows).flatten()
    place = ((y // a) * (wide // b) + x // b) * windows.area + (y % a) * b + x % b
    # The inverse: the token at (i, j) stands at the rolled position (i − shift, j − shift).
    at = place[:h, :w].roll(windows.shift, (0, 1)).flatten()
    real = None if (h, w) == (tall, wide) else _cut(inside, windows).flatten()
    return WindowTable(
        tokens=tokens,
        real=real,
        places=at,
        kinds=_kinds(windows, device) if windows.shifted else None,
        penalty=_penalty(windows, device) if windows.shifted else None,
        positions=position_table(windows.sides, device, trained=windows.trained),
        pairs=_pairs(windows.sides, device),
    )


def _cut(grid: Tensor, windows: Windows) -> Tensor:
    """(H', W') of whole windows → (V, A)."""
    (tall, wide), (a, b) = windows.padded, windows.sides
    return grid.reshape(tall // a, a, wide // b, b).transpose(1, 2).reshape(windows.number, windows.area)


def _kinds(windows: Windows, device: torch.device) -> Tensor:
    """(V,) 2·(in the last row) + (in the last column): only there do far tokens meet."""
    (tall, wide), (a, b) = windows.padded, windows.sides
    last_row = torch.arange(tall // a, device=device) == tall // a - 1
    last_column = torch.arange(wide // b, device=device) == wide // b - 1
    return (2 * last_row[:, None] + 1 * last_column[None, :]).flatten()


def _penalty(windows: Windows, device: torch.device) -> Tensor:
    """(K, 1, A, A): APART between places whose tokens come from different borders of the map."""
    (a, b), (down, right) = windows.sides, windows.shift
    split_y = (torch.arange(a, device=device) >= a - down).long()  # all zero where that side is not shifted
    split_x = (torch.arange(b, device=device) >= b - right).long()
    regions = torch.stack(
        [
            (2 * edge_y * split_y[:, None] + edge_x * split_x[None, :]).flatten()
            for edge_y in (0, 1)
            for edge_x in (0, 1)
        ]
    )
    return APART * (regions[:, None, :] != regions[:, :, None]).float().unsqueeze(1)


def position_table(sides: tuple[int, int], device: torch.device, *, trained: int = 0) -> Tensor:
    """(places, 2) log-spaced relative positions inside a window (SwinV2, equation 4).

    The distance as a share of the window goes to −8…8, then to sign · log2(1 + |·|) / log2(8). Weights that were
    trained in windows of another side know distances as shares of those: with `trained` they are measured so, and
    larger windows reach beyond ±1.
    """
    axes = [torch.arange(1.0 - side, side, device=device) / max((trained or side) - 1, 1) for side in sides]
    y, x = torch.meshgrid(*axes, indexing="ij")
    far = 8 * torch.stack((y, x), -1).flatten(0, 1)
    return far.sign() * (far.abs() + 1).log2() / math.log2(8)


def _pairs(sides: tuple[int, int], device: torch.device) -> Tensor:
    """(A·A,) row of `position_table` for each pair of places, queries first."""
    y, x = torch.meshgrid(*(torch.arange(side, device=device) for side in sides), indexing="ij")
    y, x = y.flatten(), x.flatten()
    down = y[:, None] - y[None, :] + sides[0] - 1
    right = x[:, None] - x[None, :] + sides[1] - 1
    return (down * (2 * sides[1] - 1) + right).flatten()


def at_places(mask: Tensor, table: WindowTable) -> Tensor:
    """(B, N) bool → (B, V·A), False at padding."""
    found = mask.index_select(1, table.tokens)
    return found if table.real is None else found & table.real


def to_places(x: Tensor, table: WindowTable) -> Tensor:
    """(B, N, C) → (B, V·A, C), zero at padding."""
    found = x.index_select(1, table.tokens)
    return found if table.real is None else found * table.real.to(x.dtype).unsqueeze(-1)


def unit(x: Tensor) -> Tensor:
    """Vectors along the last dimension at length one; the zero vector stays zero and has no gradient, in any type.

    Its length is taken as infinite. A small constant instead, as in torch's `normalize`, would give a padded key
    a gradient of its inverse, which is past the end of half precision.
    """
    x = x.contiguous()  # a CPU measures vectors that stand far apart five times slower
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32  # (promote_types would be an operator)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    unit: Tensor = x / length.masked_fill(length == 0, math.inf)
    return unit.to(x.dtype)
