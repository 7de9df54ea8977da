"""What torch's compiler is told about a function, without loading it (one to two seconds); whether jit traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Told = TypeVar("Told", bound=Callable[..., object])
CONSTANT = "_dynamo_marked_constant"  # what torch.compiler.assume_constant_result sets, after it has loaded it all


def assume_constant_result(function: Told) -> Told:
    """As `torch.compiler.assume_constant_result`: the compiler takes the function's result for a constant."""
    setattr(function, CONSTANT, True)
    return function


def is_jit_tracing() -> bool:
    """Whether torch.jit.trace runs."""
    return bool(torch.jit.is_tracing())  # type: ignore[no-untyped-call, attr-defined]  # torch's
