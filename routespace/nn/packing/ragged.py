"""Attention of packed queries: each image has its own number of queries and the same number of keys.

Four ways, one result: equal counts are a plain batch; padding to the longest image where that wastes less than a
call takes; an image at a time where it wastes more; and `varlen_attn` on CUDA in half precision, which takes
packed queries as they are and an upper bound of their lengths, so that nothing waits for the device.

Shape legend: B images · n packed queries · L the most queries of an image · M keys · h heads · d = C/h.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from routespace.nn.packing.compiler import assume_constant_result
from routespace.nn.packing.keep import KeptTokens, PackTables
from routespace.nn.packing.rows import spread_rows, take

# Padding may waste so many MACs an image before a loop over images takes less time: what one call costs.
CALL_MACS = {"cpu": 200_000, "cuda": 100_000_000}
FLASH_FROM = (8, 0)  # compute capability
FLASH_MULTIPLE, FLASH_MOST = 8, 256  # numbers of a head


def ragged_attention(queries: Tensor, keys: Tensor, values: Tensor, keep: KeptTokens | PackTables) -> Tensor:
    """Attention of each image's packed queries to its keys.

    Args:
        queries: (n, h, d), image after image.
        keys, values: (B, h, M, d).
        keep: which tokens the queries are.

    Returns:
        (n, h·d).
    """
    b = keys.shape[0]
    # One graph for every count: attend from the whole map. (A compiled step is no export, as torch 2.11 says.)
    if torch.compiler.is_exporting() and isinstance(keep, KeptTokens):
        return padded_attention(queries, keys, values, keep.rows, keep.tokens)
    if keep.per_image is not None:
        return equal_attention(queries, keys, values)
    if _fits_flash(queries):
        return varlen_attention(queries, keys, values, keep)
    if isinstance(keep, PackTables):
        assert keep.slots is not None
        return padded_attention(queries, keys, values, keep.slots, keep.longest)
    if _padding_pays(b * keep.longest, queries, keys):
        return padded_attention(queries, keys, values, keep.slots, keep.longest)
    parts = zip(torch.split(queries, keep.lengths), torch.split(keys, 1), torch.split(values, 1), strict=True)
    return torch.cat([equal_attention(q, k, v) for q, k, v in parts if len(q)])


def _fits_flash(queries: Tensor) -> bool:
    """Whether flash attention takes (n, h, d) queries as they are: on CUDA, in half precision, of a fitting d."""
    d = queries.shape[2]
    if not queries.is_cuda or queries.dtype not in (torch.float16, torch.bfloat16):
        return False
    return d % FLASH_MULTIPLE == 0 and d <= FLASH_MOST and _has_flash()


@assume_constant_result
def _has_flash() -> bool:
    return torch.cuda.get_device_capability() >= FLASH_FROM


def _padding_pays(padded: int, queries: Tensor, keys: Tensor) -> bool:
    """Whether so many queries in one call take less time than (n, h, d) of them, an image at a time."""
    (n, h, d), (b, _, m, _) = queries.shape, keys.shape
    wasted_macs = 2 * (padded - n) * m * h * d
    return wasted_macs <= b * CALL_MACS.get(queries.device.type, CALL_MACS["cuda"])


def equal_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """(B·k, h, d) queries, the same number of each image → (B·k, h·d)."""
    b = keys.shape[0]
    batch = queries.view(b, queries.shape[0] // b, *queries.shape[1:]).transpose(1, 2)
    return F.scaled_dot_product_attention(batch, keys, values).transpose(1, 2).reshape(queries.shape[0], -1)


def padded_attention(queries: Tensor, keys: Tensor, values: Tensor, slots: Tensor, length: int) -> Tensor:
    """(n, h, d) queries at the given slots of a (B, length) batch → (n, h·d)."""
    total = keys.shape[0] * length
    return take(equal_attention(spread_rows(queries, slots, total), keys, values), slots)


def varlen_attention(queries: Tensor, keys: Tensor, values: Tensor, keep: KeptTokens | PackTables) -> Tensor:
    """(n, h, d) half-precision CUDA queries → (n, h·d), by flash attention over sequences of any lengths."""
    from torch.nn.attention.varlen import varlen_attn

    b, _, m, _ = keys.shape
    starts = F.pad(keep.counts.cumsum(0), (1, 0)).to(torch.int32)
    key_starts = m * torch.arange(b + 1, device=keys.device, dtype=torch.int32)
    packed_keys, packed_values = (
        part.transpose(1, 2).reshape(b * m, *queries.shape[1:]) for part in (keys, values)
    )
    mixed = varlen_attn(queries, packed_keys, packed_values, starts, key_starts, keep.tokens, m)
    assert isinstance(mixed, Tensor)  # a tuple only with return_aux
    return mixed.flatten(1)
