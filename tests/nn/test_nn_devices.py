"""A whole routed network on each device: every way of computing it gives what the CPU's reference gives."""

import copy

import pytest
import torch
from devices import SLOW_ON_A_CPU, recorded
from thinning import thinned

from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import TaskNet

SIZE = (64, 96)
IMAGES = 5
FAMILIES = {"pvt_v2": {"sr_ratios": [2, 1, 1]}, "swin_v2": {"window": 4}}
# Of the greatest logit, or of a gradient's norm: what some roundings of the type amount to in this network.
HALF = {torch.bfloat16: 0.06, torch.float16: 0.01}


def make_net(family: str = "pvt_v2", routing: str = "depth", heads=(1, 2, 4), **gates: object) -> TaskNet:
    torch.manual_seed(0)
    grid = RoutingGrid(
        GridSpec(
            layers=3, max_down=16, depths=2, image_size=SIZE, num_classes=5, family=family,
            widths=[16, 32, 64], heads=heads, mlp_ratios=[2, 2, 2], **FAMILIES[family],
        )
    )  # fmt: skip
    net = TaskNet.classifier(Architecture.routed(grid, routing), GateSpec(**gates))
    for parameter in net.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    for gate in net.gates.values():  # gates that open here and close there
        torch.nn.init.normal_(gate.ema_weight)
    return net


