"""Linear layers computed by oneDNN give what torch's own give: values, gradients, MACs, exported graphs."""

import subprocess
import sys

import pytest
import torch
from packaging.version import Version
from tiny_grid import TINY_GRID
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.kernels import linear as linears
from routespace.nn.kernels.depthwise import depthwise_gelu
from routespace.nn.kernels.linear import (
    add_product,
    apply_linear,
    linear,
    onednn_is_used,
    padded_linear,
    products,
    weight_grad,
)
from routespace.nn.packing.compiler import assume_constant_result
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import TaskNet

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


@pytest.fixture
def onednn(monkeypatch):
    """Every product to oneDNN, whatever the processor and the size."""
    monkeypatch.setattr(linears, "LEAST_MAP_MACS", 1)
    monkeypatch.setattr(linears, "LEAST_ROW_MACS", 1)
    monkeypatch.setattr(linears, "LEAST_WEIGHTS", 0)
    with products("onednn"):
        yield


def calls(run) -> int:
    """How often our operator runs."""
    with torch.profiler.profile() as profile:
        run()
    return sum(event.count for event in profile.key_averages() if event.key == "routespace::linear")


def weights(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, k, requires_grad=True), torch.randn(n, requires_grad=True)


def values_and_gradients(function, tensors):
    found = function(*tensors)
    weighting = torch.linspace(-1, 1, found.numel()).view_as(found)
    return [found.detach(), *torch.autograd.grad((found * weighting).sum(), tensors)]


def assert_same(function, reference, tensors):
    for mine, theirs in zip(
        values_and_gradients(function, tensors), values_and_gradients(reference, tensors), strict=True
    ):
        assert mine.shape == theirs.shape
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 5), (0,), (1,)])
@pytest.mark.parametrize(("k", "n"), [(6, 40), (40, 6)])
def test_values_and_gradients(onednn, shape, k, n):
    x = torch.randn(*shape, k, requires_grad=True)
    weight, bias = weights(n, k)
    assert_same(linear, F.linear, (x, weight, bias))
    assert_same(linear, F.linear, (x, weight))
    assert (calls(lambda: linear(x, weight, bias)) > 0) == (x.numel() > 0)


def test_parts_of_weights(onednn):
    """Columns, rows and transposes of a weight, which oneDNN itself would take as they lie: with a slow kernel."""
    x = torch.randn(9, 8, requires_grad=True)
    weight, bias = weights(8, 16)
    assert_same(lambda x, w: linear(x, w[:, 4:12]), lambda x, w: F.linear(x, w[:, 4:12]), (x, weight))
    assert_same(lambda x, w: linear(x, w.t()), lambda x, w: F.linear(x, w.t()), (x, weight))
    assert_same(
        lambda w, b: linear(x.detach(), w[2:5, :8], b[2:5]),
        lambda w, b: F.linear(x.detach(), w[2:5, :8], b[2:5]),
        (weight, bias),
    )
    assert_same(
        lambda w, b: linear(x, w[::2, :8], b[::2]), lambda w, b: F.linear(x, w[::2, :8], b[::2]), (weight, bias)
    )


@pytest.mark.parametrize("n", [0, 1, 11])
def test_a_row_of_zeros_behind(onednn, n):
    rows = torch.randn(n, 6, requires_grad=True)
    weight, bias = weights(10, 6)

    def reference(rows, weight, bias):
        return torch.cat((F.linear(rows, weight, bias), torch.zeros(1, 10)))

    assert_same(padded_linear, reference, (rows, weight, bias))
    with torch.inference_mode():
        assert torch.equal(padded_linear(rows, weight, bias)[-1], torch.zeros(10))


def test_a_row_of_zeros_behind_torchs_own():
    rows, (weight, bias) = torch.randn(5, 6, requires_grad=True), weights(10, 6)
    want = torch.cat((F.linear(rows, weight, bias), torch.zeros(1, 10)))
    with products("torch"):
        assert torch.equal(padded_linear(rows, weight, bias), want)
    with products("torch"), torch.inference_mode():
        assert torch.allclose(padded_linear(rows, weight, bias), want, atol=1e-6)


@pytest.mark.parametrize(("k", "n"), [(6, 40), (40, 6), (8, 8)])
def test_weight_gradients(onednn, k, n):
    grad, rows = torch.randn(30, n), torch.randn(30, k)
    assert torch.allclose(weight_grad(grad, rows), grad.t() @ rows, atol=1e-4)


