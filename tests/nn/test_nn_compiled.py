"""Compiled blocks: the same results, and one graph for every keep ratio, mask and block of a width."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo.config as limits
from torch._dynamo.utils import counters

from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.families.compiled import compiled
from routespace.nn.families.parts import BYTES_AT_ONCE, image_parts
from routespace.nn.routing.routes import EdgeRoute, Routes
from routespace.nn.task_net import TaskNet


def small_net(**gates) -> TaskNet:
    torch.manual_seed(0)
    spec = GridSpec.parse(
        {
            "layers": 2,
            "max_down": 8,
            "widths": (16, 32),
            "heads": (1, 2),
            "mlp_ratios": (4, 2),
            "sr_ratios": (2, 1),
            "depths": 2,
            "image_size": 64,
            "num_classes": 5,
            "embed_layers": (1,),
        }
    )
    return TaskNet.classifier(Architecture.routed(RoutingGrid(spec), "depth"), GateSpec(**gates))


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    compiled.cache_clear()
    counters.clear()


def test_other_programs_keep_their_recompile_limit():
    before = limits.recompile_limit
    compiled(lambda block, x, hw: x + 1, (1, 1))
    assert limits.recompile_limit == before


@pytest.mark.slow
def test_one_graph_serves_every_keep_ratio_and_mask():
    net = small_net().eval()
    net.decide(execution="packed")
    with torch.no_grad():
        for batch, keep in [(2, 0.5), (3, 0.25), (5, 0.8), (2, 0.1)]:
            images = torch.randn(batch, 3, 64, 64)
            routes = dict(Routes.random(net, images, keep=keep, seed=batch))
            if batch == 5:  # ragged: the first image keeps one token, the last all
                for name, route in routes.items():
                    share = torch.linspace(0, 1, batch)[:, None]
                    kept = torch.rand(route.kept.shape) < share
                    kept[:, 0] = True
                    routes[name] = EdgeRoute(kept, kept.float())
            eager = net.compile_blocks(False)(images, routes=Routes(routes)).logits
            fused = net.compile_blocks()(images, routes=Routes(routes)).logits
            assert (eager - fused).abs().max() < 1e-4
    assert counters["stats"]["unique_graphs"] == 2  # one a width
    assert not counters["graph_break"]


@pytest.mark.slow
def test_one_image():
    net = small_net().eval()
    net.decide(execution="packed")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for keep in (0.5, 0.9, 0.1):
            routes = Routes.random(net, images, keep=keep)
            eager = net.compile_blocks(False)(images, routes=routes).logits
            assert (net.compile_blocks()(images, routes=routes).logits - eager).abs().max() < 1e-4
    assert counters["stats"]["unique_graphs"] == 2  # one a width


@pytest.mark.slow
def test_parts_change_nothing(monkeypatch):
    net = small_net().eval()
    static = net.restrict(net.architecture.opened())
    images = torch.randn(5, 3, 64, 64)
    routes = Routes.random(net, images, keep=0.4)
    for module in net.modules():
        if isinstance(module, torch.nn.Linear):  # as timm begins, biases are zero
            torch.nn.init.normal_(module.bias)
    with torch.no_grad():
        for model, given in ((net.decide(execution="packed"), routes), (static, None)):
            want = model.compile_blocks(False)(images, routes=given).logits
            model.compile_blocks()
            for at_once in (BYTES_AT_ONCE, 1):
                for name in ("BYTES_AT_ONCE", "PACKED_BYTES_AT_ONCE"):
                    monkeypatch.setattr(f"routespace.nn.families.parts.{name}", at_once)
                assert (model(images, routes=given).logits - want).abs().max() < 1e-4


@torch.no_grad()
def test_sizes_of_parts():
    """Parts are even; a compiled step's follow the bytes of the rows that it computes."""
    maps = torch.zeros(8, 3136, 64)
    row_bytes = 512 * 4
    assert image_parts(maps) == [4, 4]
    assert image_parts(maps, row_bytes=row_bytes) == [1] * 8
    assert image_parts(maps, row_bytes=row_bytes, packed=True) == [2] * 4
    assert image_parts(maps, row_bytes=row_bytes, share=0.5, packed=True) == [4, 4]
    assert image_parts(maps[:7], row_bytes=row_bytes, share=0.5, packed=True) == [4, 3]
    assert image_parts(maps, row_bytes=row_bytes, share=0.25, packed=True) == [8]
    assert image_parts(maps, row_bytes=4 * row_bytes, packed=True) == [2] * 4
    assert image_parts(maps[:1], row_bytes=row_bytes, packed=True) == [1]
    assert image_parts(maps[:3], row_bytes=row_bytes, packed=True) == [3]
    assert image_parts(maps[:0], row_bytes=row_bytes) == [0]
    with torch.enable_grad():
        assert image_parts(maps, row_bytes=row_bytes) == [8]


@pytest.mark.slow
@pytest.mark.parametrize("keys", ["all", "kept"])
def test_gradients(keys):
    net = small_net(keys=keys).eval()
    images = torch.randn(3, 3, 64, 64)
    routes = Routes.random(net, images, keep=0.4)
    found = []
    for execution, on in (("dense", False), ("packed", True), ("dense", True)):
        net.compile_blocks(on)
        net.decide(execution=execution)
        net.zero_grad()
        net(images, routes=routes).logits.square().sum().backward()
        found.append({k: p.grad.clone() for k, p in net.named_parameters() if p.grad is not None})
    largest = max(grad.norm() for grad in found[0].values())
    for other in found[1:]:
        for name, grad in found[0].items():
            assert (grad - other[name]).norm() < 1e-3 * grad.norm() + 1e-6 * largest, name


@pytest.mark.slow
def test_capacity_compiled():
    net = small_net(capacity=True, keep=0.3).eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        want = net(images).logits
        net.decide(execution="packed")
        assert (net.compile_blocks()(images).logits - want).abs().max() < 1e-4


@pytest.mark.slow
def test_again_in_another_process(tmp_path):
    """What torch remembers on disk of a first process (graphs, sizes that varied) must not break a second one."""
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import test_nn_compiled as test;"
        "net = test.small_net().decide(execution='packed'); images = torch.randn(3, 3, 64, 64);"
        "routes = test.Routes.random(net, images, keep=.4);"
        "net.compile_blocks()(images, routes=routes).logits.square().sum().backward()"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    for _ in range(2):
        done = subprocess.run(
            command, env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
