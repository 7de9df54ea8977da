"""What torch's compiler is told about a function, without loading it (one to two seconds); who else looks on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

Told = TypeVar("Told", bound=Callable[..., object])
CONSTANT = "_dynamo_marked_constant"  # what torch.compiler.assume_constant_result sets, after it has loaded it all


def assume_constant_result(function: Told) -> Told:
    """As `torch.compiler.assume_constant_result`: the compiler takes the function's result for a constant."""
    setattr(function, CONSTANT, True)
    return function


def is_jit_tracing() -> bool:
    """Whether torch.jit.trace runs."""
    return bool(torch.jit.is_tracing())  # type: ignore[no-untyped-call, attr-defined]  # torch's


def is_plain_run(x: torch.Tensor) -> bool:
    """Whether x is computed with here and now, and nobody looks on who knows operations by what they usually mean.

    Compilers, exporters, tracers and counters do: to them a mean by matrix products is no mean. Fake tensors are
    computed with nowhere, and what is made of them must not be kept.
    """
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or is_jit_tracing():
        return False
    return type(x) is torch.Tensor and _get_current_dispatch_mode() is None
