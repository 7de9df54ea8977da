"""What a forward pass needs to know to decide: where it comes from, and who may change it."""

import torch

from routespace.deploy.extract import extract
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.task_net import TaskNet

GRID = RoutingGrid(
    GridSpec.parse(
        {
            "layers": 2,
            "max_down": 8,
            "widths": (8, 16),
            "heads": (1, 2),
            "mlp_ratios": (2, 2),
            "sr_ratios": (2, 1),
            "image_size": 32,
            "num_classes": 5,
        }
    )
)


def make_net(**gates) -> TaskNet:
    torch.manual_seed(0)
    return TaskNet.classifier(Architecture.full(GRID), GateSpec(**gates))


def test_the_noise_of_the_spec_is_the_networks():
    """At 0 the decisions of training are those of inference, from the first pass on."""
    net = make_net(noise=0.0, openness=0.5).train()
    images = torch.randn(2, 3, 32, 32)
    first, second = net(images).routes, net(images).routes
    assert all(torch.equal(route.kept, second[name].kept) for name, route in first.items())
    noisy = make_net(noise=3.0, openness=0.5).train()
    first, second = noisy(images).routes, noisy(images).routes
    assert any(not torch.equal(route.kept, second[name].kept) for name, route in first.items())
    assert extract(noisy, noisy.architecture).backbone.noise == 3.0
