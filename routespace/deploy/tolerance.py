"""How far the outputs of two networks that should be the same may be apart, by element type.

Differences are told in units of the greatest output where that is above 1. Sums in another order differ by a few
roundings of the type (`VERIFIED`); other kernels, and the same weights in another type, by some more
(`CONVERTED`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from routespace.errors import SpecError

VERIFIED: Mapping[torch.dtype, float] = {
    torch.float64: 1e-12,
    torch.float32: 1e-6,
    torch.float16: 8e-3,
    torch.bfloat16: 6e-2,
}
CONVERTED: Mapping[torch.dtype, float] = {
    torch.float64: 1e-7,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 8e-2,
}


def coarsest_type(*nets: nn.Module) -> torch.dtype:
    """The least exact element type of some networks' weights.

    Raises:
        SpecError: weights of a type that networks cannot be compared in.
    """
    types = {parameter.dtype for net in nets for parameter in net.parameters()}
    for dtype in types:
        if dtype not in VERIFIED:
            raise SpecError(f"net: weights of {type_name(dtype)} are not compared; give one of {_names(VERIFIED)}")
    return max(types, key=lambda dtype: VERIFIED[dtype])


def tolerance_for(dtype: torch.dtype, allowed: Mapping[torch.dtype, float], given: float | None) -> float:
    """The tolerance that was given, or else the one of a type.

    Raises:
        SpecError: the given one is no number of 0 or more.
    """
    if given is None:
        return allowed[dtype]
    if not (math.isfinite(given) and given >= 0):
        raise SpecError(
            f"tolerance: {given!r} is not allowed; give a number, 0 or more, or none for the type's own"
        )
    return given


def difference(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> float:
    """Greatest absolute difference over all outputs, over the greatest value of each where that is above 1.

    It is infinite where a number of either is not finite and the other's is not the same.
    """
    worst = 0.0
    for name, tensor in expected.items():
        one, other = tensor.double().cpu(), given[name].double().cpu()
        scale = max(1.0, float(one.abs().max())) if one.numel() else 1.0
        gap = float((one - other).abs().max()) / scale if one.numel() else 0.0
        worst = max(worst, gap) if gap == gap else math.inf
    return worst


def type_name(dtype: torch.dtype) -> str:
    """`float32` of `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def _names(types: Iterable[torch.dtype]) -> str:
    return ", ".join(type_name(dtype) for dtype in types)
