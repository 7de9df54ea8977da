"""Queries, keys and values by one kernel: in Triton's interpreter on a CPU, for real on CUDA."""

import importlib.util

import pytest
import torch
from triton_elsewhere import compile_only

from routespace.nn.families.swin_windows import unit

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)


def assert_heads_are_right(device: str, dtype: torch.dtype, tolerance: float) -> None:
    from routespace.nn.kernels.heads_triton import split_heads

    torch.manual_seed(0)
    for rows, heads, d, area, names in ((24, 3, 8, 6, "qkv"), (130, 2, 12, 1, "q"), (98, 2, 32, 49, "kv")):
        product = torch.randn(rows, len(names) * heads * d, device=device, dtype=dtype)
        product[3] = 0  # what a zero token has
        scales = torch.rand(heads, device=device, dtype=dtype) + 0.5
        found = split_heads(product, scales, heads, area, names)
        parts = product.float().view(rows // area, area, len(names), heads, d).permute(2, 0, 3, 1, 4)
        for got, name, part in zip(found, names, parts, strict=True):
            want = part if name == "v" else unit(part)
            want = want * scales.float().view(heads, 1, 1) if name == "q" else want
            assert (got - want).abs().max() <= tolerance * want.abs().max()


def assert_sums_behind_norms_are_right(device: str, dtype: torch.dtype, tolerance: float) -> None:
    from routespace.nn.kernels.norm_triton import normalize

    torch.manual_seed(0)
    rows, around = torch.randn(2, 70, 96, device=device, dtype=dtype)
    weight, bias = torch.randn(2, 96, device=device, dtype=dtype)
    got = normalize(rows, weight, bias, 1e-5, statistics=False, after=around).normed
    want = around + torch.nn.functional.layer_norm(rows.float(), (96,), weight.float(), bias.float(), 1e-5)
    assert (got - want).abs().max() <= tolerance * want.abs().max()


def assert_all_kernels_are_right(device: str, dtype: torch.dtype, tolerance: float) -> None:
    assert_heads_are_right(device, dtype, tolerance)
    assert_sums_behind_norms_are_right(device, dtype, tolerance)


def test_kernels_compile_for_a_gpu_that_is_not_here(monkeypatch):
    from routespace.nn.kernels.heads_triton import split_heads

    made = compile_only(monkeypatch)
    for names in ("qkv", "kv", "q"):
        split_heads(torch.randn(24, len(names) * 24, dtype=torch.bfloat16), torch.rand(3), 3, 6, names)
    assert len(made) == 3
    assert all(made)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_on_cuda(dtype, tolerance):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    assert_all_kernels_are_right("cuda", dtype, tolerance)
