"""LayerNorm that is fast on CUDA where rows are narrow; a `torch.nn.LayerNorm` in everything else.

Shape legend: … any dimensions · T their product, rows · C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

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
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, means, rstds = ctx.saved_tensors
        found: tuple[Tensor | None, ...] = torch.ops.aten.native_layer_norm_backward(
            grad.contiguous(), rows, [rows.shape[1]], means, rstds, weight, bias, list(ctx.needs_input_grad[:3])
        )
        return *found, None
