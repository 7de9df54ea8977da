"""The Triton kernels against plain operations: in Triton's interpreter on a CPU, for real on CUDA."""

import importlib.util

import pytest
import torch
from depthwise_checks import (
    assert_gelu_is_right,
    assert_gradients_are_right,
    assert_kernel_is_right,
    assert_map_kernel_is_right,
    assert_programs_share_the_work,
)
from torch.nn import functional as F
from triton_elsewhere import compile_only

from routespace.nn.kernels.depthwise import taps_of
from routespace.nn.packing.keep import KeptTokens

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)


def assert_norm_kernel_is_right(device: str, dtype: torch.dtype, tolerance: float) -> None:
    from routespace.nn.kernels.norm_triton import normalize

    torch.manual_seed(0)
    for t, c in ((5, 7), (300, 64), (3, 320), (1, 1), (77, 1024)):
        rows, weight, bias = (torch.randn(shape, device=device, dtype=dtype) for shape in ((t, c), (c,), (c,)))
        rows = rows * 3 + 2
        wanted = torch.native_layer_norm(rows.float(), [c], weight.float(), bias.float(), 1e-5)
        normed, total, means, rstds = normalize(rows, weight, bias, 1e-5, statistics=True)
        assert total is rows
        for got, want in zip((normed, means, rstds), wanted, strict=True):
            limit = tolerance * want.abs().max().clamp(min=1)
            assert (got.float() - want).abs().max() <= limit, (t, c)
        shifted = normalize(rows - bias, weight, bias, 1e-5, statistics=False, added=bias).normed
        rounding = 3 * tolerance * normed.abs().max().clamp(min=1)  # of the difference
        assert (shifted - normed).abs().max() <= rounding or t == c == 1
        again = normalize(rows, weight, bias, 1e-5, statistics=False)
        limit = tolerance * normed.abs().max().clamp(min=1)
        assert (again.normed - normed).abs().max() <= limit  # a variant, which may round otherwise
        assert not again.means.numel() + again.rstds.numel()
        branch = torch.randn(t, c, device=device, dtype=torch.bfloat16)
        summed = normalize(rows, weight, bias, 1e-5, statistics=False, branch=branch, dtype=torch.bfloat16)
        want = rows.float() + branch.float()
        assert (summed.total - want).abs().max() <= tolerance * want.abs().max()
        want = torch.native_layer_norm(summed.total.float(), [c], weight.float(), bias.float(), 1e-5)[0]
        assert summed.normed.dtype == torch.bfloat16
        assert (summed.normed - want).abs().max() <= 1e-2 * want.abs().max().clamp(min=1)


def assert_norm_back_kernel_is_right(device: str, dtype: torch.dtype, tolerance: float) -> None:
    from routespace.nn.kernels import norm_triton
    from routespace.nn.kernels.norm_triton import normalize_back

    torch.manual_seed(0)
    programs = norm_triton.BACK_PROGRAMS
    for t, c, most in ((5, 7, programs), (300, 64, 3), (130, 320, 2), (1, 1, programs), (77, 1024, 5)):
        rows, weight, bias = (torch.randn(shape, device=device, dtype=dtype) for shape in ((t, c), (c,), (c,)))
        grad, around = torch.randn(2, t, c, device=device, dtype=dtype)
        _, means, rstds = torch.native_layer_norm(rows.float(), [c], weight.float(), bias.float(), 1e-2)
        into_rows, into_weight, into_bias = torch.ops.aten.native_layer_norm_backward(
            grad.float(), rows.float(), [c], means, rstds, weight.float(), bias.float(), [True] * 3
        )
        norm_triton.BACK_PROGRAMS = most
        try:
            found = normalize_back(grad, rows, weight, means, rstds, around=around, also=torch.bfloat16)
            alone = normalize_back(grad, rows, weight, means, rstds)
        finally:
            norm_triton.BACK_PROGRAMS = programs
        pairs = [
            (found.rows, into_rows + around.float()), (alone.rows, into_rows),
            (found.weight, into_weight), (found.bias, into_bias), (alone.weight, into_weight),
        ]  # fmt: skip
        for got, want in pairs:
            assert (got.float() - want).abs().max() <= tolerance * want.abs().max().clamp(min=1), (t, c)
        assert found.branch.dtype == torch.bfloat16
        assert (found.branch - found.rows).abs().max() <= 1e-2 * found.rows.abs().max()
        assert alone.branch is None


