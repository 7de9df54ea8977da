"""The Triton kernels of packed inference: interpreted (test_nn_triton_interpreted), compiled, on CUDA."""

import importlib.util

import pytest
import torch
from packed_checks import (
    assert_framed_tables_are_right,
    assert_fused_block_is_right,
    assert_packed_kernels_are_right,
    assert_row_kernels_are_right,
)
from torch.nn import functional as F
from triton_elsewhere import compile_only

from routespace.nn.packing.keep import KeptTokens

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)


def test_kernels_compile_for_a_gpu_that_is_not_here(monkeypatch):
    from routespace.nn.kernels import packed_triton
    from routespace.nn.kernels.rows_triton import enter, join
    from routespace.nn.packing.framed_triton import framed_tables

    made = compile_only(monkeypatch)
    keep = KeptTokens(torch.rand(2, 42) < 0.6, (6, 7))
    n = len(keep.rows)
    tables = framed_tables(keep.kept, n, keep.counts, (6, 7), None)
    framed_tables(keep.kept, 40, None, (6, 7), 20)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [torch.randn(shape, dtype=dtype) for shape in ((n, 70), (70, 1, 3, 3), (70,))]
        for margin in (packed_triton.MARGIN, 1 << 31):  # places of 31 bits, and of more
            with monkeypatch.context() as patched:
                patched.setattr(packed_triton, "MARGIN", margin)
                packed_triton.pick_gelu(*inputs, tables.framed, tables.cells)
                packed_triton.walk_gelu(*inputs, tables.framed)
        norm = inputs[2], inputs[2], 1e-6
        x = torch.randn(84, 70, dtype=dtype)
        enter(x, norm, tables.order, n)
        enter(x, norm, tables.order, n, sees_kept=True)
        enter(x, norm, tables.order, n, visible=keep.kept.flatten())
        join(x, keep.rows, inputs[0], norm)
        join(x, keep.rows, inputs[0])
    assert len(made) == 20  # two tables; of two types two ways in two widths of places, three norms and two sums
    assert all(made)


def assert_all_kernels_are_right(device: str, dtype: torch.dtype, tolerance: float) -> None:
    assert_packed_kernels_are_right(device, dtype, tolerance)
    assert_row_kernels_are_right(device, dtype, tolerance)
    assert_fused_block_is_right(device, dtype, tolerance)
    if dtype == torch.float32:
        assert_framed_tables_are_right(device)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_kernels_on_cuda(dtype, tolerance):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    assert_all_kernels_are_right("cuda", dtype, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("share", [0.5, 0.25])
@pytest.mark.parametrize(("b", "side", "r"), [(64, 56, 512), (3, 28, 1024), (1, 14, 1280), (9, 7, 2048)])
def test_kernels_on_cuda_at_the_sizes_of_networks(b, side, r, share):
    """With all their blocks at work, and masks of sizes that no block divides."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from routespace.nn.kernels.packed_triton import pick_gelu, walk_gelu

    torch.manual_seed(0)
    keep = KeptTokens(torch.rand(b, side * side, device="cuda") < share, (side, side))
    tables, n = keep.framed, int(keep.kept.sum())
    assert tables is not None
    assert torch.equal(tables.rows, keep.rows)
    assert torch.equal(tables.order, keep.order.int())
    hidden, kernel, offset = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in ((n, r), (r, 1, 3, 3), (r,))
    )
    maps = F.pad(hidden, (0, 0, 0, 1)).index_select(0, tables.order).view(b, side, side, r).permute(0, 3, 1, 2)
    whole = F.gelu(F.conv2d(maps.float(), kernel.float(), offset.float(), padding=1, groups=r))
    want = whole.permute(0, 2, 3, 1).reshape(-1, r).index_select(0, tables.rows)
    del whole, maps
    for got in (
        pick_gelu(hidden, kernel, offset, tables.framed, tables.cells),
        walk_gelu(hidden, kernel, offset, tables.framed),
    ):
        assert (got - want).abs().max() <= 1e-2 * want.abs().max()


@pytest.mark.gpu
def test_varlen_attention_without_its_wrapper_on_cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from routespace.nn.packing.ragged import padded_attention, varlen_attention

    torch.manual_seed(0)
    keep = KeptTokens((torch.rand(4, 64) < 0.4).cuda(), (8, 8))
    queries = torch.randn(len(keep.rows), 2, 64, device="cuda", dtype=torch.bfloat16)
    strided = torch.randn(4, 49, 2, 2, 64, device="cuda", dtype=torch.bfloat16).permute(2, 0, 3, 1, 4)
    want = padded_attention(queries, *strided, keep.slots, keep.longest)
    with torch.no_grad():
        assert (varlen_attention(queries, *strided, keep) - want).abs().max() < 2e-2
