"""Checks of the depth-wise Triton kernels against plain operations, on a device or in Triton's interpreter."""

from functools import partial

import torch
from torch.nn import functional as F

from routespace.nn.kernels.depthwise import Layout, scatter_depthwise, taps_of
from routespace.nn.packing.keep import KeptTokens


def assert_close(found, wanted, tolerance: float) -> None:
    for got, want in zip(found, wanted, strict=True):
        assert got.shape == want.shape
        assert (got.float() - want.float()).abs().max() <= tolerance * want.float().abs().max().clamp(min=1e-3)


def derivatives(y, inputs, grad):
    return [part.detach() for part in (y, *torch.autograd.grad(y, inputs, grad))]


def assert_kernel_is_right(device: str, dtype: torch.dtype, tolerance: float) -> None:
    from routespace.nn.kernels.depthwise_triton import gather_gelu
    from routespace.nn.kernels.gather_backward_triton import gather_gelu_backward

    torch.manual_seed(0)
    for b, h, w, r, share in ((2, 4, 5, 70, 0.6), (1, 1, 1, 8, 1.0), (2, 2, 3, 130, 0.9)):
        keep = KeptTokens((torch.rand(b, h * w) < share).to(device), (h, w))
        rows, neighbours = keep.rows, keep.neighbours
        shapes = [(len(rows), r), (r, 1, 3, 3), (r,)]
        hidden, kernel, offset, grad = (
            torch.randn(shape, device=device, dtype=dtype) for shape in (*shapes, shapes[0])
        )
        exact = [part.double().requires_grad_() for part in (hidden, kernel, offset)]
        conv = partial(F.conv2d, weight=exact[1], bias=exact[2], padding=1, groups=r)
        summed = scatter_depthwise(exact[0], conv, Layout(rows, keep.order, (b, h, w)))
        y, *wanted = derivatives(F.gelu(summed), exact, grad.double())
        wanted[1] = taps_of(wanted[1])
        slope = torch.ops.aten.gelu_backward(torch.ones_like(summed), summed).detach()
        taps = taps_of(kernel)
        activated, got_slope = gather_gelu(hidden, taps, offset, neighbours, slope=True)
        assert_close((activated, got_slope), (y, slope), tolerance)
        again, empty = gather_gelu(hidden, taps, offset, neighbours, slope=False)
        assert torch.equal(again, activated)
        assert not empty.numel()
        for both in ((True, True), (True, False), (False, True))[: 3 if r == 8 else 1]:
            found = gather_gelu_backward(
                grad, hidden, taps, got_slope, neighbours, into_hidden=both[0], into_weights=both[1]
            )
            assert [bool(part.numel()) for part in found] == [both[0], both[1], both[1]]
            chosen = [pair for pair in zip(found, wanted, strict=True) if pair[0].numel()]
            assert_close(*zip(*chosen, strict=True), tolerance)


def assert_map_kernel_is_right(device: str, dtype: torch.dtype, tolerance: float) -> None:
    from routespace.nn.kernels.map_backward_triton import depthwise_gelu_backward
    from routespace.nn.kernels.map_triton import depthwise_gelu

    torch.manual_seed(0)
    for b, h, w, r in ((2, 5, 3, 70), (1, 1, 1, 8), (3, 2, 6, 130)):
        shapes = [(b, h * w, r), (r, 1, 3, 3), (r,)]
        hidden, kernel, offset, grad = (
            torch.randn(shape, device=device, dtype=dtype) for shape in (*shapes, shapes[0])
        )
        exact = [part.double().requires_grad_() for part in (hidden, kernel, offset)]
        maps = exact[0].view(b, h, w, r).permute(0, 3, 1, 2)
        summed = F.conv2d(maps, exact[1], exact[2], padding=1, groups=r).flatten(2).transpose(1, 2)
        y, *wanted = derivatives(F.gelu(summed), exact, grad.double())
        slope = torch.ops.aten.gelu_backward(torch.ones_like(summed), summed).detach()
        activated, got_slope = depthwise_gelu(hidden, kernel, offset, h, w, slope=True)
        assert_close((activated, got_slope), (y, slope), tolerance)
        again, empty = depthwise_gelu(hidden, kernel, offset, h, w, slope=False)
        assert torch.equal(again, activated)
        assert not empty.numel()
        for both in ((True, True), (True, False), (False, True))[: 3 if r == 8 else 1]:
            found = depthwise_gelu_backward(
                grad, hidden, kernel, got_slope, h, w, into_hidden=both[0], into_weights=both[1]
            )
            assert [bool(part.numel()) for part in found] == [both[0], both[1], both[1]]
            chosen = [pair for pair in zip(found, wanted, strict=True) if pair[0].numel()]
            assert_close(*zip(*chosen, strict=True), tolerance)