def assert_tables_are_right(device: str) -> None:
    from routespace.nn.packing.tables_triton import neighbours, places

    torch.manual_seed(0)
    draws = [((6, 7), 3, 0.5), ((1, 1), 2, 1.0), ((5, 3), 4, 0.2), ((1, 9), 2, 0.6), ((40, 41), 5, 0.3)]
    for hw, b, share in draws:
        keep = KeptTokens(torch.rand(b, hw[0] * hw[1]) < share, hw)
        starts = (keep.counts.cumsum(0) - keep.counts).to(device)
        rows, order = places(keep.kept.to(device), len(keep.rows), starts, None)
        assert torch.equal(rows.cpu(), keep.rows)
        assert torch.equal(order.cpu().long(), keep.order)
        assert torch.equal(neighbours(rows, order, hw).cpu().long(), keep.neighbours)
    keep = KeptTokens(torch.stack([torch.randperm(42) < 9 for _ in range(3)]), (6, 7), per_image=9)
    rows, order = places(keep.kept.to(device), 27, None, 9)
    assert torch.equal(rows.cpu(), keep.rows)
    assert torch.equal(order.cpu().long(), keep.order)


def test_kernels_compile_for_a_gpu_that_is_not_here(monkeypatch):
    """What the interpreter lets through a compiler may refuse: every call is compiled instead of being run."""
    from routespace.nn.kernels.depthwise_triton import gather_gelu
    from routespace.nn.kernels.gather_backward_triton import gather_gelu_backward
    from routespace.nn.kernels.map_backward_triton import depthwise_gelu_backward
    from routespace.nn.kernels.map_triton import depthwise_gelu
    from routespace.nn.kernels.norm_triton import normalize, normalize_back
    from routespace.nn.packing.tables_triton import neighbours, places

    made = compile_only(monkeypatch)
    keep = KeptTokens(torch.rand(2, 42) < 0.6, (6, 7))
    for dtype in (torch.float32, torch.bfloat16):
        hidden, taps, offset = (
            torch.randn(shape, dtype=dtype) for shape in ((len(keep.rows), 70), (9, 70), (70,))
        )
        maps = torch.randn(2, 42, 70, dtype=dtype)
        for wanted in (True, False):
            gather_gelu(hidden, taps, offset, keep.neighbours.int(), slope=wanted)
            depthwise_gelu(maps, taps, offset, 6, 7, slope=wanted)
            normalize(hidden, taps[0], offset, 1e-5, statistics=wanted)
        normalize(hidden, taps[0], offset, 1e-5, statistics=False, added=offset)
        half = hidden.bfloat16()
        summed = normalize(hidden, taps[0], offset, 1e-5, statistics=True, branch=half)
        for around, also in ((hidden, torch.bfloat16), (None, None)):
            normalize_back(half, hidden, offset, summed.means, summed.rstds, around=around, also=also)
        gather_gelu(hidden, taps, offset, keep.neighbours, slope=True)
        assert len(made) == 11
        for both in ((True, True), (True, False), (False, True)):
            wishes = dict(zip(("into_hidden", "into_weights"), both, strict=True))
            gather_gelu_backward(hidden, hidden, taps, hidden, keep.neighbours.int(), **wishes)
            depthwise_gelu_backward(maps, maps, taps, maps, 6, 7, **wishes)
        assert len(made) == 11 + 9
        assert all(made)
        made.clear()
    starts = keep.counts.cumsum(0) - keep.counts
    rows, order = places(keep.kept, len(keep.rows), starts, None)
    places(keep.kept, 40, None, 20)
    neighbours(rows, order, (6, 7))
    assert len(made) == 3
    assert all(made)


