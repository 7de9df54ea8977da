"""Attention of packed queries: each image has its own number of queries and the same number of keys.

Six ways, one result: equal counts are a plain batch; plain products where there is one narrow head; padding to the
longest image where that wastes little; else padding to whole chunks of queries, each with a copy of its image's
keys, or an image at a time, whichever is cheaper; and `varlen_attn` on CUDA in half precision, which takes packed
queries as they are and an upper bound of their lengths, so that nothing waits for the device.

Shape legend: B images · n packed queries · L the most queries of an image · K chunks · M keys · h heads · d = C/h.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from routespace.nn.packing.compiler import assume_constant_result, is_plain_run
from routespace.nn.packing.keep import KeptTokens, PackTables
from routespace.nn.packing.rows import spread_rows, take

# Times are compared in MACs. What one call costs; what a query's weight of one key takes beside its products.
CALL_MACS = {"cpu": 200_000, "cuda": 100_000_000}
SOFTMAX_MACS = 64
CHUNK_CALLS, CHUNKS = 12, 8  # to make tables of chunks and to copy keys; chunks of the longest image
LEAST_CHUNK, COPY_MACS = 16, 4  # queries; of one number
# Heads of up to so many numbers: a call on a CPU is worth 20 000 weights of keys, tables of chunks three calls,
# and those of padding two; 32 queries are as many as torch's attention takes at a time.
NARROW_HEAD, NARROW_CALL_MACS, NARROW_TABLES, NARROW_SLOTS, NARROW_CHUNK = 16, 1_600_000, 3, 2, 32
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
    if keys.shape[0] == 1 and not queries.is_cuda:
        return equal_attention(queries, keys, values)
    if _is_single(queries):
        return narrow_attention(queries, keys, values, keep.lengths)
    way = _cheapest(queries, keys, keep)
    if way == "padded":
        return padded_attention(queries, keys, values, keep.slots, keep.longest)
    if way == "chunks":
        length = _chunk_length(queries, keep)
        chunks = keep.shared(("chunks", length), lambda: chunks_of(keep, length))
        keys, values = (part.contiguous().index_select(0, chunks.images) for part in (keys, values))
        return padded_attention(queries, keys, values, chunks.slots, length)
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
    return _capability(torch.cuda.current_device()) >= FLASH_FROM


@cache
def _capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)  # 46 µs


class Chunks(NamedTuple):
    """Each image's kept tokens, in chunks of equal length.

    Attributes:
        images: (K,) the image of each chunk.
        slots: (n,) positions of the kept tokens in (K, length), increasing.
    """

    images: Tensor
    slots: Tensor


def chunks_of(keep: KeptTokens, length: int) -> Chunks:
    """Kept tokens in chunks of so many; the last one of an image may hold fewer."""
    device, numbers = keep.kept.device, _chunk_numbers(keep, length)
    counts = torch.tensor(numbers, device=device)
    images = torch.arange(len(numbers), device=device)
    begin = (counts.cumsum(0) - counts) * length
    return Chunks(torch.repeat_interleave(images, counts, output_size=sum(numbers)), keep.placed_from(begin))


def _chunk_length(queries: Tensor, keep: KeptTokens) -> int:
    """How many of an image's (n, h, d) queries to take at a time."""
    return NARROW_CHUNK if _is_narrow(queries) else max(LEAST_CHUNK, -(-keep.longest // CHUNKS))


def _chunk_numbers(keep: KeptTokens, length: int) -> list[int]:
    """How many chunks each image has."""
    return [-(-n // length) for n in keep.lengths]


def _cheapest(queries: Tensor, keys: Tensor, keep: KeptTokens) -> Literal["padded", "chunks", "images"]:
    """The way that wastes least, for packed queries (n, h, d) and keys (B, h, M, d)."""
    (n, h, d), (b, _, m, _) = queries.shape, keys.shape
    call = NARROW_CALL_MACS if _is_narrow(queries) else CALL_MACS.get(queries.device.type, CALL_MACS["cuda"])
    tables = call * (NARROW_TABLES if _is_narrow(queries) else CHUNK_CALLS)
    query = m * h * (2 * d + SOFTMAX_MACS)
    padded, images = query * (b * keep.longest - n), b * call
    if _is_narrow(queries):
        padded += NARROW_SLOTS * call
    if padded <= min(images, tables):
        return "padded"
    length = _chunk_length(queries, keep)
    total = sum(_chunk_numbers(keep, length))
    chunks = tables + query * (length * total - n) + 2 * COPY_MACS * m * h * d * total
    if chunks < min(padded, images):
        return "chunks"
    return "padded" if padded <= images else "images"


def _is_narrow(queries: Tensor) -> bool:
    """Whether (n, h, d) queries are of narrow heads, on a CPU."""
    return queries.is_cpu and queries.shape[2] <= NARROW_HEAD


def _is_single(queries: Tensor) -> bool:
    """Whether (n, h, d) queries have one narrow head, in eager inference on a CPU."""
    if not _is_narrow(queries) or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    return queries.shape[1] == 1 and not torch.compiler.is_compiling()


def narrow_attention(queries: Tensor, keys: Tensor, values: Tensor, lengths: list[int]) -> Tensor:
    """(n, 1, d) queries, so many of each image → (n, d), without padding and without autograd."""
    n, _, d = queries.shape
    scores, mixed = queries.new_empty(n, keys.shape[2]), queries.new_empty(n, d)
    asking = (queries.squeeze(1) * d**-0.5).split(lengths)
    for rows, found, own in zip(asking, scores.split(lengths), keys.squeeze(1).unbind(), strict=True):
        torch.mm(rows, own.t(), out=found)
    shares = scores.softmax(1).split(lengths)
    for rows, found, own in zip(shares, mixed.split(lengths), values.squeeze(1).unbind(), strict=True):
        torch.mm(rows, own, out=found)
    return mixed


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
    packed_keys, packed_values = (
        part.transpose(1, 2).reshape(b * m, *queries.shape[1:]) for part in (keys, values)
    )
    if isinstance(keep, KeptTokens) and not torch.is_grad_enabled() and is_plain_run(queries):
        # What `varlen_attn` calls, without the better part of its time on the host.
        starts = keep.shared("starts", lambda: _starts(keep) if keep.framed is None else keep.framed.starts)
        key_starts = keep.shared(("key starts", m), lambda: _key_starts(b, m, keys.device))
        found: Tensor = torch.ops.aten._flash_attention_forward(
            queries, packed_keys, packed_values, starts, key_starts, keep.longest, m, 0.0, False, False
        )[0]
        return found.flatten(1)
    starts, key_starts = _starts(keep), _key_starts(b, m, keys.device)
    mixed = varlen_attn(queries, packed_keys, packed_values, starts, key_starts, keep.tokens, m)
    assert isinstance(mixed, Tensor)  # a tuple only with return_aux
    return mixed.flatten(1)


def _starts(keep: KeptTokens | PackTables) -> Tensor:
    """(B + 1,) int32 packed queries of the images before each, and of all."""
    assert keep.counts is not None
    return F.pad(keep.counts.cumsum(0), (1, 0)).to(torch.int32)


def _key_starts(images: int, keys: int, device: torch.device) -> Tensor:
    """(B + 1,) int32 where the keys of each image begin, and how many there are."""
    return keys * torch.arange(images + 1, device=device, dtype=torch.int32)
