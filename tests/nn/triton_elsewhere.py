"""Triton kernels where there is no GPU: compiled for one that is not here, and run in the interpreter."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

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
# Triton looks through its whole language at each call of a function, though its module's first call prepared it.
QUICK_CALLS = """
from triton.runtime.interpreter import InterpretedFunction
prepared, prepare = set(), InterpretedFunction.__call__
def call(function, *args, **more):
    module = function.fn.__module__
    if module in prepared:
        return function.rewrite()(*args, **more)
    prepared.add(module)
    return prepare(function, *args, **more)
InterpretedFunction.__call__ = call
"""


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
        found = triton_compile(source, target=GPUTarget("cuda", 90, 32)).asm
        assert not products_with_zero(found["ttir"]), kernel.__name__
        made.append(found["cubin"])

    triton_compile = importlib.import_module("triton").compile
    monkeypatch.setattr(JITFunction, "run", compiled)
    return made


def products_with_zero(code: str) -> list[str]:
    """The lines of a kernel's code that multiply by a constant zero, which nobody means to.

    Triton does not see a value move from name to name in a loop where both names begin as one value, as zeros do:
    the one then stays what it was. The interpreter moves it.
    """
    zeros = re.findall(r"(%\S+) = arith\.constant dense<0\.0+e\+00> : tensor<\S+xf32>", code)
    products = re.findall(r"arith\.mulf .*", code)
    return [line for line in products if set(re.findall(r"%[\w#]+", line)) & set(zeros)]


def run_in_interpreter(code: str) -> None:
    """Python code, which finds the tests' modules, in a process of its own with Triton's interpreter.

    Once loaded, triton does not become an interpreter any more. Where it cannot interpret, the test is skipped.
    """
    code = f"import sys, torch; sys.path.insert(0, sys.argv[1])\n{QUICK_CALLS}\n{code}"
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    if "InterpreterError" in done.stderr or "ImportError" in done.stderr:
        pytest.skip(f"triton cannot interpret here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