def test_second_derivatives(onednn):
    x, (weight, bias) = torch.randn(4, 3, requires_grad=True), weights(5, 3)

    def penalty(function):
        (grad,) = torch.autograd.grad(function(x, weight, bias).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), (x, weight, bias))

    for mine, theirs in zip(penalty(linear), penalty(F.linear), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_macs_are_counted(onednn):
    x, (weight, bias) = torch.randn(2, 7, 6), weights(10, 6)
    with FlopCounterMode(display=False) as counter:
        linear(x, weight, bias)
    assert counter.get_total_flops() == 2 * 2 * 7 * 6 * 10
    with FlopCounterMode(display=False) as counter:
        padded_linear(x[0], weight, bias)
    assert counter.get_total_flops() == 2 * 7 * 6 * 10
    with FlopCounterMode(display=False) as counter:  # it listens to modules, which are then called as they are
        apply_linear(torch.nn.Linear(6, 10), x)
    assert counter.get_total_flops() == 2 * 2 * 7 * 6 * 10


@pytest.mark.parametrize("by", ["torch", "onednn", "auto"])
@torch.inference_mode()
def test_what_a_layer_adds_to(by):
    """A product adds to what is there: in place where that was asked for, and else not."""
    onto, x, layer = torch.randn(2, 7, 10), torch.randn(2, 7, 12), torch.nn.Linear(12, 10)
    before, want = onto.clone(), onto + layer(x)
    with products(by):
        assert torch.allclose(apply_linear(layer, x, onto=onto), want, atol=1e-5)
        assert torch.equal(onto, before)
        assert add_product(onto, x[..., 2:9], layer.weight[:, 2:9]) is onto
    assert torch.allclose(onto, before + F.linear(x[..., 2:9], layer.weight[:, 2:9]), atol=1e-5)
    layer.register_forward_hook(lambda *_: torch.ones(2, 7, 10))
    assert torch.equal(apply_linear(layer, x, onto=before), before + 1)


def test_sums_are_counted_and_learned():
    onto, x, layer = torch.randn(7, 10), torch.randn(7, 12), torch.nn.Linear(12, 10)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        apply_linear(layer, x, onto=onto)
    assert counter.get_total_flops() == 2 * 7 * 12 * 10
    assert_same(
        lambda x, onto: apply_linear(layer, x, onto=onto),
        lambda x, onto: onto + layer(x),
        (x.requires_grad_(), onto.requires_grad_()),
    )


@pytest.mark.parametrize("shape", [(2, 8, 5, 6), (0, 8, 5, 6)])
@torch.no_grad()
def test_convolution_and_gelu_of_maps(shape):
    maps, kernel, offset = torch.randn(shape), torch.randn(8, 1, 3, 3), torch.randn(8)
    maps = maps.to(memory_format=torch.channels_last)
    want = F.gelu(F.conv2d(maps, kernel, offset, padding=1, groups=8))
    found = depthwise_gelu(maps, kernel, offset)
    assert torch.allclose(found, want, atol=1e-5)
    assert found.stride() == want.stride() or not maps.numel()
    with FlopCounterMode(display=False) as counter:
        depthwise_gelu(maps, kernel, offset)
    assert counter.get_total_flops() == 2 * 9 * maps.numel()
    short = depthwise_gelu(maps.bfloat16(), kernel.bfloat16(), offset.bfloat16())
    assert torch.allclose(short.float(), want, atol=0.1)


def test_what_goes_to_torchs_own(onednn, monkeypatch):
    layer, x = torch.nn.Linear(6, 10), torch.randn(7, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert apply_linear(layer, x).dtype == torch.bfloat16
    assert apply_linear(layer.double(), x.double()).dtype == torch.float64
    assert apply_linear(torch.nn.Linear(6, 10, device="meta"), x.to("meta")).shape == (7, 10)
    layer.float()
    assert calls(lambda: apply_linear(layer, x))
    monkeypatch.setattr(linears, "LEAST_ROW_MACS", 7 * 6 * 10 + 1)
    assert not calls(lambda: apply_linear(layer, x))


def test_replaced_layers_and_hooks_are_heard(onednn):
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x = torch.randn(7, 6)
    assert torch.allclose(apply_linear(doubled := Doubled(6, 10), x), doubled(x))
    layer = torch.nn.Linear(6, 10)
    layer.forward = lambda x: torch.zeros(len(x), 10)
    assert not apply_linear(layer, x).any()
    heard = []
    layer = torch.nn.Linear(6, 10)
    for register in (
        layer.register_forward_hook,
        layer.register_forward_pre_hook,
        layer.register_full_backward_hook,
        layer.register_full_backward_pre_hook,
        torch.nn.modules.module.register_module_forward_hook,
    ):
        handle = register(lambda *_: heard.append(1))
        apply_linear(layer, x).sum().backward()
        handle.remove()
    assert len(heard) == 5


def test_offloaded_weights(onednn):
    """accelerate keeps the weights elsewhere and brings them when a layer is called."""
    from accelerate.hooks import attach_align_device_hook

    layer, x = torch.nn.Sequential(torch.nn.Linear(6, 10)), torch.randn(7, 6)
    want = layer(x)
    weights = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    attach_align_device_hook(layer, execution_device="cpu", offload=True, weights_map=weights)
    assert torch.allclose(apply_linear(layer[0], x), want)


class Weight(torch.Tensor):
    """A tensor that knows how it is multiplied, as quantised and distributed ones do."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            return torch.full((len(args[0]), 10), 3.0)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_tensors_of_a_class_of_their_own(onednn):
    layer, x = torch.nn.Linear(6, 10), torch.randn(7, 6)
    layer.weight = torch.nn.Parameter(torch.randn(10, 6).as_subclass(Weight), requires_grad=False)
    assert (apply_linear(layer, x) == 3).all()
    assert (linear(x, torch.randn(10, 6).as_subclass(Weight)) == 3).all()


def test_transforms(onednn):
    x, weight, bias = torch.randn(7, 6), torch.randn(10, 6), torch.randn(10)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        mine, theirs = transform(linear)(x, weight, bias), transform(F.linear)(x, weight, bias)
        assert torch.allclose(mine, theirs, atol=1e-5)
    per_sample = torch.func.vmap(torch.func.grad(lambda row: linear(row[None], weight, bias).square().sum()))
    assert per_sample(x).shape == x.shape
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(linear(dual, weight, bias)).tangent
    assert torch.allclose(tangent, F.linear(torch.ones_like(x), weight), atol=1e-5)


def test_onednn_can_be_switched_off(onednn, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", None)
    with torch.backends.mkldnn.flags(enabled=False):
        assert linear(torch.randn(7, 6), torch.randn(10, 6)).shape == (7, 10)


PROCESSORS = [
    ("AuthenticAMD", "AVX512", True),
    ("GenuineIntel", "AVX512", False),
    ("AuthenticAMD", "AVX2", False),
]


@pytest.mark.parametrize(("vendor", "capability", "gains"), PROCESSORS)
def test_processors_that_torch_serves_well(monkeypatch, vendor, capability, gains):
    from routespace.nn.kernels import onednn as operator

    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(operator.Path, "exists", lambda _: True)
    monkeypatch.setattr(operator.Path, "read_text", lambda *_, **__: f"vendor_id : {vendor}")
    assert operator.is_faster() == gains


def test_the_choice_ends_with_its_block():
    before = onednn_is_used()
    with products("torch"):
        assert not onednn_is_used()
        with pytest.raises(SpecError), products("onednn"):
            raise SpecError(str(onednn_is_used()))
        assert not onednn_is_used()
    assert onednn_is_used() == before
    with pytest.raises(SpecError, match="'mkl' is not known; give one of auto, torch, onednn"), products("mkl"):
        pass


# What a torch that has renamed its private parts looks like. Each line is run before routespace is imported.
RENAMINGS = {
    "dropped": "import sys; sys.modules['routespace.nn.kernels.onednn'] = None",
    "probed": "del torch._C._are_functorch_transforms_active",
    "hooks": "del torch.nn.modules.module._has_any_global_hook",
    "their operator": "torch.ops.mkldnn = None",
}


@pytest.mark.parametrize(
    "renaming",
    [
        pytest.param(code, id=name, marks=() if name == "probed" else pytest.mark.slow)
        for name, code in RENAMINGS.items()
    ],
)
def test_networks_do_without_what_torch_has_renamed(renaming):
    code = f"""
import pathlib, torch
from torch.nn import functional as F
{renaming}
own = pathlib.Path.read_text
def read(path, *rest, **more):
    assert path.name != "cpuinfo", "nothing about the processor is read at an import"
    return own(path, *rest, **more)
pathlib.Path.read_text = read
from routespace.nn.kernels import linear as linears
pathlib.Path.read_text = lambda *_, **__: "AuthenticAMD"
torch.backends.cpu.get_cpu_capability = lambda: "AVX512"
torch.backends.mkl.is_available = lambda: True
linears.LEAST_MAP_MACS = linears.LEAST_ROW_MACS = linears.LEAST_WEIGHTS = 0
layer, x = torch.nn.Linear(6, 10), torch.randn(7, 6)
assert torch.allclose(linears.apply_linear(layer, x), layer(x), atol=1e-5)
assert torch.allclose(linears.weight_grad(x, x), x.t() @ x, atol=1e-5)
print(linears.onednn_is_used())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == str(renaming == RENAMINGS["hooks"])


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.12"), reason="torch 2.11 takes each compilation for an export"
)
def test_compiled_functions_hold_the_choice(onednn):
    layer, x = torch.nn.Linear(6, 10), torch.randn(7, 6)
    found = []

    def keep(graph, _):
        found.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    function = torch.compile(lambda x: apply_linear(layer, x), backend=keep, fullgraph=True)
    assert torch.allclose(function(x), layer(x), atol=1e-5)
    with products("torch"):
        function(x)
    assert ["routespace.linear" in "".join(targets) for targets in found] == [True, False]


def test_exported_graphs_hold_torchs_operators(onednn):
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(6, 10)

        def forward(self, x):
            return apply_linear(self.layer, x)

    program = torch.export.export(Two(), (torch.randn(4, 6),))
    assert not any("routespace" in str(node.target) for node in program.graph.nodes)
    traced = torch.jit.trace(Two(), torch.randn(4, 6))
    assert "routespace::" not in str(traced.inlined_graph)
    net = net_of("pvt_v2")
    net.decide(execution="packed")
    images = torch.randn(2, 3, 32, 32)
    assert calls(lambda: net(images))
    program = torch.export.export(net.as_module(), (images,))
    assert not any("routespace" in str(node.target) for node in program.graph.nodes)


def net_of(family: str) -> TaskNet:
    torch.manual_seed(0)
    own = {} if family == "pvt_v2" else {"sr_ratios": None, "window": 4}
    spec = GridSpec.parse({**TINY_GRID, "family": family, "depths": 2, **own})
    return TaskNet.classifier(Architecture.routed(RoutingGrid(spec), "depth"), GateSpec()).eval()


def outcome(net: TaskNet, images: torch.Tensor, routes: Routes) -> list[torch.Tensor]:
    net.zero_grad()
    logits = net(images, routes=routes).logits
    logits.square().sum().backward()
    with torch.inference_mode():
        again = net(images, routes=routes).logits
    return [logits.detach(), again, *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


@pytest.mark.parametrize("family", ["pvt_v2", "swin_v2"])
@pytest.mark.parametrize("execution", ["dense", "packed"])
def test_networks(onednn, family, execution):
    net, images = net_of(family), torch.randn(3, 3, 32, 32)
    net.decide(execution=execution)
    routes = Routes.random(net, images, keep=0.4)
    mine = outcome(net, images, routes)
    assert calls(lambda: net(images, routes=routes))
    with products("torch"):
        assert not calls(lambda: net(images, routes=routes))
        reference = outcome(net, images, routes)
    for found, theirs in zip(mine, reference, strict=True):
        assert (found - theirs).norm() <= 1e-4 * theirs.norm() + 1e-6


@pytest.mark.slow
def test_compiled_steps(onednn):
    torch.compiler.reset()
    net, images = net_of("pvt_v2"), torch.randn(3, 3, 32, 32)
    net.decide(execution="packed")
    routes = Routes.random(net, images, keep=0.4)
    net.compile_blocks()
    mine = outcome(net, images, routes)
    forward = calls(lambda: net(images, routes=routes))  # with autograd: in inference keys are products, too
    step = calls(lambda: net(images, routes=routes).logits.sum().backward())
    assert step == 3 * forward  # and both gradients
    assert forward or torch.__version__ < "2.12"  # there each compilation calls itself an export
    net.compile_blocks(False)
    with products("torch"):
        reference = outcome(net, images, routes)
    for found, theirs in zip(mine, reference, strict=True):
        assert (found - theirs).norm() <= 1e-3 * theirs.norm() + 1e-5
    torch.compiler.reset()


def test_what_the_compiler_is_told_is_what_torch_itself_tells_it():
    def ours():
        return 1

    def theirs():
        return 1

    assert assume_constant_result(ours).__dict__ == torch.compiler.assume_constant_result(theirs).__dict__
