"""LayerNorm that is fast on CUDA where rows are narrow; a `torch.nn.LayerNorm` in everything else.

Shape legend: … any dimensions · T their product, rows · C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from routespace.nn.kernels.linear import is_unheard, is_untouched
from routespace.nn.packing.maps import as_tokens
from routespace.nn.packing.triton_here import runs_triton

LEAST_ROWS = 4096  # fewer are a matter of launching a kernel
MOST_CHANNELS = 1024  # wider rows keep a block of threads busy


class LayerNorm(nn.LayerNorm):
    """torch's, by a kernel of our own for many narrow rows on CUDA; keys, results and gradients are the same."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        if not _is_for_triton(x) or len(self.normalized_shape) != 1 or not self.elementwise_affine:
            return super().forward(x)
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if bias is None:
            return super().forward(x)
        if torch.is_autocast_enabled("cuda"):  # in which torch's gives float32
            x, weight, bias = x.float(), weight.float(), bias.float()
        if weight.dtype != x.dtype or bias.dtype != x.dtype or x.shape[-1] != weight.shape[0]:
            return super().forward(x)
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        normed: Tensor
        if torch.is_grad_enabled() and any(part.requires_grad for part in (rows, weight, bias)):
            normed = _LayerNorm.apply(rows, weight, bias, self.eps)
        else:
            from routespace.nn.kernels.norm_triton import normalize

            normed, _, _ = normalize(rows, weight, bias, self.eps, statistics=False)
        return normed.view(x.shape)


def norm_of_map(norm: nn.LayerNorm, conv: nn.Conv2d, maps: Tensor) -> Tensor:
    """LayerNorm of a convolution's tokens; in inference on CUDA the norm's kernel adds the bias.

    Args:
        norm: over the convolution's channels.
        conv: the convolution.
        maps: (B, C, H, W).

    Returns:
        (B, N', C').
    """
    fits = isinstance(norm, LayerNorm) and norm.elementwise_affine and norm.bias is not None
    if not fits or not _can_add(norm, conv, maps) or conv.bias is None:
        normed: Tensor = norm(as_tokens(conv(maps)))
        return normed
    from routespace.nn.kernels.norm_triton import normalize

    tokens = as_tokens(
        F.conv2d(maps, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    ).contiguous()
    rows, _, _ = normalize(
        tokens.flatten(0, 1), norm.weight, norm.bias, norm.eps, statistics=False, added=conv.bias
    )
    return rows.view(tokens.shape)


def _can_add(norm: nn.LayerNorm, conv: nn.Conv2d, maps: Tensor) -> bool:
    """Whether nothing but a convolution's bias stands between it and a norm, in inference on CUDA."""
    if not maps.is_cuda or torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    if torch.is_autocast_enabled("cuda") or not runs_triton(maps) or not is_untouched(conv):
        return False
    same = maps.dtype == conv.weight.dtype == norm.weight.dtype and maps.shape[0] > 0
    return same and conv.padding_mode == "zeros" and is_unheard(norm) and conv.out_channels <= MOST_CHANNELS


def _is_for_triton(x: Tensor) -> bool:
    if not x.is_cuda or x.dim() < 2 or torch.compiler.is_compiling():  # a compiler does it well
        return False
    narrow = x.shape[-1] <= MOST_CHANNELS and x.numel() >= LEAST_ROWS * x.shape[-1] > 0
    return narrow and runs_triton(x)


class _LayerNorm(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        from routespace.nn.kernels.norm_triton import normalize

        normed, means, rstds = normalize(rows, weight, bias, eps, statistics=True)
        ctx.save_for_backward(rows, weight, bias, means, rstds)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, means, rstds = ctx.saved_tensors
        found: tuple[Tensor | None, ...] = torch.ops.aten.native_layer_norm_backward(
            grad.contiguous(), rows, [rows.shape[1]], means, rstds, weight, bias, list(ctx.needs_input_grad[:3])
        )
        return *found, None
