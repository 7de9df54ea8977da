"""Routes and outputs among torch's tree functions, and as text."""

import copy
import io

import pytest
import torch
from tiny_grid import TINY_GRID
from torch.utils import _pytree as pytree

from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.routing.routes import EdgeRoute, Routes
from routespace.nn.task_net import TaskNet


@pytest.fixture(scope="module")
def net() -> TaskNet:
    torch.manual_seed(0)
    return TaskNet.classifier(Architecture.full(RoutingGrid(GridSpec(**TINY_GRID))), GateSpec(openness=0.5)).eval()


def test_torch_sees_the_tensors_in_an_output(net):
    out = net(torch.randn(2, 3, 32, 32))
    leaves, shape = pytree.tree_flatten(out)
    kept = {id(route.kept) for route in out.routes.values()}
    assert kept <= {id(leaf) for leaf in leaves}
    again = pytree.tree_unflatten(leaves, shape)
    assert type(again) is type(out)
    assert list(again.routes) == list(out.routes)
    assert all(torch.equal(again.routes[name].kept, route.kept) for name, route in out.routes.items())


def test_decisions_keep_their_names_in_torchs_tree(net):
    routes = Routes.random(net, torch.randn(2, 3, 32, 32), keep=0.5)
    paths, _ = pytree.tree_flatten_with_path(routes)
    assert all(any(name in pytree.keystr(path) for name in routes) for path, _ in paths)


@pytest.mark.slow
def test_the_network_itself_exports(net):
    images = torch.randn(3, 3, 32, 32)
    program = torch.export.export(net, (images,), dynamic_shapes={"images": {0: torch.export.Dim("b", min=2)}})
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    out = torch.export.load(file).module()(torch.randn(5, 3, 32, 32))
    assert list(out.routes) == list(net(images).routes)
    program.module()(images)


def test_recorded_decisions_are_replayed_by_an_export(net):
    images = torch.randn(3, 3, 32, 32)
    routes = [Routes.random(net, images, keep=0.5, seed=seed) for seed in (0, 1)]
    program = torch.export.export(net, (images,), {"routes": routes[0]}).module()
    for given in routes:
        assert torch.allclose(program(images, routes=given)[0], net(images, routes=given)[0], atol=1e-5)


def test_routes_are_told_as_text():
    kept = torch.tensor([[True, True, True, False], [False] * 4])
    whole = torch.tensor([[True], [False]])
    routes = Routes({"l00_r04_transformer": EdgeRoute(kept, kept.float()), "a": EdgeRoute(whole, whole.float())})
    assert repr(routes).splitlines() == [
        "Routes(",
        "  l00_r04_transformer  computed 0.38 of 4 tokens an image, 1 of 2 images",
        "  a                    computed 0.50 of images whole, 1 of 2 images",
        ")",
    ]
    assert repr(Routes({})) == "Routes(every edge computed everything)"


def test_decisions_without_numbers_are_told_by_their_shape(net):
    away = copy.deepcopy(net).to("meta")
    assert "decisions of shape (2, 64)" in repr(away(torch.randn(2, 3, 32, 32, device="meta")).routes)
