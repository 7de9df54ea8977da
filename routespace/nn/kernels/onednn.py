"""oneDNN's matrix products as an operator of ours, so that a compiled step can hold it: torch's compiler takes
oneDNN's own for constant weights alone.

Nothing else needs this file: `linear.py` does without it where it cannot be imported, because torch has renamed
what it is made of or because somebody has dropped it.

Shape legend: M rows · K channels in · N channels out.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from routespace.nn.packing.rows import zero_behind

SCHEMA = "(Tensor rows, Tensor weight, Tensor? bias, bool zero_last, int least_macs) -> Tensor"
THEIR_ARGUMENTS = 6  # of oneDNN's own operator; with another number it is another operator
CONV_ARGUMENTS = 10


def works() -> bool:
    """Whether torch brings oneDNN; raises AttributeError where it has renamed what is used of it here.

    Nothing is computed: this may be asked inside a trace.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    transforms_are_active()
    return len(torch.ops.mkldnn._linear_pointwise.default._schema.arguments) == THEIR_ARGUMENTS


def is_faster() -> bool:
    """Whether torch multiplies by MKL, and this processor has AVX-512 that MKL leaves unused."""
    has_mkl = torch.backends.mkl.is_available()
    if not has_mkl or not has_avx512():
        return False
    described = Path("/proc/cpuinfo")  # Linux; on Windows the vendor is a part of the processor's name
    processor = described.read_text(errors="replace") if described.exists() else platform.processor()
    return "AuthenticAMD" in processor


def has_avx512() -> bool:
    """Whether torch uses AVX-512 here."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def convolves_with_gelu() -> bool:
    """Whether oneDNN's convolution goes on to GELU, fast: measured with AVX-512 alone.

    Raises AttributeError where torch has renamed it.
    """
    return (
        has_avx512() and len(torch.ops.mkldnn._convolution_pointwise.default._schema.arguments) == CONV_ARGUMENTS
    )


def transforms_are_active() -> bool:
    """Whether torch.func or forward-mode differentiation runs, whose rules the operator does not have."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


torch.library.define("routespace::linear", SCHEMA)


def product(
    rows: Tensor, weight: Tensor, bias: Tensor | None, least_macs: int, *, zero_last: bool = False
) -> Tensor:
    """rows·weightᵀ + bias, by oneDNN where it is of so many multiply-adds: compiled, the call itself looks.

    Args:
        rows: (M, K) float32 on a CPU.
        weight: (N, K).
        bias: (N,), or None.
        least_macs: smaller products are torch's own.
        zero_last: the last row is zeros.

    Returns:
        (M, N).
    """
    found: Tensor = torch.ops.routespace.linear(rows, weight, bias, zero_last, least_macs)
    return found


def transposed_product(grad: Tensor, rows: Tensor, least_macs: int) -> Tensor:
    """gradᵀ·rows, (M, N) and (M, K) → (N, K), the longer side last: a short one is not shared between threads."""
    if grad.shape[1] <= rows.shape[1]:
        return product(grad.t(), rows.t(), None, least_macs)
    return product(rows.t(), grad.t(), None, least_macs).t()


@torch.library.impl("routespace::linear", "CPU")
def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None, zero_last: bool, least_macs: int) -> Tensor:
    if rows.numel() * weight.shape[0] >= least_macs and torch.backends.mkldnn.enabled:
        # A part of a weight, with gaps between its rows, would take oneDNN a thousand times as long; strides of a
        # bias it does not see.
        whole = weight if weight.is_contiguous() or weight.t().is_contiguous() else weight.contiguous()
        offset = None if bias is None else bias.contiguous()
        found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, whole, offset, "none", [], "")
    else:
        found = F.linear(rows, weight, bias)
    if zero_last:
        found[-1].zero_()
    return found


@torch.library.register_fake("routespace::linear")
def _linear_shape(rows: Tensor, weight: Tensor, bias: Any, zero_last: bool, least_macs: int) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, weight, bias, ctx.zero_last, ctx.least_macs = inputs
    ctx.save_for_backward(rows, weight)
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, weight = ctx.saved_tensors
    if ctx.zero_last:
        rows, grad = rows[:-1], grad[:-1]
    into_rows, into_weight, into_bias, *_ = ctx.needs_input_grad
    grad_rows = product(grad, weight.t(), None, ctx.least_macs) if into_rows else None
    if ctx.zero_last and grad_rows is not None:
        grad_rows = zero_behind(grad_rows)
    grad_weight = transposed_product(grad, rows, ctx.least_macs) if into_weight else None
    grad_bias = grad.sum(0) if ctx.has_bias and into_bias else None
    return grad_rows, grad_weight, grad_bias, None, None


torch.library.register_autograd("routespace::linear", _backward, setup_context=_save)


@register_flop_formula(torch.ops.routespace.linear)
def _linear_flops(rows: Any, weight: Any, bias: Any, zero_last: bool, *_: object, **__: object) -> int:
    """Shapes (M, K) and (N, K) → operations, two a multiply-add as torch counts its own."""
    return int(2 * (rows[0] - zero_last) * rows[1] * weight[0])
