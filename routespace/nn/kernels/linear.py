"""Linear layers, by the library that is fast on this processor.

torch multiplies fp32 matrices with MKL, which keeps to AVX2 where a processor is not Intel's. oneDNN, which torch
brings too, uses AVX-512 there and takes less than half the time (one Zen 5 core: 121 against 55 GMACs a second).
Large products on such a processor go to it, forwards and backwards; everything else is torch's own.

Shape legend: … any dimensions · M their product, rows · K channels in · N channels out.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.flop_counter import register_flop_formula

from routespace.nn.packing.rows import zero_behind


def _onednn_is_faster() -> bool:
    """Whether torch has oneDNN and MKL, and this processor AVX-512 that MKL leaves unused."""
    if not (torch._C._has_mkldnn and torch.backends.mkl.is_available()):  # type: ignore[no-untyped-call, unused-ignore]
        return False
    described = Path("/proc/cpuinfo")  # Linux; on Windows the vendor is a part of the processor's name
    processor = described.read_text(errors="replace") if described.exists() else platform.processor()
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in processor


ONEDNN_IS_FASTER = _onednn_is_faster()  # a constant: compiled steps are traced through here
# Multiply-adds from which on a product goes to oneDNN. It prepares a kernel (.2 to .7 ms) for each new number of
# rows: that of a map (…, N, K) is seldom new, that of packed rows (n, K) mostly is.
LEAST_MAP_MACS = 1 << 22
LEAST_ROW_MACS = 1 << 24
LEAST_WEIGHTS = 1 << 12  # narrower layers gain nothing


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """(…, K) → (…, N): `layer(x)`, by oneDNN where that is faster and the layer's weights say all that it does."""
    if is_untouched(layer):
        assert isinstance(layer, nn.Linear)
        if _goes_to_onednn(x, layer.weight, layer.bias, _least_macs(x)):
            return linear(x, layer.weight, layer.bias)
    found: Tensor = layer(x)
    return found


def is_untouched(layer: nn.Module) -> bool:
    """Whether nobody has replaced a layer or its `forward`, or listens to it."""
    if type(layer) not in (nn.Linear, nn.Conv2d) or "forward" in layer.__dict__:
        return False
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    if any(len(found) for found in hooks):
        return False
    return torch.compiler.is_compiling() or not _has_any_global_hook()  # type: ignore[no-untyped-call]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·weightᵀ + bias.

    Args:
        x: (…, K).
        weight: (N, K).
        bias: (N,), or None.

    Returns:
        (…, N).
    """
    least_macs = _least_macs(x)
    if not _goes_to_onednn(x, weight, bias, least_macs):
        return F.linear(x, weight, bias)
    rows = _product(x.reshape(-1, x.shape[-1]), weight, bias, least_macs)
    return rows.view(*x.shape[:-1], weight.shape[0])


def padded_linear(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(M, K) → (M + 1, N): rows·weightᵀ + bias, and a row of zeros behind them without a copy of the others."""
    if _goes_to_onednn(rows, weight, bias, LEAST_ROW_MACS):
        return _product(zero_behind(rows), weight, bias, LEAST_ROW_MACS, zero_last=True)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return zero_behind(F.linear(rows, weight, bias))
    padded = rows.new_empty(rows.shape[0] + 1, weight.shape[0])
    torch.addmm(bias, rows, weight.t(), out=padded[:-1])
    padded[-1].zero_()
    return padded


def weight_grad(grad: Tensor, rows: Tensor) -> Tensor:
    """gradᵀ·rows: (M, N) and (M, K) → (N, K), the gradient of the weight of a layer of packed rows."""
    if not _goes_to_onednn(rows, grad.t(), None, LEAST_ROW_MACS):
        return grad.t() @ rows
    return _transposed_product(grad, rows, LEAST_ROW_MACS)


