"""Whether a Triton kernel may run on a tensor now."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from routespace.nn.packing.compiler import is_jit_tracing

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.bool)
DEVICES = ("cuda",)
HAS_TRITON = importlib.util.find_spec("triton") is not None  # torch brings it on Linux with CUDA


def runs_triton(x: Tensor) -> bool:
    """Whether x is a plain CUDA tensor of a fitting type, outside of traces and torch.func.

    An export on a GPU is for the caller to ask about: torch 2.11 calls each compilation one.
    """
    if x.device.type not in DEVICES or x.dtype not in DTYPES or not HAS_TRITON:
        return False
    if torch.compiler.is_compiling():  # x is a stand-in
        return True
    if type(x) not in (Tensor, nn.Parameter) or is_jit_tracing():
        return False
    try:
        return not (torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0)
    except AttributeError:  # private names of torch
        return False
