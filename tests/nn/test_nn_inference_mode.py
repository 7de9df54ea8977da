"""Networks that are made under `torch.inference_mode()` can be trained."""

import copy

import pytest
import torch
from tiny_grid import TINY_GRID

from routespace.deploy.bundle import Card, load_bundle, save_bundle
from routespace.deploy.extract import extract
from routespace.deploy.verify import verify
from routespace.grid.architecture import Architecture
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.heads.kinds import make_head
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet, as_task_net
from routespace.nn.weights import load_net, save_net

FULL = Architecture.full(RoutingGrid(GridSpec(**TINY_GRID)))
PART = Architecture.staircase(FULL.grid)
SWIN = GridSpec.parse({**TINY_GRID, "sr_ratios": None, "family": "swin_v2", "window": 4})


def saved(net: TaskNet, folder) -> TaskNet:
    save_net(net, folder)
    return load_net(folder)


def bundled(net: TaskNet, folder) -> TaskNet:
    save_bundle(net, folder / "net", Card.of(net))
    return load_bundle(folder / "net").net


MAKERS = {
    "classifier": lambda folder: TaskNet.classifier(FULL),
    "backbone": lambda folder: as_task_net(RouteNet(FULL)),
    "swin_v2": lambda folder: TaskNet.classifier(Architecture.full(RoutingGrid(SWIN))),
    "head": lambda folder: TaskNet(RouteNet(FULL), make_head(FULL.spec, {"kind": "classify"})),
    "restrict": lambda folder: TaskNet.classifier(FULL).restrict(PART),
    "extract": lambda folder: extract(TaskNet.classifier(FULL), PART),
    "load_net": lambda folder: saved(TaskNet.classifier(FULL), folder),
    "load_bundle": lambda folder: bundled(TaskNet.classifier(FULL), folder),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_it_can_be_trained(make, tmp_path):
    with torch.inference_mode():
        net = make(tmp_path)
    assert not any(tensor.is_inference() for tensor in (*net.parameters(), *net.buffers()))
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    found = net.as_module()(torch.randn(2, 3, 32, 32))
    sum(x.sum() for x in (found if isinstance(found, tuple) else [found])).backward()
    optimizer.step()
    net.backbone.update_gate_ema()


def test_what_is_made_there_is_verified_there():
    """Operators are counted as anywhere else."""
    with torch.inference_mode():
        supernet = copy.deepcopy(TaskNet.classifier(FULL))
        report = verify(supernet, PART, extract(supernet, PART))
    assert report.ok, str(report)


def test_a_network_that_has_only_inferred_trains_on():
    net = TaskNet.classifier(FULL).eval()
    with torch.inference_mode():
        net(torch.randn(2, 3, 32, 32))
    net.train()(torch.randn(2, 3, 32, 32)).logits.sum().backward()
