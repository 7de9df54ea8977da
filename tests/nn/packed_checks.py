"""Checks of the Triton kernels of packed inference against plain operations, on a device or in the interpreter."""

from functools import partial

import torch
from torch.nn import functional as F

from routespace.nn.kernels.depthwise import Layout, scatter_depthwise
from routespace.nn.packing.keep import KeptTokens


def assert_framed_tables_are_right(device: str) -> None:
    from routespace.nn.packing.framed_triton import framed_tables

    torch.manual_seed(0)
    draws = [((6, 7), 3, 0.5, None), ((1, 1), 2, 1.0, None), ((5, 3), 4, 0.2, None), ((1, 9), 2, 0.6, None)]
    for hw, b, share, per_image in [*draws, ((6, 7), 3, 0.0, 9)]:
        kept = torch.rand(b, hw[0] * hw[1]) < share
        if per_image is not None:
            kept = torch.stack([torch.randperm(hw[0] * hw[1]) < per_image for _ in range(b)])
        keep = KeptTokens(kept, hw)
        n, counts = len(keep.rows), None if per_image else keep.counts.to(device)
        found = framed_tables(kept.to(device), n, counts, hw, per_image)
        assert torch.equal(found.rows.cpu(), keep.rows)
        assert torch.equal(found.order.cpu().long(), keep.order.long())
        assert torch.equal(found.framed.cpu().long(), F.pad(keep.order.view(b, *hw), (1,) * 4, value=n).long())
        assert found.framed.flatten()[found.cells.long()].tolist() == list(range(n))
        assert found.starts.tolist() == [0, *keep.counts.cumsum(0).tolist()]
    short = framed_tables(torch.zeros(2, 6, dtype=torch.bool, device=device), 4, None, (2, 3), 2)
    assert not short.rows.any()
    assert short.cells.tolist() == [6] * 4  # a cell inside the frame


def assert_packed_kernels_are_right(device: str, dtype: torch.dtype, tolerance: float) -> None:
    from routespace.nn.kernels.packed_triton import pick_gelu, walk_gelu
    from routespace.nn.packing.framed_triton import framed_tables

    torch.manual_seed(0)
    for hw, b, share, r in (((5, 4), 2, 0.5, 70), ((1, 1), 2, 1.0, 8), ((9, 2), 1, 0.3, 16)):
        keep = KeptTokens(torch.rand(b, hw[0] * hw[1]) < share, hw)
        n = len(keep.rows)
        tables = framed_tables(keep.kept.to(device), n, keep.counts.to(device), hw, None)
        hidden, kernel, offset = (
            torch.randn(shape, device=device, dtype=dtype) for shape in ((n, r), (r, 1, 3, 3), (r,))
        )
        conv = partial(F.conv2d, weight=kernel.float(), bias=offset.float(), padding=1, groups=r)
        layout = Layout(keep.rows.to(device), keep.order.to(device), (b, *hw))
        want = F.gelu(scatter_depthwise(hidden.float(), conv, layout))
        for got in (
            pick_gelu(hidden, kernel, offset, tables.framed, tables.cells),
            walk_gelu(hidden, kernel, offset, tables.framed),
        ):
            assert (got.float() - want).abs().max() <= tolerance * want.abs().max(), (hw, share)


def assert_row_kernels_are_right(device: str, dtype: torch.dtype, tolerance: float) -> None:
    from routespace.nn.kernels.rows_triton import enter, join

    torch.manual_seed(0)
    for t, c, share in ((50, 7, 0.5), (300, 64, 0.3), (3, 320, 1.0), (7, 512, 0.5)):
        x, weight, bias = (torch.randn(shape, device=device, dtype=dtype) for shape in ((t, c), (c,), (c,)))
        kept, visible = ((torch.rand(t) < share).to(device) for _ in range(2))
        kept[0] = True
        rows = kept.nonzero().squeeze(1)
        n = len(rows)
        order = torch.where(kept, kept.cumsum(0) - 1, n).int()
        norm = partial(F.layer_norm, normalized_shape=[c], weight=weight.float(), bias=bias.float(), eps=1e-6)
        want = norm(x.float())
        limit = tolerance * want.abs().max().clamp(min=1)
        for seen, given in (
            (torch.ones_like(kept), {}),
            (kept, {"sees_kept": True, "visible": visible}),
            (visible, {"visible": visible}),
        ):
            normed, packed = enter(x, (weight, bias, 1e-6), order, n, **given)
            assert (normed.float() - want * seen[:, None]).abs().max() <= limit
            assert (packed.float() - want[rows]).abs().max() <= limit
        branch, y = torch.randn(n, c, device=device, dtype=dtype), x.clone()
        normed = join(y, rows, branch, (weight, bias, 1e-6))
        assert torch.equal(y[~kept], x[~kept])
        wanted = x.index_copy(0, rows, x[rows] + branch)
        assert (y - wanted).abs().max() <= tolerance * wanted.abs().max()  # rounded by the interpreter as it likes
        wanted = y.clone()
        want = norm(wanted[rows].float())
        assert (normed.float() - want).abs().max() <= tolerance * want.abs().max().clamp(min=1)
        assert join(y, rows, branch) is branch
        again = wanted.index_copy(0, rows, wanted[rows] + branch)
        assert (y - again).abs().max() <= tolerance * again.abs().max()


def assert_fused_block_is_right(device: str, dtype: torch.dtype, tolerance: float) -> None:
    """Against the masked block, whatever keys see, where nothing of an image is kept, and with equal numbers."""
    from routespace import GridSpec
    from routespace.nn.families.pvt_v2_block import PvtBlock
    from routespace.nn.families.pvt_v2_fused import may_fuse
    from routespace.nn.families.pvt_v2_layers import Mlp

    torch.manual_seed(0)
    block = PvtBlock(GridSpec(layers=4, size="b0", image_size=64), 8)
    block.mlp = Mlp(64, 40)
    block.to(device, dtype).eval()
    for weight in block.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    x = torch.randn(2, 20, 64, device=device, dtype=dtype)
    kept, visible = (torch.rand(2, 2, 20) < 0.6).to(device)
    equal = torch.stack([torch.randperm(20) < 6 for _ in range(2)]).to(device)
    kept[1], kept[1, 5] = False, True
    with torch.no_grad():
        for keep in (
            KeptTokens(kept, (5, 4)),
            KeptTokens(torch.ones_like(kept).index_fill_(1, torch.tensor([7]).to(device), False), (5, 4)),
            KeptTokens(kept, (5, 4), visible),
            KeptTokens(kept, (5, 4), sees_kept=True),
            KeptTokens(equal, (5, 4), per_image=6),
        ):
            assert may_fuse(block, x, keep)
            want = block(x, (5, 4), keep)
            got = block(x.clone(), (5, 4), keep, packed=True)
            assert (got - want).abs().max() <= tolerance * want.abs().max()
            assert torch.equal(got[~keep.kept], x[~keep.kept])
        assert not may_fuse(block, x.double(), keep)
    assert not may_fuse(block, x, keep)  # with autograd
