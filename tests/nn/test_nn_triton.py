"""The Triton kernel against plain operations: in Triton's interpreter on a CPU, for real on CUDA."""

import importlib
import importlib.util
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from routespace.nn.kernels.depthwise import Layout, scatter_depthwise, taps_of
from routespace.nn.packing.keep import KeptTokens

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)


def assert_kernel_is_right(gather_gelu, device: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    keep = KeptTokens((torch.rand(3, 42) < 0.6).to(device), (6, 7))
    shapes = [(len(keep.rows), 70), (70, 1, 3, 3), (70,)]
    inputs = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes]
    layout = Layout(keep.rows, keep.order, (3, 6, 7))
    weight = torch.randn(shapes[0], device=device, dtype=dtype)
    found = []
    for fused in (True, False):
        hidden, kernel, offset = inputs
        if fused:
            y = gather_gelu(hidden, taps_of(kernel), offset, keep.neighbours)
        else:
            conv = partial(F.conv2d, weight=kernel, bias=offset, padding=1, groups=shapes[0][1])
            y = F.gelu(scatter_depthwise(hidden, conv, layout))
        found.append([y, *torch.autograd.grad((y * weight).sum(), inputs)])
    for got, want in zip(*found, strict=True):
        assert (got - want).abs().max() <= tolerance * want.abs().max()
    hidden, kernel, offset = inputs
    with torch.no_grad():  # writes no sums
        assert torch.equal(gather_gelu(hidden, taps_of(kernel), offset, keep.neighbours), found[0][0])
    y = gather_gelu(hidden, taps_of(kernel), offset, keep.neighbours)
    (grad,) = torch.autograd.grad(y.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):  # not a second derivative without its parts
        grad.square().sum().backward()


def test_kernels_compile_for_a_gpu_that_is_not_here(monkeypatch):
    """What the interpreter lets through a compiler may refuse: every call is compiled instead of being run."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    from routespace.nn.kernels.depthwise_triton import gather_gelu

    codes = {torch.int64: "*i64", torch.float32: "*fp32", torch.bfloat16: "*bf16"}
    made = []

    def compile_only(kernel, *args, grid, warmup, **constants):
        names = [name for name in kernel.arg_names if name not in constants]
        signature = {
            name: codes[value.dtype] if isinstance(value, torch.Tensor) else "i32"
            for name, value in zip(names, args, strict=True)
        }
        source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constexprs=constants)
        made.append(triton_compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"])

    triton_compile = importlib.import_module("triton").compile
    monkeypatch.setattr(JITFunction, "run", compile_only)
    keep = KeptTokens(torch.rand(2, 42) < 0.6, (6, 7))
    for dtype in (torch.float32, torch.bfloat16):
        shapes = [(len(keep.rows), 70), (9, 70), (70,)]
        inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
        gather_gelu(*inputs, keep.neighbours).sum().backward()
        with torch.no_grad():
            gather_gelu(*inputs, keep.neighbours)
    assert len(made) == 8  # forward, two in the backward pass, and inference
    assert all(made)


def test_kernel_in_the_interpreter():
    """In a process of its own: once loaded, triton does not become an interpreter any more."""
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import test_nn_triton as test;"
        "from routespace.nn.kernels.depthwise_triton import gather_gelu;"
        "test.assert_kernel_is_right(gather_gelu, 'cpu', torch.float32, 1e-5)"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    if "InterpreterError" in done.stderr or "ImportError" in done.stderr:
        pytest.skip(f"triton cannot interpret here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_kernel_on_cuda(dtype, tolerance):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from routespace.nn.kernels.depthwise_triton import gather_gelu

    assert_kernel_is_right(gather_gelu, "cuda", dtype, tolerance)


@pytest.mark.gpu
def test_varlen_attention_on_cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from routespace.nn.packing.ragged import padded_attention, varlen_attention

    torch.manual_seed(0)
    keep = KeptTokens((torch.rand(4, 64) < 0.4).cuda(), (8, 8))
    queries = torch.randn(len(keep.rows), 2, 64, device="cuda", dtype=torch.bfloat16)
    keys, values = torch.randn(2, 4, 2, 49, 64, device="cuda", dtype=torch.bfloat16)
    got = varlen_attention(queries, keys, values, keep)
    want = padded_attention(queries, keys, values, keep.slots, keep.longest)
    assert (got - want).abs().max() < 2e-2
