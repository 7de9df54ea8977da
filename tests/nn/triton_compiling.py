"""Triton kernels compiled for a GPU that is not here."""

import importlib

import pytest
import torch

CODES = {
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
}
NUMBERS = {int: "i32", float: "fp32"}


def compile_only(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """From now on a kernel is compiled for compute capability 9.0 instead of being run; what is made of it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    made = []

    def compiled(kernel, *args, grid, warmup, num_warps=4, maxnreg=None, **constants):
        names = [name for name in kernel.arg_names if name not in constants]
        signature = {
            name: CODES[value.dtype] if isinstance(value, torch.Tensor) else NUMBERS[type(value)]
            for name, value in zip(names, args, strict=True)
        }
        source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constexprs=constants)
        made.append(triton_compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"])

    triton_compile = importlib.import_module("triton").compile
    monkeypatch.setattr(JITFunction, "run", compiled)
    return made
