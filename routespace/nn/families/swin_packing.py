"""Which windows routing touches: the index tables of packed window attention.

A window without a kept token is not computed at all. The others keep all their keys; their queries are packed to
the kept tokens and padded to the next quarter of a window, so that a few dense batches hold them.

Shape legend: B images · N tokens of a map · V windows of an image · A places of a window · T touched windows of
the batch · Q query places of a window · n kept tokens · q queries with their padding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from routespace.nn.families.swin_windows import Windows, WindowTable, at_places, window_table
from routespace.nn.packing.keep import KeptTokens

QUERY_BUCKETS = 4  # window routing with shifted windows asks for whole quarters: then nothing is padded


class Bucket(NamedTuple):
    """Touched windows that are computed with the same number of query places.

    Attributes:
        start, stop: which of the touched windows.
        places: (T', Q) the query places of each window, kept ones first; None: all A in their order.
    """

    start: int
    stop: int
    places: Tensor | None


class Touched(NamedTuple):
    """What packed attention needs to know, for one batch of masks; shared by the blocks of an edge.

    Attributes:
        rows: (T·A,) the row of each place of the touched windows in the flat (B·N) batch.
        kinds: (T,) kind of each touched window, or None.
        whole: every place of each touched window is kept and visible: rows are queries and keys alike.
        seen: (m,) places among T·A that have a key; None for all.
        buckets: windows by their number of queries, in the order of the touched windows.
        slots: (n,) where the kept tokens' queries stand among the padded ones, increasing; None: everywhere.
        places: number of padded queries.
        kept: (n,) rows of the kept tokens, in the order of their queries.
        images: (n,) the image of each.
    """

    rows: Tensor
    kinds: Tensor | None
    whole: bool
    seen: Tensor | None
    buckets: tuple[Bucket, ...]
    slots: Tensor | None
    places: int
    kept: Tensor
    images: Tensor


def touch(keep: KeptTokens, windows: Windows) -> Touched:
    """Find the windows that hold a kept token, ordered by how many they hold."""
    table = window_table(windows, keep.kept)
    v, a, n = windows.number, windows.area, keep.kept.shape[1]
    kept_WA = at_places(keep.kept, table).view(-1, a)
    counts = kept_WA.sum(1)
    touched = counts.nonzero().squeeze(1)
    quarter = -(-a // QUERY_BUCKETS)
    size = (counts.index_select(0, touched) - 1) // quarter
    touched = touched.index_select(0, size.argsort(stable=True))
    kept_TA = kept_WA.index_select(0, touched)
    rows_TA = (touched // v * n)[:, None] + table.tokens.view(v, a).index_select(0, touched % v)
    buckets, rows, valid = [], [rows_TA[:0].flatten()], [kept_TA[:0].flatten()]
    start = 0
    for i, number in enumerate(torch.bincount(size, minlength=QUERY_BUCKETS).tolist()):
        if number:
            bucket = _bucket(kept_TA, start, number, min(a, (i + 1) * quarter))
            asked = slice(start, start + number)
            rows.append(_pick(rows_TA[asked], bucket.places))
            valid.append(_pick(kept_TA[asked], bucket.places))
            buckets.append(bucket)
            start += number
    asking = torch.cat(valid)
    slots = asking.nonzero().squeeze(1)
    every = slots.shape[0] == asking.shape[0]
    kept = torch.cat(rows) if every else torch.cat(rows).index_select(0, slots)
    return Touched(
        rows=rows_TA.flatten(),
        kinds=None if table.kinds is None else table.kinds.index_select(0, touched % v),
        whole=every and len(buckets) == 1 and buckets[0].places is None,
        seen=_seen(keep, table, touched, a),
        buckets=tuple(buckets),
        slots=None if every else slots,
        places=asking.shape[0],
        kept=kept,
        images=kept // n,
    )


def _bucket(kept_TA: Tensor, start: int, number: int, width: int) -> Bucket:
    """The query places of `number` windows that hold at most `width` kept tokens each."""
    if width == kept_TA.shape[1]:
        return Bucket(start, start + number, None)
    kept = kept_TA[start : start + number].to(torch.uint8)
    places = kept.argsort(dim=1, descending=True, stable=True)[:, :width]
    return Bucket(start, start + number, places)


def _pick(per_place: Tensor, places: Tensor | None) -> Tensor:
    """(T', A) → (T'·Q,) at the query places."""
    return (per_place if places is None else per_place.gather(1, places)).flatten()


def _seen(keep: KeptTokens, table: WindowTable, touched: Tensor, area: int) -> Tensor | None:
    """(m,) places of the touched windows that have a key, or None for all of them."""
    if keep.visible is None and table.real is None:
        return None
    visible = torch.ones_like(keep.kept) if keep.visible is None else keep.visible
    return at_places(visible, table).view(-1, area).index_select(0, touched).flatten().nonzero().squeeze(1)
