"""The depth-wise operators: what they compute, their derivatives, and how a compiler sees them."""

from functools import partial

import pytest
import torch
from depthwise_checks import derivatives
from torch.nn import functional as F

from routespace.nn.kernels.depthwise import (
    ROWS_AT_ONCE,
    Layout,
    gather_gelu,
    scatter_depthwise,
    taps_of,
    tell_compiler,
)
from routespace.nn.packing.keep import KeptTokens


def test_operators_are_what_plain_layers_compute():
    from routespace.nn.kernels.depthwise_ops import gathered_gelu, map_gelu

    torch.manual_seed(0)
    keep = KeptTokens(torch.rand(3, 42) < 0.6, (6, 7))
    hidden = torch.randn(3, 42, 10, requires_grad=True)
    kernel, offset = torch.randn(10, 1, 3, 3, requires_grad=True), torch.randn(10, requires_grad=True)
    inputs, weight = [hidden, kernel, offset], torch.randn(3, 42, 10)
    found = []
    for fused in (True, False):
        if fused:
            y = map_gelu(hidden, kernel, offset, (6, 7))
        else:
            maps = hidden.view(3, 6, 7, 10).permute(0, 3, 1, 2)
            y = F.gelu(F.conv2d(maps, kernel, offset, padding=1, groups=10)).flatten(2).transpose(1, 2)
        found.append([y, *torch.autograd.grad((y * weight).sum(), inputs)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)
    (only_offset,) = torch.autograd.grad(
        (map_gelu(hidden.detach(), kernel, offset, (6, 7)) * weight).sum(), offset
    )
    torch.testing.assert_close(only_offset, found[0][3])
    with torch.no_grad():
        rows = hidden.flatten(0, 1).index_select(0, keep.rows)
        conv = partial(F.conv2d, weight=kernel, bias=offset, padding=1, groups=10)
        wanted = F.gelu(scatter_depthwise(rows, conv, Layout(keep.rows, keep.order, (3, 6, 7))))
        torch.testing.assert_close(gathered_gelu(rows, taps_of(kernel), offset, keep.neighbours), wanted)
    operators = torch.ops.routespace
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    maps = hidden.detach(), kernel.detach(), offset.detach()
    packed = rows, taps_of(kernel.detach()), offset.detach()
    for wanted in (True, False):
        torch.library.opcheck(operators.map_gelu, (*maps, 6, 7, wanted), test_utils=tests)
        torch.library.opcheck(operators.gather_gelu, (*packed, keep.neighbours, wanted), test_utils=tests)
        both = (wanted, not wanted)
        torch.library.opcheck(operators.map_gelu_backward, (weight, *maps, weight, 6, 7, *both), test_utils=tests)
        torch.library.opcheck(
            operators.gather_gelu_backward, (rows, *packed, rows, keep.neighbours, *both), test_utils=tests
        )


def packed_inputs(rows: int, dtype=torch.double):
    """So many kept tokens of two maps; hidden rows, kernel, and the two biases of a feed-forward layer."""
    kept = torch.zeros(2 * 90, dtype=torch.bool)
    kept[torch.randperm(2 * 90)[:rows]] = True
    shapes = (rows, 6), (6, 1, 3, 3), (6,), (6,)
    return KeptTokens(kept.view(2, 90), (9, 10)), [torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("rows", [1, ROWS_AT_ONCE, 2 * ROWS_AT_ONCE + 1, 2 * ROWS_AT_ONCE + 2, 3 * ROWS_AT_ONCE])
def test_nine_gathers_have_the_gradients_of_a_convolution(rows):
    """Also where rows are summed in blocks, of which the last may be a part, and where nobody adds the bias."""
    torch.manual_seed(0)
    keep, inputs = packed_inputs(rows)
    hidden, kernel, bias, offset = inputs
    conv = partial(F.conv2d, weight=kernel, bias=offset, padding=1, groups=6)
    whole = scatter_depthwise(hidden + bias, conv, Layout(keep.rows, keep.order, (2, 9, 10)))
    taps = taps_of(kernel)
    grad = torch.randn(rows, 6, dtype=torch.double)
    want = derivatives(F.gelu(whole), inputs, grad)
    added = torch.cat((hidden + bias, hidden.new_zeros(1, 6)))
    torch.testing.assert_close(derivatives(gather_gelu(added, taps, offset, keep.neighbours), inputs, grad), want)
    behind = torch.cat((hidden, -bias[None]))
    found = gather_gelu(behind, taps, offset + bias * taps.sum(0), keep.neighbours.int())  # as on CUDA
    torch.testing.assert_close(derivatives(found, inputs, grad), want)
    single = [part.detach().float().requires_grad_() for part in (behind, taps, offset + bias * taps.sum(0))]
    exact = [part.detach().double().requires_grad_() for part in single]
    fast, slow = (
        derivatives(gather_gelu(*given, keep.neighbours), given, grad.to(given[0].dtype))
        for given in (single, exact)
    )
    for got, right in zip(fast, slow, strict=True):
        torch.testing.assert_close(got.double(), right, rtol=2e-6, atol=2e-6)


@pytest.mark.slow
def test_few_graphs_serve_every_number_of_rows():
    """Sums by blocks ask how many rows there are, whole blocks or not."""
    from torch._dynamo.utils import counters

    def step(padded, taps, offset, neighbours):
        return gather_gelu(padded * 2, taps, offset, neighbours)

    torch.compiler.reset()
    counters.clear()
    tell_compiler()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=True)
    torch.manual_seed(0)
    for rows in (100, 101, 128, 64, 160, 66, 65, 33, 2, 97):
        keep, (hidden, kernel, _, offset) = packed_inputs(rows, torch.float)
        given = [torch.cat((hidden, hidden.new_zeros(1, 6))), taps_of(kernel), offset]
        inputs, grad = [part.detach().requires_grad_() for part in given], torch.randn(rows, 6)
        found, want = (derivatives(run(*inputs, keep.neighbours), inputs, grad) for run in (compiled, step))
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 2  # many rows and few


def test_operators_have_second_derivatives():
    from routespace.nn.kernels.depthwise_ops import gathered_gelu, map_gelu

    torch.manual_seed(0)
    keep = KeptTokens(torch.tensor([[1, 1, 0, 1, 1, 0], [0, 1, 1, 1, 0, 1]], dtype=torch.bool), (2, 3))
    layout = Layout(keep.rows, keep.order, (2, 2, 3))

    def of_maps(hidden, kernel, offset):
        return map_gelu(hidden, kernel, offset, (2, 3))

    def of_rows(hidden, kernel, offset):
        return gathered_gelu(hidden, taps_of(kernel), offset, keep.neighbours)

    def plain_maps(hidden, kernel, offset):
        maps = hidden.view(2, 2, 3, 3).permute(0, 3, 1, 2)
        return F.gelu(F.conv2d(maps, kernel, offset, padding=1, groups=3)).flatten(2).transpose(1, 2)

    def plain_rows(hidden, kernel, offset):
        conv = partial(F.conv2d, weight=kernel, bias=offset, padding=1, groups=3)
        return F.gelu(scatter_depthwise(hidden, conv, layout))

    for ours, plain, shape in ((of_maps, plain_maps, (2, 6, 3)), (of_rows, plain_rows, (len(keep.rows), 3))):
        given = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (shape, (3, 1, 3, 3), (3,))]
        torch.autograd.gradcheck(ours, given)
        torch.autograd.gradgradcheck(ours, given)
        found = []
        for run in (ours, plain):  # a loss whose gradient depends on the inputs itself, and only some of them ask
            (grad,) = torch.autograd.grad(run(*given).square().sum(), given[0], create_graph=True)
            found.append([grad, *torch.autograd.grad(grad.square().sum(), given)])
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want)
        for k in range(3):
            asking = [part.detach().requires_grad_(i == k) for i, part in enumerate(given)]
            found = [torch.autograd.grad(run(*asking).square().sum(), asking[k])[0] for run in (ours, plain)]
            torch.testing.assert_close(*found)


