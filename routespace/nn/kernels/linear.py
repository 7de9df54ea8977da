"""Linear layers, by the library that is fast on this processor.

torch multiplies fp32 matrices with MKL, which keeps to AVX2 where a processor is not Intel's. oneDNN, which torch
brings too, uses AVX-512 there and takes less than half the time (one Zen 5 core: 121 against 55 GMACs a second).
Large products on such a processor go to it, forwards and backwards (`onednn.py`). So do, on Intel's, in inference
layers that make more channels of few (`FEW_CHANNELS`); everything else is torch's own.

    with products("torch"): ...          # for comparisons: `auto` (the default), `torch`, `onednn`

Shape legend: … any dimensions · M their product, rows · K channels in · N channels out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routespace.errors import SpecError
from routespace.nn.packing.compiler import assume_constant_result, is_jit_tracing, is_plain_run
from routespace.nn.packing.rows import zero_behind

# The private names of torch that are used here and in `onednn.py` may change with any version of it.
RENAMED = (ImportError, AttributeError, RuntimeError)
try:
    from routespace.nn.kernels import onednn
except RENAMED:
    onednn = None  # type: ignore[assignment]  # a module, or none
try:
    from torch.nn.modules.module import _has_any_global_hook as somebody_listens
except ImportError:  # then somebody may

    def somebody_listens() -> bool:  # type: ignore[misc]  # in place of torch's
        return True


Products = Literal["auto", "torch", "onednn"]
# Multiply-adds from which on a product goes to oneDNN. It prepares a kernel (0.2 to 0.7 ms) for each new number of
# rows: that of a map (…, N, K) is seldom new, that of packed rows (n, K) mostly is.
LEAST_MAP_MACS = 1 << 22
LEAST_ROW_MACS = 1 << 24
LEAST_WEIGHTS = 1 << 12  # narrower layers gain nothing
# Of so few channels a layer takes a quarter of its time for its bias, which torch first writes into all of the
# result and oneDNN adds on the way: where they become more, an Intel Xeon gains, too (64 to 512 of 3136 tokens:
# 2.3 ms instead of 3.1; 320 to 1280 of 1568: 11.0 instead of 10.2).
FEW_CHANNELS = 128
_chosen: Products = "auto"


@contextmanager
def products(by: Products) -> Iterator[None]:
    """Who multiplies matrices while the block runs, in all threads (as torch's own switches of libraries).

    Args:
        by: `torch`; `onednn` for large products on a CPU; or `auto`, oneDNN where it is faster on this processor.

    Raises:
        SpecError: another name, or oneDNN where this torch does not offer it.
    """
    global _chosen
    if by not in get_args(Products):
        raise SpecError(f"products: {by!r:.40} is not known; give one of {', '.join(get_args(Products))}")
    if by == "onednn" and not _onednn_works():
        raise SpecError(f"products: torch {torch.__version__} offers no oneDNN here; give auto or torch")
    before, _chosen = _chosen, by
    try:
        yield
    finally:
        _chosen = before


def onednn_is_used() -> bool:
    """Whether large products go to oneDNN now."""
    if _chosen == "auto":
        faster: bool = _onednn_is_faster()
        return faster
    return _chosen == "onednn"


@assume_constant_result
def _onednn_is_faster() -> bool:
    return _onednn_works() and _processor_gains()


@cache
def _processor_gains() -> bool:
    return onednn.is_faster()


@cache
def _onednn_works() -> bool:
    try:
        return onednn is not None and onednn.works()
    except RENAMED:
        return False


@cache
def _onednn_convolves() -> bool:
    try:
        return _onednn_works() and onednn.convolves_with_gelu()
    except RENAMED:
        return False


def apply_linear(layer: nn.Module, x: Tensor, *, onto: Tensor | None = None, bias_apart: bool = True) -> Tensor:
    """(…, K) → (…, N): `layer(x)`, by oneDNN where that is faster and the layer's weights say all that it does.

    Args:
        layer: an `nn.Linear`, or what stands in its place.
        x: its input.
        onto: (…, N) what its result is added to, in eager inference on a CPU by the product itself.
        bias_apart: a compiled step may add the bias in a loop of its own; see `adds_bias_apart`.
    """
    if onto is not None:
        return _apply_onto(layer, x, onto)
    if x.is_cpu and is_untouched(layer):
        assert isinstance(layer, nn.Linear)
        if _goes_to_onednn(x, layer.weight, layer.bias, _least_macs(x)):
            return linear(x, layer.weight, layer.bias)
        if bias_apart and layer.bias is not None and adds_bias_apart(x):
            return F.linear(x, layer.weight) - (-layer.bias)
    found: Tensor = layer(x)
    return found


def _apply_onto(layer: nn.Module, x: Tensor, onto: Tensor) -> Tensor:
    if torch.is_grad_enabled() or not is_untouched(layer) or layer.bias is None or not x.is_cpu:
        return onto + apply_linear(layer, x)
    assert isinstance(layer, nn.Linear)
    if not (_is_plain(onto) and _is_plain(layer.weight)):
        return onto + apply_linear(layer, x)
    return add_product(onto + layer.bias, x, layer.weight)


def add_product(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """total + x·weightᵀ, written into `total`, without autograd.

    Args:
        total: (…, N), contiguous.
        x: (…, K).
        weight: (N, K).
    """
    # Who counts products knows those that stand for themselves; oneDNN adds nothing to what is there.
    if not is_plain_run(x) or torch.is_autocast_enabled("cpu") or _goes_to_onednn(x, weight, None, _least_macs(x)):
        return total.add_(linear(x, weight))
    total.view(-1, total.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), weight.t())
    return total


def onednn_convolves(maps: Tensor, *weights: Tensor) -> bool:
    """Whether oneDNN may go on from a convolution of maps to GELU: without autograd, and where nobody looks on."""
    if not (maps.is_cpu and maps.numel() and is_plain_run(maps) and all(map(_is_plain, (maps, *weights)))):
        return False
    if torch.is_autocast_enabled("cpu") or not convolutions_go_on():
        return False
    return not onednn.transforms_are_active()


@assume_constant_result
def convolutions_go_on() -> bool:
    """Whether oneDNN's convolution goes on to GELU on this processor, by which whole maps are cheap."""
    return bool(torch.backends.mkldnn.enabled) and _onednn_convolves()


def adds_bias_apart(x: Tensor) -> bool:
    """Whether a compiled step leaves the bias out of a product, for the loop behind it to add.

    Of a product with a bias, torch on a CPU first writes the bias into all of the result: a quarter of the time
    of a layer of 64 or 128 channels, a tenth of wider ones. (What is added is the bias's negative, subtracted,
    because torch's compiler would join a sum again.)
    """
    if x.device.type != "cpu" or not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    return not (torch.is_autocast_enabled("cpu") or onednn_is_used())


def is_untouched(layer: nn.Module) -> bool:
    """Whether nobody has replaced a layer or its `forward`, or listens to it."""
    return type(layer) in (nn.Linear, nn.Conv2d) and is_unheard(layer)


def is_unheard(layer: nn.Module) -> bool:
    """Whether nobody has replaced a layer's `forward`, or listens to it."""
    if "forward" in layer.__dict__:
        return False
    try:
        if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
            return False
    except AttributeError:
        return False
    return torch.compiler.is_compiling() or not somebody_listens()


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
    rows = onednn.product(x.reshape(-1, x.shape[-1]), weight, bias, least_macs)
    return rows.view(*x.shape[:-1], weight.shape[0])


def padded_linear(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(M, K) → (M + 1, N): rows·weightᵀ + bias, and a row of zeros behind them without a copy of the others."""
    if _goes_to_onednn(rows, weight, bias, LEAST_ROW_MACS):
        return onednn.product(zero_behind(rows), weight, bias, LEAST_ROW_MACS, zero_last=True)
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
    return onednn.transposed_product(grad, rows, LEAST_ROW_MACS)


def _least_macs(x: Tensor) -> int:
    return LEAST_ROW_MACS if x.dim() == 2 else LEAST_MAP_MACS


def _goes_to_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, least_macs: int) -> bool:
    """Whether x (…, K) and weight (N, K), or the gradient's (N, M), make a product for oneDNN."""
    if (
        not (onednn_is_used() or _is_mostly_bias(x, weight, bias))
        or x.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
    ):
        return False
    compiling = torch.compiler.is_compiling()
    # An export shall hold operators that everybody knows. (torch 2.11 calls each compilation one.)
    if compiling and torch.compiler.is_exporting():
        return False
    if not compiling and (is_jit_tracing() or onednn.transforms_are_active()):
        return False
    narrow = x.shape[-1] * weight.shape[0] < LEAST_WEIGHTS
    if narrow or not (_is_plain(x) and _is_plain(weight) and (bias is None or _is_plain(bias))):
        return False
    return compiling or x.numel() * weight.shape[0] >= least_macs  # compiled, the call itself looks at the size


def _is_mostly_bias(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a map (B, N, K) with few channels becomes one of more, with a bias, in eager inference."""
    if bias is None or x.dim() < 3 or not x.shape[-1] <= min(FEW_CHANNELS, weight.shape[0] - 1):
        return False
    if _chosen != "auto" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return _onednn_works() and onednn.has_avx512()


def _is_plain(x: Tensor) -> bool:
    """Quantised, distributed and other tensors of a class of their own know how they are multiplied."""
    return type(x) in (Tensor, nn.Parameter) and x.dtype == torch.float32
