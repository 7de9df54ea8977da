"""The compiled block path: one compiled function for all blocks of a width, every mask and every keep ratio.

A step is a plain function of a block and tensors. torch.compile sees the block's weights as inputs, so blocks
of equal shape share one graph, and dynamic shapes make one graph serve every number of kept tokens and images.
Compiling blocks, not networks, starts faster and never recompiles for another path through a supernet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from routespace.nn.families.base import Block
from routespace.nn.kernels.depthwise import tell_compiler

# One graph per width and map size, and again for: gradients or not, one image (a batch of 1 is a shape of its
# own), keys of all or of some tokens, stochastic depth, element type. Past the limit torch would run the step
# uncompiled. It holds for our steps alone: what a program compiles beside them keeps its own.
RECOMPILE_LIMIT = 128
# Index tables are made here and are right; checking each of nine gathers costs more than the gather. A product and
# a sum may be one instruction, as nine taps are nine of each.
OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    "assert_indirect_indexing": False,
    "cpp.enable_floating_point_contract_flag": "fast",
}


class _AtSize(nn.Module):
    """A step(block, x, hw, …) on maps of one size, as f(block, x, …).

    The compiler takes a module's numbers as constants. As arguments, defaults or closures they can become free
    ones (at the latest in a second process, by the profile of sizes that torch keeps on disk): that would make no
    graph rarer, as widths come with their maps, and the backward of a strided convolution cannot be generated.
    """

    def __init__(self, step: Callable[..., Tensor], hw: tuple[int, int]) -> None:
        super().__init__()
        self.step = step
        self.height, self.width = hw

    def forward(self, block: Block, x: Tensor, *rest: object) -> Tensor:
        return self.step(block, x, (self.height, self.width), *rest)


@lru_cache(maxsize=256)
def compiled(step: Callable[..., Tensor], hw: tuple[int, int]) -> Callable[..., Tensor]:
    """The compiled form of a step(block, x, hw, …) on maps of one size, made once: f(block, x, …)."""
    module = _AtSize(step, hw)
    tell_compiler()
    try:
        # (torch's own type hints leave the limit out.)
        return torch.compile(module, dynamic=True, options=OPTIONS, recompile_limit=RECOMPILE_LIMIT)  # type: ignore[call-overload, no-any-return, unused-ignore]  # torch's
    except TypeError:  # an earlier torch knows the limit of the whole process alone
        return _limited(torch.compile(module, dynamic=True, options=OPTIONS))


def _limited(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A compiled function that raises torch's limit while it runs, and only then."""
    import torch._dynamo.config as limits  # here, as importing it takes a second

    def run(*arguments: object) -> Tensor:
        with limits.patch(recompile_limit=max(limits.recompile_limit, RECOMPILE_LIMIT)):
            return function(*arguments)

    return run


def use_compiled(block: Block) -> bool:
    """Whether a block runs its compiled step now; never inside another trace or an export."""
    return block.compiled and not torch.compiler.is_compiling()


def compile_blocks(module: nn.Module, on: bool = True) -> None:
    """Let all blocks inside `module` that have compiled steps run them, from the next call on."""
    for part in module.modules():
        if isinstance(part, Block) and part.has_compiled_steps:
            part.compiled = on
