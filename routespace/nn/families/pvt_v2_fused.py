"""The packed PVTv2 block in eager inference on CUDA: what stands around its products takes four kernels.

Of a batch of small maps the time goes into launching kernels, of large ones into moving rows. Here the norm of
the map packs its kept tokens in the same pass; what a branch adds goes into the map in place, with the next norm;
and the convolution finds neighbours in a framed map.

Shape legend: B images · N tokens · n kept tokens of the batch · C channels.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from routespace.nn.kernels.linear import apply_linear, is_unheard
from routespace.nn.kernels.norm import MOST_CHANNELS, LayerNorm
from routespace.nn.packing.compiler import is_plain_run
from routespace.nn.packing.keep import KeptTokens
from routespace.nn.packing.triton_here import runs_triton


class _Attention(Protocol):
    def packed(self, rows: Tensor, seen: Tensor, hw: tuple[int, int], keep: KeptTokens) -> Tensor: ...


class _Mlp(Protocol):
    fc1: nn.Linear
    dwconv: nn.Conv2d
    fc2: nn.Linear

    @property
    def is_plain(self) -> bool: ...


class Layers(Protocol):
    """What a PvtBlock has (its own file imports this one)."""

    @property
    def norm1(self) -> LayerNorm: ...

    @property
    def norm2(self) -> LayerNorm: ...

    @property
    def attn(self) -> _Attention: ...

    @property
    def mlp(self) -> _Mlp: ...


def may_fuse(block: Layers, x: Tensor, keep: KeptTokens) -> bool:
    """Whether a block's layers are as they were made, and (B, N, C) x is on CUDA, of their type, in inference."""
    if torch.is_grad_enabled() or not runs_triton(x) or not is_plain_run(x):
        return False
    if torch.is_autocast_enabled(x.device.type) or not x.is_contiguous() or x.shape[2] > MOST_CHANNELS:
        return False
    mlp = block.mlp
    if not (_is_plain(block.norm1, x) and _is_plain(block.norm2, x) and mlp.is_plain):
        return False
    if mlp.dwconv.weight.dtype != x.dtype or mlp.fc1.weight.dtype != x.dtype:
        return False
    return keep.framed is not None and keep.framed.rows.shape[0] > 0


def run_fused(block: Layers, x: Tensor, hw: tuple[int, int], keep: KeptTokens) -> Tensor:
    """(B, N, C) → x itself, in which the kept tokens have their new values; `may_fuse` allows it."""
    from routespace.nn.kernels.packed_triton import framed_gelu
    from routespace.nn.kernels.rows_triton import enter, join

    tables, flat, mlp = keep.framed, x.view(-1, x.shape[2]), block.mlp
    conv = mlp.dwconv
    assert tables is not None
    assert conv.bias is not None
    visible = None if keep.sees_kept else keep.visible
    seen, asking = enter(
        flat,
        _weights(block.norm1),
        tables.order,
        tables.rows.shape[0],
        sees_kept=keep.sees_kept,
        visible=None if visible is None else visible.contiguous().view(-1),
    )
    branch = block.attn.packed(asking, seen.view_as(x), hw, keep)
    hidden = apply_linear(mlp.fc1, join(flat, tables.rows, branch, _weights(block.norm2)))
    activated = framed_gelu(
        hidden,
        conv.weight.contiguous(),
        conv.bias,
        tables.framed,
        tables.cells,
        tokens=keep.kept.numel(),
    )
    join(flat, tables.rows, apply_linear(mlp.fc2, activated))
    return x


def _is_plain(norm: nn.LayerNorm, x: Tensor) -> bool:
    if type(norm) is not LayerNorm or not is_unheard(norm):
        return False
    weight, bias, _ = _weights(norm)
    return weight is not None and bias is not None and weight.dtype == x.dtype == bias.dtype


def _weights(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return norm.weight, norm.bias, norm.eps
