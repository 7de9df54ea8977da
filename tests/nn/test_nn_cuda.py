"""A whole routed network on CUDA: every way of computing it gives what the CPU's reference gives."""

import copy

import pytest
import torch

from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import TaskNet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"
SIZE = (64, 96)
FAMILIES = {"pvt_v2": {"sr_ratios": [2, 1, 1]}, "swin_v2": {"window": 4}}


@pytest.fixture(autouse=True)
def _exact_products():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def make_net(family: str = "pvt_v2", **gates: object) -> TaskNet:
    torch.manual_seed(0)
    grid = RoutingGrid(
        GridSpec(
            layers=3, max_down=16, depths=2, image_size=SIZE, num_classes=5, family=family,
            widths=[16, 32, 64], heads=[1, 2, 4], mlp_ratios=[2, 2, 2], **FAMILIES[family],
        )
    )  # fmt: skip
    net = TaskNet.classifier(Architecture.routed(grid, "depth"), GateSpec(**gates))
    for parameter in net.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return net


def grads(net: TaskNet, images: torch.Tensor, routes: Routes) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    net.zero_grad()
    logits = net(images, routes=routes).logits
    logits.float().square().sum().backward()
    found = {name: p.grad.float().cpu() for name, p in net.named_parameters() if p.grad is not None}
    return logits.detach().float().cpu(), found


@pytest.mark.parametrize("keys", ["all", "kept"])
@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("execution", ["dense", "packed", "auto"])
def test_same_as_on_the_cpu(family, execution, keys):
    net = make_net(family, keys=keys).train()
    images = torch.randn(5, 3, *SIZE)
    routes = Routes.random(net, images, keep=0.4, seed=1)
    logits, expected = grads(net, images, routes)
    there = copy.deepcopy(net).to(DEVICE)
    there.decide(execution=execution)
    found, got = grads(there, images.to(DEVICE), Routes.random(there, images.to(DEVICE), keep=0.4, seed=1))
    assert (logits - found).abs().max() < 1e-4
    largest = max(grad.norm() for grad in expected.values())
    for name, grad in expected.items():
        assert (grad - got[name]).norm() < 1e-3 * grad.norm() + 1e-6 * largest, name


@torch.no_grad()
def test_half_precision_attends_to_packed_queries():
    net = make_net().eval().to(DEVICE, torch.bfloat16)
    images = torch.randn(5, 3, *SIZE, device=DEVICE, dtype=torch.bfloat16)
    routes = Routes.random(net, images, keep=0.4, seed=1)
    dense = net(images, routes=routes).logits
    net.decide(execution="packed")
    assert (net(images, routes=routes).logits - dense).abs().max() < 0.05 * dense.abs().max()


@torch.no_grad()
def test_compiled_blocks():
    net = make_net().eval().to(DEVICE)
    images = torch.randn(5, 3, *SIZE, device=DEVICE)
    routes = Routes.random(net, images, keep=0.4, seed=1)
    dense = net(images, routes=routes).logits
    net.compile_blocks()
    net.decide(execution="packed")
    assert (net(images, routes=routes).logits - dense).abs().max() < 1e-3


@torch.no_grad()
def test_capacity_is_captured_as_a_graph():
    """Top-k keeps every shape, and nothing waits: a graph replays with other images, and decides anew for them."""
    net = make_net(capacity=True, keep=0.4).eval().to(DEVICE)
    for gate in net.gates.values():
        torch.nn.init.normal_(gate.ema_weight)
    net.decide(execution="packed")
    first, second = torch.randn(2, 5, 3, *SIZE, device=DEVICE)
    fixed = first.clone()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(2):
            net(fixed)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = net(fixed).logits
    for images in (first, second):
        fixed.copy_(images)
        graph.replay()
        assert (captured - net(images).logits).abs().max() < 1e-4
