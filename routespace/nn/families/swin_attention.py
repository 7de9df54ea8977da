"""SwinV2's window attention (arXiv 2111.09883, section 3): cosine scores, a learned temperature, a position bias.

Shape legend: B images · N tokens · V windows of an image · A places of a window · T touched windows · Q query
places · n kept tokens · K kinds of windows · C channels · h heads · d = C/h.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routespace.grid.families.swin_v2 import BIAS_HIDDEN
from routespace.nn.families.swin_packing import Touched
from routespace.nn.families.swin_windows import Windows, WindowTable, to_places, unit, window_table
from routespace.nn.kernels.linear import apply_linear, linear
from routespace.nn.packing.rows import spread_rows, take

FIRST_SCALE = math.log(10)
MAX_SCALE = math.log(100)
MAX_BIAS = 16.0


class WindowAttention(nn.Module):
    """Scaled cosine attention inside windows, with a continuous position bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), FIRST_SCALE))
        self.cpb_mlp = nn.Sequential(
            nn.Linear(2, BIAS_HIDDEN), nn.ReLU(inplace=True), nn.Linear(BIAS_HIDDEN, heads, bias=False)
        )
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        """(B, N, C) → (B, N, C), every token."""
        b, _, c = x.shape
        d = c // self.heads
        table = window_table(windows, x)
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = linear(to_places(x, table), self.qkv.weight, bias)
        qkv = qkv.view(b, windows.number, windows.area, 3, self.heads, d)
        score = self.position_bias(table, windows.area)
        if table.kinds is not None:
            score = score.index_select(0, table.kinds)
        # Where windows differ, they and the heads are one dimension: their scores' bias is shared by the batch.
        kinds = score.shape[0]
        batches = b * windows.number // kinds
        parts = qkv.permute(3, 0, 1, 4, 2, 5).reshape(3, batches, kinds * self.heads, windows.area, d)
        mixed = self.mix(parts[0], parts[1], parts[2], score.flatten(0, 1))
        mixed = mixed.view(b, windows.number, self.heads, windows.area, d).transpose(2, 3)
        mixed = mixed.reshape(b, windows.number * windows.area, c)
        return apply_linear(self.proj, mixed).index_select(1, table.places)

    def packed(self, x: Tensor, rows: Tensor, windows: Windows, touched: Touched) -> Tensor:
        """Kept tokens `rows` (n, C) of the flat batch x (B·N, C) → (n, C)."""
        area, d = windows.area, x.shape[1] // self.heads
        table = window_table(windows, x)
        score = self.position_bias(table, windows.area)
        queries, keys, values = (part.view(-1, self.heads, d) for part in self._packed_qkv(x, rows, touched))
        if touched.slots is not None:
            queries = spread_rows(queries, touched.slots, touched.places)
        keys, values = (part.view(-1, area, self.heads, d).transpose(1, 2) for part in (keys, values))
        mixed, start = [], 0
        for bucket in touched.buckets:
            windows_in = slice(bucket.start, bucket.stop)
            number, width = bucket.stop - bucket.start, area if bucket.places is None else bucket.places.shape[1]
            stop = start + number * width
            asking = queries[start:stop].view(number, width, self.heads, d).transpose(1, 2)
            kinds = None if touched.kinds is None else touched.kinds[windows_in]
            found = self.mix(
                asking, keys[windows_in], values[windows_in], _score_rows(score, kinds, bucket.places)
            )
            mixed.append(found.transpose(1, 2).reshape(number * width, -1))
            start = stop
        found = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
        return apply_linear(self.proj, found if touched.slots is None else take(found, touched.slots))

    def _packed_qkv(self, x: Tensor, rows: Tensor, touched: Touched) -> tuple[Tensor, Tensor, Tensor]:
        """(B·N, C) → queries (n, C) of the kept rows (n, C), keys and values (T·A, C)."""
        c = x.shape[1]
        value_bias = torch.cat((torch.zeros_like(self.v_bias), self.v_bias))
        if touched.whole:
            whole = linear(rows, self.qkv.weight, torch.cat((self.q_bias, value_bias)))
            return whole[:, :c], whole[:, c : 2 * c], whole[:, 2 * c :]
        queries = linear(rows, self.qkv.weight[:c], self.q_bias)
        if touched.seen is None:
            both = linear(take(x, touched.rows), self.qkv.weight[c:], value_bias)
        else:  # a zero token's key and value are the bias: only the others are computed
            seen = linear(take(x, touched.rows.index_select(0, touched.seen)), self.qkv.weight[c:])
            both = spread_rows(seen, touched.seen, touched.rows.shape[0]) + value_bias
        return queries, both[:, :c], both[:, c:]

    def mix(self, queries: Tensor, keys: Tensor, values: Tensor, score_bias: Tensor) -> Tensor:
        """(…, G, Q, d) queries and (…, G, A, d) keys and values, G = h or V·h → (…, G, Q, d)."""
        scale = self.logit_scale.clamp(max=MAX_SCALE).exp()
        groups = queries.shape[1] // self.heads
        queries = unit(queries) * scale.repeat(groups, 1, 1).to(queries.dtype)
        bias = score_bias.to(queries.dtype)
        bias = bias.expand(queries.shape[0], -1, -1, -1)
        return F.scaled_dot_product_attention(queries, unit(keys), values, attn_mask=bias, scale=1.0)

    def position_bias(self, table: WindowTable, area: int) -> Tensor:
        """(K, h, A, A): what positions add to scores, for each kind of window (K = 1 without shift).

        It costs a small network on 225 positions a forward pass, 2 % of a block at one image, and is not kept:
        a kept one would be stale after each way there is to change a weight.
        """
        by_position = MAX_BIAS * torch.sigmoid(self.cpb_mlp(table.positions.to(self.proj.weight.dtype)))
        pairs = by_position.t().index_select(1, table.pairs)
        bias = pairs.view(1, self.heads, area, area)
        return bias if table.penalty is None else bias + table.penalty.to(bias.dtype)


def _score_rows(score: Tensor, kinds: Tensor | None, places: Tensor | None) -> Tensor:
    """Rows of the (K, h, A, A) score bias for each window and its query places → (T or 1, h, Q, A)."""
    k, h, a, _ = score.shape
    if places is None:
        return score if kinds is None else score.index_select(0, kinds)
    row = places if kinds is None else kinds[:, None] * a + places
    by_query = score.transpose(1, 2).reshape(k * a, h * a)
    return by_query.index_select(0, row.flatten()).view(*places.shape, h, a).transpose(1, 2)