def assert_gelu_is_right(device: str) -> None:
    """Of a map of one token with a kernel of ones in the middle, the GELU alone is left."""
    from routespace.nn.kernels.map_triton import depthwise_gelu

    x = torch.cat((torch.linspace(-12, 12, 401), torch.tensor([torch.nan]))).to(device)
    kernel = torch.zeros(len(x), 1, 3, 3, device=device)
    kernel[:, :, 1, 1] = 1
    slope = torch.ops.aten.gelu_backward(torch.ones_like(x), x)
    for wanted in (False, True):
        y, slopes = depthwise_gelu(x.view(1, 1, -1), kernel, torch.zeros_like(x), 1, 1, slope=wanted)
        torch.testing.assert_close(y.flatten(), F.gelu(x), rtol=1e-6, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(slopes.flatten(), slope, rtol=1e-6, atol=1e-6, equal_nan=True)


def assert_programs_share_the_work(device: str, monkeypatch) -> None:
    """With few programs each walks over several blocks; sums over all of them are the same."""
    from routespace.nn.kernels import gather_backward_triton, map_backward_triton, map_triton

    torch.manual_seed(0)
    keep = KeptTokens((torch.rand(2, 42) < 0.6).to(device), (6, 7))
    n = len(keep.rows)
    rows, grad, slope, kernel = (
        torch.randn(shape, device=device) for shape in ((n, 10), (n, 10), (n, 10), (10, 1, 3, 3))
    )
    maps = [torch.randn(2, 42, 10, device=device) for _ in range(3)]
    both = {"into_hidden": True, "into_weights": True}
    found = []
    for programs in (1, 2, 10_000):
        for name in ("PROGRAMS", "PRODUCT_PROGRAMS"):
            monkeypatch.setattr(gather_backward_triton, name, programs)
        for module in (map_triton, map_backward_triton):
            monkeypatch.setattr(module, "PROGRAMS", programs)
        of_rows = gather_backward_triton.gather_gelu_backward(
            grad, rows, taps_of(kernel), slope, keep.neighbours, **both
        )
        of_maps = map_backward_triton.depthwise_gelu_backward(*maps[:2], kernel, maps[2], 6, 7, **both)
        found.append((*of_rows, *of_maps))
    assert_close(found[0], found[2], 1e-5)
    assert_close(found[1], found[2], 1e-5)


def assert_gradients_are_right(rows, weights, keep, side: int) -> None:
    """Of packed rows, and of as many maps as all of them would fill, against torch's convolution in float32."""
    from routespace.nn.kernels.depthwise_ops import gathered_gelu, map_gelu

    b, r = keep.kept.shape[0], rows.shape[1]
    kernel, offset = weights
    some = rows.new_zeros(b * side * side, r).index_copy_(0, keep.rows, rows).view(b, side * side, r)
    grads = torch.randn_like(rows), torch.randn_like(some)
    for packed in (True, False):
        given = [(rows if packed else some), kernel, offset]
        mine, plain = ([part.to(d).detach().requires_grad_() for part in given] for d in (rows.dtype, torch.float))
        if packed:
            y = gathered_gelu(mine[0], taps_of(mine[1]), mine[2], keep.neighbours)
            maps = plain[0].new_zeros(b * side * side, r).index_copy(0, keep.rows, plain[0])
        else:
            y, maps = map_gelu(*mine, (side, side)), plain[0]
        grad = grads[0 if packed else 1]
        found = torch.autograd.grad(y, mine, grad)
        maps = maps.view(b, side, side, r).permute(0, 3, 1, 2)
        want = F.gelu(F.conv2d(maps, plain[1], plain[2], padding=1, groups=r)).flatten(2).transpose(1, 2)
        want = want.flatten(0, 1).index_select(0, keep.rows) if packed else want
        wanted = torch.autograd.grad(want, plain, grad.float())
        assert_close(found, wanted, 2e-2)
        again = torch.autograd.grad(
            gathered_gelu(mine[0], taps_of(mine[1]), mine[2], keep.neighbours)
            if packed
            else map_gelu(*mine, (side, side)),
            mine,
            grad,
        )
        assert all(map(torch.equal, found, again))  # nothing is added up in an order that changes