def test_operators_count_what_a_convolution_does():
    from torch.utils.flop_counter import FlopCounterMode

    from routespace.nn.kernels.depthwise_ops import gathered_gelu, map_gelu

    keep = KeptTokens(torch.rand(3, 42) < 0.6, (6, 7))
    shapes = (3, 42, 10), (10, 1, 3, 3), (10,), (len(keep.rows), 10)
    hidden, kernel, offset, rows = (torch.randn(shape, requires_grad=True) for shape in shapes)
    runs = (
        lambda: map_gelu(hidden, kernel, offset, (6, 7)),
        lambda: F.conv2d(hidden.view(3, 6, 7, 10).permute(0, 3, 1, 2), kernel, offset, padding=1, groups=10),
        lambda: gathered_gelu(rows, taps_of(kernel), offset, keep.neighbours),
    )
    for learns in (False, True):
        counted = []
        for run in runs:
            with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(learns):
                y = run()
                if learns:
                    y.sum().backward()
            counted.append(counter.get_total_flops())
        once = 2 * 9 * 10 * (3 if learns else 1)
        assert counted[::2] == [once * 3 * 42, once * len(keep.rows)]
        if not learns:  # of a grouped convolution's backward pass torch counts more than there is
            assert counted[1] == counted[0]


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [True, False])
def test_operators_in_a_compiled_training_step_on_cuda(packed):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    assert_operators_compile("cuda", "inductor", packed)


@pytest.mark.parametrize("packed", [True, False])
def test_operators_in_a_compiled_training_step(packed):
    assert_operators_compile("cpu", "aot_eager", packed)


def assert_operators_compile(device: str, backend: str, packed: bool) -> None:
    from routespace.nn.kernels.depthwise_ops import gathered_gelu, map_gelu

    torch.manual_seed(0)
    keep = KeptTokens((torch.rand(3, 42) < 0.6).to(device), (6, 7))
    shape = (len(keep.rows), 16) if packed else (3, 42, 16)
    given = [torch.randn(s, device=device, requires_grad=True) for s in (shape, (9, 16), (16,))]
    weight, neighbours = torch.randn(shape, device=device), keep.neighbours

    def step(hidden, taps, offset):
        if packed:
            return gathered_gelu(hidden * 2, taps, offset, neighbours) * 3
        return map_gelu(hidden * 2, taps.t().reshape(16, 1, 3, 3), offset, (6, 7)) * 3

    torch.compiler.reset()
    compiled = torch.compile(step, backend=backend, fullgraph=True)
    found = [derivatives(run(*given), given, weight) for run in (compiled, step)]
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
