"""Launching Triton kernels on CUDA in a third of the time that Triton's own call takes on the host.

Triton looks at every argument of every call to find the variant of a kernel that is compiled for it, which takes
longer than many kernels run. Here a variant is found by few properties, no fewer than Triton tells variants apart
by, and launched as Triton launches it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from triton.compiler import CompiledKernel

ALIGNMENT = 16  # which Triton compiles a variant for, of addresses in bytes and of numbers
_variants: dict[tuple[object, ...], CompiledKernel] = {}


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    args: tuple[Tensor | int | float, ...],
    constants: Mapping[str, int | bool],
    **options: int,
) -> None:
    """`kernel[grid](*args, **constants, **options)`, sooner.

    Args:
        kernel: a `triton.jit` function.
        grid: one to three numbers of programs.
        args: what it takes, tensors on the current device first; whole numbers are below 2³¹.
        constants: its `tl.constexpr` parameters, which come last, in order.
        options: `num_warps`, `maxnreg`.
    """
    first = args[0]
    assert isinstance(first, Tensor)
    device = torch.cuda.current_device() if first.is_cuda else None
    # All that a variant may depend on.
    variant = (
        id(kernel),
        device,
        *constants.values(),
        *options.items(),
        *[
            (arg.dtype, arg.data_ptr() % ALIGNMENT == 0)
            if isinstance(arg, Tensor)
            else isinstance(arg, float) or (arg == 1, arg % ALIGNMENT == 0)
            for arg in args
        ],
    )
    made = _variants.get(variant)
    if made is not None:
        made[(*grid, 1, 1)](*args, *constants.values())
        return
    made = kernel[grid](*args, **constants, **options)
    if isinstance(made, CompiledKernel):  # the interpreter makes none
        _variants[variant] = made


def parts(whole: int, each: int) -> int:
    """How many parts of so many make up the whole (`triton.cdiv` takes ten times as long)."""
    return -(-whole // each)


def power_of_two(least: int) -> int:
    """The least power of two that is no less than a number from 1 on."""
    return 1 << (least - 1).bit_length()