def _transposed_product(grad: Tensor, rows: Tensor, least_macs: int) -> Tensor:
    """gradᵀ·rows, the longer side last: a short one is not shared between threads."""
    if grad.shape[1] <= rows.shape[1]:
        return _product(grad.t(), rows.t(), None, least_macs)
    return _product(rows.t(), grad.t(), None, least_macs).t()


def _least_macs(x: Tensor) -> int:
    return LEAST_ROW_MACS if x.dim() == 2 else LEAST_MAP_MACS


def _goes_to_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, least_macs: int) -> bool:
    """Whether x (…, K) and weight (N, K), or the gradient's (N, M), make a product for oneDNN."""
    if not ONEDNN_IS_FASTER or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    compiling = torch.compiler.is_compiling()
    # An export shall hold operators that everybody knows. (torch 2.11 calls each compilation one.)
    if compiling and torch.compiler.is_exporting():
        return False
    if not compiling and (torch.jit.is_tracing() or _transforms_are_active()):  # type: ignore[no-untyped-call, attr-defined]
        return False
    narrow = x.shape[-1] * weight.shape[0] < LEAST_WEIGHTS
    if narrow or not (_is_plain(x) and _is_plain(weight) and (bias is None or _is_plain(bias))):
        return False
    return compiling or x.numel() * weight.shape[0] >= least_macs  # compiled, the call itself looks at the size


def _is_plain(x: Tensor) -> bool:
    """Quantised, distributed and other tensors of a class of their own know how they are multiplied."""
    return type(x) in (Tensor, nn.Parameter) and x.dtype == torch.float32


def _transforms_are_active() -> bool:
    """Whether torch.func or forward-mode differentiation runs, whose rules the operator below does not have."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


# An operator of its own, so that a compiled step can hold it: torch's compiler takes oneDNN's for constant weights
# alone.
torch.library.define(
    "routespace::linear", "(Tensor rows, Tensor weight, Tensor? bias, bool zero_last, int least_macs) -> Tensor"
)


def _product(
    rows: Tensor, weight: Tensor, bias: Tensor | None, least_macs: int, *, zero_last: bool = False
) -> Tensor:
    """(M, K) → (M, N); with `zero_last` the last row is zeros. Compiled, the size is looked at in the call."""
    found: Tensor = torch.ops.routespace.linear(rows, weight, bias, zero_last, least_macs)
    return found


@torch.library.impl("routespace::linear", "CPU")
def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None, zero_last: bool, least_macs: int) -> Tensor:
    if rows.numel() * weight.shape[0] >= least_macs and torch._C._get_mkldnn_enabled():
        # A part of a weight, with gaps between its rows, would take oneDNN a thousand times as long; strides of a
        # bias it does not see.
        whole = weight if weight.is_contiguous() or weight.t().is_contiguous() else weight.contiguous()
        offset = None if bias is None else bias.contiguous()
        found = torch.ops.mkldnn._linear_pointwise(rows, whole, offset, "none", [], "")
    else:
        found = F.linear(rows, weight, bias)
    if zero_last:
        found[-1].zero_()
    return found


@torch.library.register_fake("routespace::linear")  # type: ignore[untyped-decorator, unused-ignore]
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
    grad_rows = _product(grad, weight.t(), None, ctx.least_macs) if into_rows else None
    if ctx.zero_last and grad_rows is not None:
        grad_rows = zero_behind(grad_rows)
    grad_weight = _transposed_product(grad, rows, ctx.least_macs) if into_weight else None
    grad_bias = grad.sum(0) if ctx.has_bias and into_bias else None
    return grad_rows, grad_weight, grad_bias, None, None


torch.library.register_autograd("routespace::linear", _backward, setup_context=_save)


@register_flop_formula(torch.ops.routespace.linear)  # type: ignore[untyped-decorator, unused-ignore]
def _linear_flops(rows: Any, weight: Any, bias: Any, zero_last: bool, *_: object, **__: object) -> int:
    """Shapes (M, K) and (N, K) → operations, two a multiply-add as torch counts its own."""
    return int(2 * (rows[0] - zero_last) * rows[1] * weight[0])