def pixels(seed: int = 1) -> torch.Tensor:
    return torch.randn(IMAGES, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def grads(net: TaskNet, images: torch.Tensor, routes: Routes) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    net.zero_grad()
    logits = net(images, routes=routes).logits
    logits.float().square().sum().backward()
    found = {name: p.grad.float().cpu() for name, p in net.named_parameters() if p.grad is not None}
    return logits.detach().float().cpu(), found


def reference(net: TaskNet) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and gradients, computed densely on the CPU."""
    images = pixels()
    return grads(net, images, Routes.random(net, images, keep=0.4, seed=1))


def on_device(net: TaskNet, device: torch.device, **how: object) -> tuple[TaskNet, torch.Tensor, Routes]:
    """A copy there, the images and the decisions of `reference`."""
    there, images = copy.deepcopy(net).to(device), pixels().to(device)
    there.decide(**how)
    return there, images, Routes.random(there, images, keep=0.4, seed=1)


def assert_same(expected, found, tolerance: float) -> None:
    (logits, wanted), (given, got) = expected, found
    assert (logits - given).abs().max() < tolerance * max(1.0, float(logits.abs().max()))
    largest = max(grad.norm() for grad in wanted.values())
    for name, grad in wanted.items():  # a gradient that is all rounding has no relative error
        assert (grad - got[name]).norm() < 10 * tolerance * grad.norm() + tolerance / 10 * largest, name


@pytest.mark.parametrize(
    *thinned(family=list(FAMILIES), execution=["dense", "packed", "auto"], keys=["all", "kept"])
)
def test_same_as_on_the_cpu(family, execution, keys, device):
    net = make_net(family, keys=keys).train()
    found = grads(*on_device(net, device, execution=execution))
    assert_same(reference(net), found, 1e-4)


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("execution", ["dense", "packed", "auto"])
def test_own_decisions_are_the_cpus(family, execution, device):
    """Of gates at each place: rows by token, patch embeddings by groups, in inference."""
    net = make_net(family, "both", columns="token").eval()
    there, images = copy.deepcopy(net).to(device), pixels().to(device)
    there.decide(execution=execution)
    with torch.no_grad():
        expected, found = net(pixels()), there(images)
    assert (expected.logits - found.logits.cpu()).abs().max() < 1e-4
    for name, route in expected.routes.items():
        assert torch.equal(route.kept, found.routes[name].kept.cpu()), name
    kept = torch.cat([route.kept.flatten() for route in expected.routes.values()]).float()
    assert 0.1 < kept.mean() < 0.9


@pytest.mark.parametrize(
    *thinned(family=list(FAMILIES), execution=["dense", "packed", "auto"], dtype=list(HALF)), ids=str
)
def test_autocast(family, execution, dtype, device):
    """A training step in half precision: packed queries go to an attention of their own there."""
    net = make_net(family).train()
    there, images, routes = on_device(net, device, execution=execution)
    with torch.autocast(device.type, dtype):
        found = grads(there, images, routes)
    (logits, wanted), (given, got) = reference(net), found
    tolerance = HALF[dtype]
    assert (logits - given).abs().max() < tolerance * logits.abs().max()
    whole, other = (torch.cat([some[name].flatten() for name in wanted]) for some in (wanted, got))
    assert (whole - other).norm() < 2 * tolerance * whole.norm()


@pytest.mark.parametrize("heads", [(1, 2, 4), (4, 8, 16)], ids=str)  # of 16 numbers, and of 4: too few for flash
@pytest.mark.parametrize("family", list(FAMILIES))
@torch.no_grad()
def test_weights_in_half_precision(family, heads, device):
    net = make_net(family, heads=heads).eval().to(torch.bfloat16)
    there, images, routes = on_device(net, device)
    expected = net(pixels().bfloat16(), routes=Routes.random(net, pixels(), keep=0.4, seed=1)).logits.float()
    for execution in ("dense", "packed", "auto"):
        there.decide(execution=execution)
        found = there(images.bfloat16(), routes=routes).logits.float().cpu()
        assert (found - expected).abs().max() < 0.06 * expected.abs().max(), execution


@pytest.mark.parametrize("device", SLOW_ON_A_CPU, indirect=True)
@pytest.mark.parametrize("keys", ["all", "kept"])
def test_compiled_blocks(keys, device):
    """Inference and training, everything and packed; a compiled step serves other batches and decisions."""
    net = make_net(keys=keys).train()
    there, images, routes = on_device(net, device, execution="packed")
    there.compile_blocks()
    assert_same(reference(net), grads(there, images, routes), 1e-4)
    with torch.no_grad():
        for count, keep in ((5, 0.4), (3, 0.7), (2, 1.0)):
            some = pixels()[:count]
            expected = net(some, routes=Routes.random(net, some, keep=keep, seed=2)).logits
            routes = Routes.random(there, images[:count], keep=keep, seed=2)
            assert (there(images[:count], routes=routes).logits.cpu() - expected).abs().max() < 1e-4


@pytest.mark.parametrize("device", SLOW_ON_A_CPU, indirect=True)
def test_compiled_blocks_in_autocast(device):
    net = make_net().train()
    there, images, routes = on_device(net, device, execution="packed")
    there.compile_blocks()
    with torch.autocast(device.type, torch.bfloat16):
        logits, got = grads(there, images, routes)
    expected, wanted = reference(net)
    assert (logits - expected).abs().max() < 0.06 * expected.abs().max()
    whole, other = (torch.cat([some[name].flatten() for name in wanted]) for some in (wanted, got))
    assert (whole - other).norm() < 0.12 * whole.norm()


def test_checkpointing(device):
    net = make_net().train()
    there, images, routes = on_device(net, device, execution="packed")
    there.set_grad_checkpointing()
    assert_same(reference(net), grads(there, images, routes), 1e-4)


@torch.no_grad()
def test_capacity_is_captured_as_a_graph(device):
    """Top-k keeps every shape, and nothing waits: a graph replays with other images, and decides anew for them."""
    net = make_net(capacity=True, keep=0.4).eval().to(device)
    net.decide(execution="packed")
    first, second = pixels(1).to(device), pixels(2).to(device)
    fixed = first.clone()
    replay = recorded(lambda: net(fixed).logits, device)
    for images in (first, second):
        fixed.copy_(images)
        assert (replay() - net(images).logits).abs().max() < 1e-4


@pytest.mark.parametrize("device", SLOW_ON_A_CPU, indirect=True)
@torch.no_grad()
def test_compiled_capacity_is_captured_as_a_graph(device):
    net = make_net(capacity=True, keep=0.4).eval().to(device)
    fixed = pixels(1).to(device)
    expected = [net(pixels(seed).to(device)).logits for seed in (1, 2)]
    net.compile_blocks().decide(execution="packed")
    net(fixed)
    replay = recorded(lambda: net(fixed).logits, device)
    for seed, wanted in zip((1, 2), expected, strict=True):
        fixed.copy_(pixels(seed))
        assert (replay() - wanted).abs().max() < 1e-3