def assert_all_kernels_are_right(device: str, dtype: torch.dtype, tolerance: float) -> None:
    assert_kernel_is_right(device, dtype, tolerance)
    assert_map_kernel_is_right(device, dtype, tolerance)
    assert_norm_kernel_is_right(device, dtype, tolerance)
    assert_norm_back_kernel_is_right(device, dtype, tolerance)
    if dtype == torch.float32:
        assert_gelu_is_right(device)
        with pytest.MonkeyPatch.context() as monkeypatch:
            assert_programs_share_the_work(device, monkeypatch)
        assert_tables_are_right(device)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_kernels_on_cuda(dtype, tolerance):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    assert_all_kernels_are_right("cuda", dtype, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize(("b", "side", "r"), [(64, 56, 512), (3, 28, 1024), (1, 14, 1280), (9, 7, 2048)])
def test_kernels_on_cuda_at_the_sizes_of_networks(b, side, r):
    """With all their blocks at work, and masks of sizes that no block divides."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from routespace.nn.kernels.depthwise_ops import gathered_gelu, map_gelu
    from routespace.nn.kernels.norm import LayerNorm

    torch.manual_seed(0)
    hidden = torch.randn(b, side * side, r, device="cuda", dtype=torch.bfloat16)
    kernel, offset = torch.randn(r, 1, 3, 3, device="cuda"), torch.randn(r, device="cuda")
    maps = hidden.view(b, side, side, r).permute(0, 3, 1, 2)
    kept = torch.rand(b, side * side, device="cuda") < 0.4
    keep = KeptTokens(kept, (side, side))
    small = [part.bfloat16() for part in (kernel, offset)]
    with torch.no_grad():
        whole = F.gelu(F.conv2d(maps.float(), small[0].float(), small[1].float(), padding=1, groups=r))
        got = map_gelu(hidden, *small, (side, side))
        wanted = whole.flatten(2).transpose(1, 2)
        assert (got - wanted).abs().max() <= 1e-2 * wanted.abs().max()
        del whole, wanted
        masked = (hidden * kept.unsqueeze(-1)).view(b, side, side, r).permute(0, 3, 1, 2).float()
        part = F.gelu(F.conv2d(masked, small[0].float(), small[1].float(), padding=1, groups=r))
        wanted = part.flatten(2).transpose(1, 2).flatten(0, 1).index_select(0, keep.rows)
        rows = hidden.flatten(0, 1).index_select(0, keep.rows)
        got = gathered_gelu(rows, taps_of(small[0]), small[1], keep.neighbours)
        assert (got - wanted).abs().max() <= 1e-2 * wanted.abs().max()
    assert_gradients_are_right(rows, small, keep, side)
    norm = LayerNorm(64).to("cuda", torch.bfloat16)
    x = torch.randn(b * 70, 64, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn_like(x)
    found = []
    for forward in (norm.forward, super(LayerNorm, norm).forward):
        y = forward(x)
        found.append([y, *torch.autograd.grad((y * weight).sum(), [x, norm.weight, norm.bias])])
    for got, want in zip(*found, strict=True):
        assert (got - want).abs().max() <= 2e-2 * want.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("last", [False, True], ids=["plain", "channels_last"])
def test_norm_of_a_map_on_cuda(last):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from routespace.nn.kernels.norm import LayerNorm, norm_of_map

    torch.manual_seed(0)
    conv, norm = (part.to("cuda", torch.bfloat16) for part in (torch.nn.Conv2d(16, 72, 3, 2, 1), LayerNorm(72)))
    torch.nn.init.normal_(conv.bias)
    torch.nn.init.normal_(norm.weight)
    maps = torch.randn(3, 16, 31, 20, device="cuda", dtype=torch.bfloat16)
    if last:
        maps = maps.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        got, want = norm_of_map(norm, conv, maps), norm(conv(maps).flatten(2).transpose(1, 2))
    assert (got - want).abs().max() <= 3e-2 * want.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("rounded", [False, True], ids=["branch_float32", "branch_bfloat16"])
def test_a_sum_and_its_norm_on_cuda(half, rounded):
    """Values, gradients and second derivatives of x + branch and its norm are those of plain layers."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from routespace.nn.kernels.norm import LayerNorm, add_norm

    torch.manual_seed(0)
    norm, layer = LayerNorm(64).cuda(), torch.nn.Linear(64, 32).cuda()
    torch.nn.init.normal_(norm.weight)
    x, branch = (torch.randn(3, 2000, 64, device="cuda", requires_grad=True) for _ in range(2))
    around, through = torch.randn(3, 2000, 64, device="cuda"), torch.randn(3, 2000, 32, device="cuda")
    for given in (branch, None):
        inputs = [x, norm.weight, norm.bias, layer.weight] + ([] if given is None else [given])
        found = []
        for fused in (True, False):
            other = given if given is None or not (half and rounded) else given.bfloat16()
            with torch.autocast("cuda", torch.bfloat16, enabled=half):
                if fused:
                    total, normed = add_norm(norm, x, other)
                    assert normed.dtype == (torch.bfloat16 if half else torch.float32)
                else:
                    total = x if other is None else x + other
                    normed = torch.nn.functional.layer_norm(total, (64,), norm.weight, norm.bias, norm.eps)
                loss = (total * around).sum() + (layer(normed).float() * through).sum()
            found.append([total, *torch.autograd.grad(loss, inputs, create_graph=True)])
            if not half:
                (second,) = torch.autograd.grad(found[-1][1].square().sum(), x)
                found[-1].append(second)
        for got, want in zip(*found, strict=True):
            assert (got - want).norm() <= (2e-2 if half else 1e-4) * want.norm()


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
