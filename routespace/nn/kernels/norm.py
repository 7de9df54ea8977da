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
from routespace.nn.kernels.patches import convolved_tokens
from routespace.nn.packing.maps import as_tokens
from routespace.nn.packing.triton_here import runs_triton

LEAST_ROWS = 4096  # fewer are a matter of launching a kernel
MOST_CHANNELS = 1024  # wider rows keep a block of threads busy


class LayerNorm(nn.LayerNorm):
    """torch's, by a kernel of our own for many narrow rows on CUDA; keys, results and gradients are the same."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        if not _is_for_triton(x) or not _is_usual(self):
            return super().forward(x)
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        normed: Tensor
        if torch.is_autocast_enabled("cuda"):  # in which torch's gives float32
            x, weight, bias = x.float(), weight.float(), bias.float()
        if weight.dtype != x.dtype or bias.dtype != x.dtype or x.shape[-1] != weight.shape[0]:
            return super().forward(x)
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        if _wants_grad(rows, weight, bias):
            _, normed = _Norm.apply(rows, None, weight, bias, self.eps, rows.dtype)
        else:
            from routespace.nn.kernels.norm_triton import normalize

            normed = normalize(rows, weight, bias, self.eps, statistics=False).normed
        return normed.view(x.shape)


def add_norm(norm: nn.LayerNorm, x: Tensor, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x + branch, and its LayerNorm for layers that autocast: on CUDA in one kernel, forwards and backwards.

    In autocast torch's norm gives float32, and each linear layer or convolution behind it rounds that. Here it is
    rounded at once; so only what rounds it anyway may read it.

    Args:
        norm: over the last dimension.
        x: (…, C).
        branch: (…, C), or None for nothing.

    Returns:
        (…, C) the sum (x where there is no branch), and (…, C) what is normed.
    """
    found = _add_norm(norm, x, branch)
    if found is not None:
        return found
    total = x if branch is None else x + branch
    return total, norm(total)


def _add_norm(norm: nn.LayerNorm, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """As `add_norm` by the kernel; None where it is not for it."""
    if not _is_for_triton(x) or not isinstance(norm, LayerNorm) or not _is_usual(norm) or not is_unheard(norm):
        return None
    half = torch.is_autocast_enabled("cuda")
    if not x.dtype == norm.weight.dtype == norm.bias.dtype or x.shape[-1] != norm.weight.shape[0]:
        return None
    if branch is not None and (branch.shape != x.shape or not (half or branch.dtype == x.dtype)):
        return None
    dtype = torch.get_autocast_dtype("cuda") if half else x.dtype
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    other = None if branch is None else branch.reshape(rows.shape).contiguous()
    total: Tensor
    normed: Tensor
    if _wants_grad(rows, norm.weight, norm.bias, rows if other is None else other):
        total, normed = _Norm.apply(rows, other, norm.weight, norm.bias, norm.eps, dtype)
    else:
        from routespace.nn.kernels.norm_triton import normalize

        normed, total, *_ = normalize(
            rows, norm.weight, norm.bias, norm.eps, statistics=False, branch=other, dtype=dtype
        )
    return total.view(x.shape), normed.view(x.shape)


def norm_then_add(norm: nn.LayerNorm, x: Tensor, branch: Tensor) -> Tensor:
    """x + the LayerNorm of a branch: in inference on CUDA in one kernel.

    Args:
        norm: over the last dimension.
        x, branch: (…, C).

    Returns:
        (…, C).
    """
    fits = _is_for_triton(branch) and isinstance(norm, LayerNorm) and _is_usual(norm) and is_unheard(norm)
    same = fits and x.shape == branch.shape and x.dtype == branch.dtype == norm.weight.dtype == norm.bias.dtype
    if not same or torch.is_grad_enabled() or torch.is_autocast_enabled("cuda"):
        normed: Tensor = norm(branch)
        return x + normed
    from routespace.nn.kernels.norm_triton import normalize

    rows, around = (part.reshape(-1, part.shape[-1]).contiguous() for part in (branch, x))
    return normalize(rows, norm.weight, norm.bias, norm.eps, statistics=False, after=around).normed.view(x.shape)


def _is_usual(norm: nn.LayerNorm) -> bool:
    """Whether it is over the last dimension alone, with weight and bias."""
    return len(norm.normalized_shape) == 1 and norm.elementwise_affine and norm.bias is not None


def _wants_grad(*parts: Tensor) -> bool:
    return torch.is_grad_enabled() and any(part.requires_grad for part in parts)


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
        normed: Tensor = norm(convolved_tokens(conv, maps))
        return normed
    from routespace.nn.kernels.norm_triton import normalize

    tokens = as_tokens(
        F.conv2d(maps, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    ).contiguous()
    rows = normalize(
        tokens.flatten(0, 1), norm.weight, norm.bias, norm.eps, statistics=False, added=conv.bias
    ).normed
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


class _Norm(Function):
    """rows + branch, and its norm; the backward pass adds what comes around the norm to what comes through it."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        branch: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        from routespace.nn.kernels.norm_triton import normalize

        normed, total, means, rstds = normalize(
            rows, weight, bias, eps, statistics=True, branch=branch, dtype=dtype
        )
        if branch is None:
            total = rows.view_as(rows)
        ctx.save_for_backward(rows if branch is None else total, weight, bias, means, rstds)
        ctx.also = None if branch is None or branch.dtype == rows.dtype else branch.dtype
        ctx.has_branch = branch is not None
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    def backward(ctx: Any, around: Tensor | None, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        rows, weight, bias, means, rstds = ctx.saved_tensors
        found = grad_weight = grad_bias = rounded = None
        if grad is None:
            found = around
        elif torch.is_grad_enabled():  # somebody will differentiate this, too
            found, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
                grad.to(rows.dtype).contiguous(), rows, [rows.shape[1]], means, rstds, weight, bias, [True] * 3
            )
            found = found if around is None else found + around
        else:
            from routespace.nn.kernels.norm_triton import normalize_back

            found, rounded, grad_weight, grad_bias = normalize_back(
                grad.contiguous(),
                rows,
                weight,
                means,
                rstds,
                around=None if around is None else around.contiguous(),
                also=ctx.also,
            )
            grad_weight, grad_bias = grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)
        if rounded is None and found is not None:
            rounded = found if ctx.also is None else found.to(ctx.also)
        return found, rounded if ctx.has_branch else None, grad_weight, grad_bias, None, None
