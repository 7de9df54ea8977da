"""Which tokens of a map are computed, and the index tables that computing only those needs.

What a routed transformer edge computes (the one place where this is said; every family, every way of executing
and every price follows it):

- Kept tokens are the queries, and they alone pass through the feed-forward layer.
- Keys and values are made of the visible tokens: all that arrived at the node (`keys: all`), or the kept ones
  alone (`keys: kept`). An invisible token is a zero token there, as padding is.
- In the feed-forward layer a skipped neighbour counts as zero in a depth-wise convolution.
- A skipped token passes unchanged. What a row may add to it afterwards is its own (`nn/routing/skipped.py`).

So with every token kept and visible an edge is the plain blocks in a row, and an image's result never depends on
the other images of its batch.

Shape legend: B images · H, W map sides · N = H·W tokens · n kept tokens of the whole batch · C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from routespace.nn.packing.triton_here import runs_triton

if TYPE_CHECKING:
    from routespace.nn.packing.framed_triton import FramedTables

T = TypeVar("T")
MOST_TOKENS, MOST_PLACES = 4096, 1 << 31  # of an image, and of a batch, that kernels make tables of


class KeptTokens:
    """The tokens that a transformer edge computes, for one batch of maps.

    Args:
        kept: (B, N) bool, the tokens that are queries and pass through the feed-forward layer.
        hw: map height and width in tokens, H·W = N.
        visible: (B, N) bool, the tokens that keys and values are made of; None means all.
        per_image: kept tokens of each image, where the selection makes them equal (top-k): every table then has a
            shape known beforehand, and nothing waits for the device.
        sees_kept: keys and values are made of exactly the kept tokens; `visible` is then `kept`.
        lengths: kept tokens of each image, where the host knows them already: it then does not ask the device.
        mask: (B, N) float of `kept`, where somebody has made it.

    The tables are made on first use and shared by all blocks of an edge.
    """

    def __init__(
        self,
        kept: Tensor,
        hw: tuple[int, int],
        visible: Tensor | None = None,
        *,
        per_image: int | None = None,
        sees_kept: bool = False,
        lengths: list[int] | None = None,
        mask: Tensor | None = None,
    ) -> None:
        self.kept = kept
        self.hw = hw
        self.visible = kept if sees_kept else visible
        self.per_image = per_image
        self.sees_kept = sees_kept
        self._lengths = lengths
        self._shared: dict[Hashable, Any] = {}
        # Not cached properties: those hold a lock before Python 3.12, at which torch's compiler breaks its graph.
        self._mask = None if mask is None else mask.unsqueeze(-1)
        self._visible_mask: Tensor | None = None

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, made once for all blocks of an edge that ask for `key`: a family's own tables."""
        if key not in self._shared:
            self._shared[key] = make()
        made: T = self._shared[key]
        return made

    @property
    def tokens(self) -> int:
        """N."""
        return self.kept.shape[1]

    @property
    def mask(self) -> Tensor:
        """(B, N, 1) float of `kept`."""
        if self._mask is None:
            self._mask = self.kept.unsqueeze(-1).float()
        return self._mask

    @property
    def visible_mask(self) -> Tensor | None:
        """(B, N, 1) float of `visible`, or None for all."""
        if self._visible_mask is None and self.visible is not None:
            self._visible_mask = self.visible.unsqueeze(-1).float()
        return self._visible_mask

    @cached_property
    def rows(self) -> Tensor:
        """(n,) positions of the kept tokens in the flat (B·N) batch, increasing."""
        if self._places is not None:
            return self._places[0]
        if self.per_image is None and self.kept.is_cuda:  # the host knows n once it has the lengths: one wait
            return torch.nonzero_static(self.kept.flatten(), size=sum(self.lengths)).squeeze(1)
        return kept_rows(self.kept, self.per_image)

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor] | None:
        """`rows` and `order` by a kernel of their own on CUDA, where each small operation takes its time."""
        if not self.kept.is_cuda or torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return None
        if not runs_triton(self.kept) or not 0 < self.kept.numel() < MOST_PLACES or self.tokens > MOST_TOKENS:
            return None
        from routespace.nn.packing.tables_triton import places

        starts = None if self.per_image is not None else self.counts.cumsum(0) - self.counts
        return places(self.kept.contiguous(), sum(self.lengths), starts, self.per_image)

    @cached_property
    def framed(self) -> FramedTables | None:
        """All that inference on CUDA reads, by one kernel; None where that does not run."""
        (h, w), kept = self.hw, self.kept
        if not runs_triton(kept) or torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return None
        from routespace.nn.packing.framed_triton import MOST_IMAGES, framed_tables

        small = 0 < kept.shape[0] <= MOST_IMAGES and 0 < self.tokens <= MOST_TOKENS
        if not small or kept.shape[0] * (h + 2) * (w + 2) >= MOST_PLACES:
            return None
        counts = None if self.per_image is not None else self.counts
        return framed_tables(kept.contiguous(), sum(self.lengths), counts, self.hw, self.per_image)

    @cached_property
    def counts(self) -> Tensor:
        """(B,) kept tokens of each image."""
        if self._lengths is not None and self.kept.is_cpu:
            return torch.tensor(self._lengths, dtype=torch.long)
        return self.kept.sum(1)

    @cached_property
    def lengths(self) -> list[int]:
        """Kept tokens of each image, on the host."""
        if self._lengths is not None:
            return self._lengths
        return [self.per_image] * self.kept.shape[0] if self.per_image is not None else self.counts.tolist()

    @cached_property
    def longest(self) -> int:
        """The most tokens that one image keeps."""
        return max(self.lengths, default=0)

    @cached_property
    def images(self) -> Tensor:
        """(n,) the image of each kept token."""
        return self.rows // self.kept.shape[1]

    @cached_property
    def order(self) -> Tensor:
        """(B·N,) the place of each token among the kept ones, n where it is skipped; int32 on a CPU."""
        if self._places is not None:
            return self._places[1]
        n, total = self.rows.shape[0], self.kept.numel()
        if self.kept.is_cpu and total < MOST_PLACES:  # half of what indexing reads
            places = torch.arange(n, device=self.kept.device, dtype=torch.int32)
            return places.new_full((total,), n).index_copy_(0, self.rows, places)
        flat = self.kept.flatten()
        return torch.where(flat, flat.cumsum(0) - 1, n)

    @cached_property
    def slots(self) -> Tensor:
        """(n,) positions of the kept tokens in a batch padded to (B, longest), increasing."""
        begin = torch.arange(self.kept.shape[0], device=self.kept.device) * self.longest
        return self.placed_from(begin)

    def placed_from(self, begin: Tensor) -> Tensor:
        """(n,) `begin` (B,) of each kept token's image, and how many of that image come before it."""
        first = self.counts.cumsum(0) - self.counts
        n = self.rows.shape[0]
        moved = torch.repeat_interleave(begin - first, self.counts, output_size=n)
        return moved + torch.arange(n, device=self.kept.device)

    @cached_property
    def neighbours(self) -> Tensor:
        """(9, n) the place among the kept tokens of each one's 3×3 neighbours, n where it is skipped or outside.

        Neighbour 3·(dy + 1) + (dx + 1) is the one at (y + dy, x + dx).
        """
        (h, w), n = self.hw, self.rows.shape[0]
        if self._places is not None and n:
            from routespace.nn.packing.tables_triton import neighbours

            return neighbours(*self._places, self.hw)
        # Each of these operations waits for its code where a product came before it: the fewer, the better.
        b, dtype = self.kept.shape[0], torch.int32 if self.kept.is_cuda else torch.int64  # there half is read
        corner = torch.add(self.rows, self.rows // w, alpha=2)  # above and to the left of each, in framed maps
        if b != 1:
            corner = torch.add(corner, self.images, alpha=2 * (w + 2))
        places = torch.arange(n, device=corner.device, dtype=dtype)
        framed = places.new_full((b * (h + 2) * (w + 2),), n).index_copy_(0, corner + (w + 3), places)
        steps = [dy * (w + 2) + dx for dy in range(3) for dx in range(3)]
        offsets = torch.tensor(steps, device=corner.device)
        return framed.index_select(0, (offsets[:, None] + corner).flatten()).view(9, -1)

    @cached_property
    def occupied(self) -> Tensor | None:
        """The images of which something is kept, increasing; None for all (and where a graph is exported)."""
        if self.per_image is not None or torch.compiler.is_exporting() or all(self.lengths):
            return None
        return torch.tensor(
            [i for i, n in enumerate(self.lengths) if n], device=self.kept.device, dtype=torch.long
        )

    @property
    def is_everything(self) -> bool:
        """Whether every token is kept and visible, so that the plain block will do."""
        if torch.compiler.is_exporting() or not (self.visible is None or self.sees_kept):
            return False
        return sum(self.lengths) == self.kept.numel()

    def only(self, images: Tensor, lengths: list[int] | None = None) -> KeptTokens:
        """The same for some images of the batch; `lengths` tells what they keep, where the host knows."""
        visible = None if self.visible is None else self.visible.index_select(0, images)
        return self._like(self.kept.index_select(0, images), visible, lengths)

    def split(self, images: list[int]) -> list[KeptTokens]:
        """The same for so many consecutive images of the batch each; they add up to B."""
        kept = torch.split(self.kept, images)
        visible = [None] * len(kept) if self.visible is None else torch.split(self.visible, images)
        return [self._like(part, seen) for part, seen in zip(kept, visible, strict=True)]

    def _like(self, kept: Tensor, visible: Tensor | None, lengths: list[int] | None = None) -> KeptTokens:
        return KeptTokens(
            kept, self.hw, visible, per_image=self.per_image, sees_kept=self.sees_kept, lengths=lengths
        )

    def see(self, x: Tensor) -> Tensor:
        """(B, N, C) → the same map with invisible tokens at zero."""
        return x if self.visible_mask is None else x * self.visible_mask.to(x.dtype)

    @cached_property
    def tables(self) -> PackTables:
        """All tables at once, for a compiled step; those of one image on a CPU are of equal counts."""
        alone = self.kept.shape[0] == 1 and not self.kept.is_cuda
        per_image = self.longest if alone else self.per_image
        whole = per_image is not None
        return PackTables(
            rows=self.rows,
            neighbours=self.neighbours,
            counts=None if whole else self.counts,
            slots=None if whole else self.slots,
            longest=0 if whole else self.longest,
            tokens=self.tokens,
            per_image=per_image,
            visible_mask=None if self.sees_kept else self.visible_mask,
            sees_kept=self.sees_kept,
        )


class PackTables(NamedTuple):
    """What a compiled step needs of `KeptTokens`: tensors and numbers alone; see there."""

    rows: Tensor
    neighbours: Tensor
    counts: Tensor | None
    slots: Tensor | None
    longest: int
    tokens: int
    per_image: int | None
    visible_mask: Tensor | None
    sees_kept: bool

    def see(self, x: Tensor) -> Tensor:
        """See `KeptTokens.see`."""
        return x if self.visible_mask is None else x * self.visible_mask.to(x.dtype)


def kept_rows(kept: Tensor, per_image: int | None) -> Tensor:
    """(B, N) bool → (n,) positions of the kept tokens in the flat (B·N) batch, increasing.

    With `per_image`, the number that is kept of every image, nothing asks the device for a size.
    """
    if per_image is None:
        return kept.flatten().nonzero().squeeze(1)
    b, n = kept.shape
    tokens = torch.arange(b * n, device=kept.device).view(b, n)
    place = torch.where(kept, kept.cumsum(1) - 1, per_image)  # one slot more takes all the skipped
    return tokens.new_zeros(b, per_image + 1).scatter_(1, place, tokens)[:, :per_image].flatten()
