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
from routespace.nn.packing.triton_here import runs_triton

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
        score = self.position_bias(table, windows.area)
        if table.kinds is not None:
            score = score.index_select(0, table.kinds)
        # Where windows differ, they and the heads are one dimension: their scores' bias is shared by the batch.
        kinds = score.shape[0]
        batches = b * windows.number // kinds
        size = batches, kinds * self.heads, windows.area, d
        queries, keys, values = self.split(qkv.flatten(0, 1), windows.area, "qkv")
        mixed = mix(queries.view(size), keys.view(size), values.reshape(size), score.flatten(0, 1))
        mixed = mixed.view(b, windows.number, self.heads, windows.area, d).transpose(2, 3)
        mixed = mixed.reshape(b, windows.number * windows.area, c)
        return apply_linear(self.proj, mixed).index_select(1, table.places)

    def packed(self, x: Tensor, rows: Tensor, windows: Windows, touched: Touched) -> Tensor:
        """Kept tokens `rows` (n, C) of the flat batch x (B·N, C) → (n, C)."""
        area, d = windows.area, x.shape[1] // self.heads
        table = window_table(windows, x)
        score = self.position_bias(table, windows.area)
        queries, keys, values = self._packed_heads(x, rows, windows.area, touched)
        if touched.slots is not None:
            queries = spread_rows(queries, touched.slots, touched.places)
        mixed, start = [], 0
        for bucket in touched.buckets:
            windows_in = slice(bucket.start, bucket.stop)
            number, width = bucket.stop - bucket.start, area if bucket.places is None else bucket.places.shape[1]
            stop = start + number * width
            asking = (
                queries
                if touched.whole
                else queries[start:stop].view(number, width, self.heads, d).transpose(1, 2)
            )
            kinds = None if touched.kinds is None else touched.kinds[windows_in]
            found = mix(asking, keys[windows_in], values[windows_in], _score_rows(score, kinds, bucket.places))
            mixed.append(found.transpose(1, 2).reshape(number * width, -1))
            start = stop
        found = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
        return apply_linear(self.proj, found if touched.slots is None else take(found, touched.slots))

    def _packed_heads(self, x: Tensor, rows: Tensor, area: int, touched: Touched) -> tuple[Tensor, Tensor, Tensor]:
        """(B·N, C) → queries (n, h, d) of kept rows (n, C), of whole windows (T, h, A, d) as keys and values."""
        c = x.shape[1]
        value_bias = torch.cat((torch.zeros_like(self.v_bias), self.v_bias))
        if touched.whole:
            product = linear(rows, self.qkv.weight, torch.cat((self.q_bias, value_bias)))
            queries, keys, values = self.split(product, area, "qkv")
            return queries, keys, values
        (queries,) = self.split(linear(rows, self.qkv.weight[:c], self.q_bias), 1, "q")
        if touched.seen is None:
            both = linear(take(x, touched.rows), self.qkv.weight[c:], value_bias)
        else:  # a zero token's key and value are the bias: only the others are computed
            seen = linear(take(x, touched.rows.index_select(0, touched.seen)), self.qkv.weight[c:])
            both = spread_rows(seen, touched.seen, touched.rows.shape[0]) + value_bias
        keys, values = self.split(both, area, "kv")
        return queries.flatten(1, 2), keys, values

    def split(self, product: Tensor, area: int, names: str) -> tuple[Tensor, ...]:
        """Rows of a product (R, S·C) of whole windows → S times (R/A, h, A, d), queries and keys at length one.

        Args:
            product: the rows.
            area: A.
            names: what its parts are: `qkv`, `kv` or `q`; queries are multiplied by the temperature.
        """
        scale = self.logit_scale.clamp(max=MAX_SCALE).exp().to(product.dtype)
        if _goes_to_triton(product):
            from routespace.nn.kernels.heads_triton import split_heads

            return split_heads(product.contiguous(), scale.flatten(), self.heads, area, names).unbind()
        rows = product.view(-1, area, len(names), self.heads, product.shape[1] // (len(names) * self.heads))
        parts = list(rows.permute(2, 0, 3, 1, 4).unbind())
        for i, name in enumerate(names):
            if name != "v":
                parts[i] = unit(parts[i]) * scale if name == "q" else unit(parts[i])
        return tuple(parts)

    def position_bias(self, table: WindowTable, area: int) -> Tensor:
        """(K, h, A, A): what positions add to scores, for each kind of window (K = 1 without shift).

        It costs a small network on 225 positions a forward pass, 2 % of a block at one image, and is not kept:
        a kept one would be stale after each way there is to change a weight.
        """
        by_position = MAX_BIAS * torch.sigmoid(self.cpb_mlp(table.positions.to(self.proj.weight.dtype)))
        pairs = by_position.t().index_select(1, table.pairs)
        bias = pairs.view(1, self.heads, area, area)
        return bias if table.penalty is None else bias + table.penalty.to(bias.dtype)


def _goes_to_triton(product: Tensor) -> bool:
    """Whether a product is taken apart by a kernel: in inference on CUDA, where no compiler looks on."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    return runs_triton(product) and product.shape[0] > 0


def mix(queries: Tensor, keys: Tensor, values: Tensor, score_bias: Tensor) -> Tensor:
    """(…, G, Q, d) queries and (…, G, A, d) keys and values, G = h or V·h → (…, G, Q, d)."""
    bias = score_bias.to(queries.dtype).expand(queries.shape[0], -1, -1, -1)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=1.0)


def _score_rows(score: Tensor, kinds: Tensor | None, places: Tensor | None) -> Tensor:
    """Rows of the (K, h, A, A) score bias for each window and its query places → (T or 1, h, Q, A)."""
    k, h, a, _ = score.shape
    if places is None:
        return score if kinds is None else score.index_select(0, kinds)
    row = places if kinds is None else kinds[:, None] * a + places
    by_query = score.transpose(1, 2).reshape(k * a, h * a)
    return by_query.index_select(0, row.flatten()).view(*places.shape, h, a).transpose(1, 2)
