"""A network among other torch modules."""

import copy
from functools import cache

import pytest
import timm.utils
import torch
from tiny_grid import TINY_GRID
from torch import nn

from routespace.deploy.counters import fvcore_macs, torch_macs
from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.cost import network_cost
from routespace.nn.module import unwrap
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import TaskNet
from routespace.nn.usage import measure_usage
from routespace.nn.weights import load_net, save_net
from routespace.train.budget import budget_loss
from routespace.train.calibrate import calibrate_threshold
from routespace.train.controls import object_auc, oracle_routes
from routespace.train.evaluate import evaluate

WRAPPERS = {
    "torch.compile": lambda net: torch.compile(net, backend="eager"),
    "DataParallel": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "timm's average": timm.utils.ModelEmaV3,
    "two": lambda net: nn.DataParallel(torch.compile(net, backend="eager")),
}


def tiny_net(**changes) -> TaskNet:
    torch.manual_seed(0)
    return TaskNet.classifier(Architecture.full(RoutingGrid(GridSpec(**TINY_GRID | changes)))).eval()


@pytest.fixture(params=WRAPPERS.values(), ids=list(WRAPPERS))
def wrapped(request):
    return request.param(tiny_net())


def test_a_wrapper_is_taken_off(wrapped):
    assert type(unwrap(wrapped, wanted=TaskNet)) is TaskNet


def test_what_is_not_wrapped_stays():
    net = tiny_net()
    assert unwrap(net) is net
    other = nn.Sequential(nn.Linear(1, 1))
    assert unwrap(other) is other


@pytest.mark.parametrize("other", [nn.Linear(1, 1), nn.DataParallel(nn.Linear(1, 1))])
def test_another_module_is_refused_by_its_class(other):
    with pytest.raises(SpecError, match="a Linear was given; give a TaskNet"):
        unwrap(other, wanted=TaskNet)


def test_a_wrapped_network_is_saved_as_what_it_wraps(wrapped, tmp_path):
    save_net(wrapped, tmp_path)
    loaded, net = load_net(tmp_path), unwrap(wrapped)
    assert list(loaded.state_dict()) == list(net.state_dict())


def test_a_wrapped_network_is_measured(wrapped):
    images = torch.randn(2, 3, 32, 32)
    assert measure_usage(wrapped, [images]) == measure_usage(copy.deepcopy(unwrap(wrapped)), [images])


@cache
def counts():
    """Two counts of the network that is wrapped, which take as long as all the rest."""
    return torch_macs(tiny_net(), meta=False), fvcore_macs(tiny_net())


def test_a_wrapped_network_is_counted_evaluated_and_calibrated(wrapped):
    assert (torch_macs(wrapped, meta=False), fvcore_macs(wrapped)) == counts()
    batches = [(torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.long))]
    found = evaluate(wrapped, batches, expected=False)
    assert found["images"] == 4
    assert calibrate_threshold(wrapped, batches, found["counted_macs"]).met


def test_a_wrapped_network_is_priced_and_compared_with_objects(wrapped):
    net, images = unwrap(wrapped), torch.randn(2, 3, 32, 32)
    objects = [{"boxes": torch.tensor([[2.0, 3.0, 14.0, 20.0]])}] * 2
    assert network_cost(wrapped) == network_cost(net)
    assert budget_loss(wrapped, net(images).routes, macs=1e6) == budget_loss(net, net(images).routes, macs=1e6)
    assert object_auc(wrapped, [(images, objects)]) == object_auc(net, [(images, objects)])
    for given, own in (
        (Routes.random(wrapped, images, keep=0.5), Routes.random(net, images, keep=0.5)),
        (oracle_routes(wrapped, images, objects), oracle_routes(net, images, objects)),
    ):
        assert all(torch.equal(given[name].kept, route.kept) for name, route in own.items())


def test_another_module_has_no_budget_and_no_objects():
    images = torch.randn(1, 3, 32, 32)
    for call in (
        lambda other: budget_loss(other, Routes({}), macs=1e6),
        lambda other: object_auc(other, []),
        lambda other: oracle_routes(other, images, []),
    ):
        with pytest.raises(SpecError, match=r"a Linear was given; give a .*TaskNet"):
            call(nn.Linear(1, 1))
