"""Timing a routed network: what is compared, and that the network is left as it was."""

import pytest
import torch

import routespace
from routespace import Architecture, GridSpec, RoutingGrid, TaskNet
from routespace.workflow.timing import routed_times


def test_a_timed_network_is_left_as_it_was():
    spec = GridSpec(layers=2, max_down=8, size="b0", image_size=32, num_classes=3)
    net = TaskNet.classifier(Architecture.full(RoutingGrid(spec)), execution="packed").eval()
    threads = torch.get_num_threads()
    times = routed_times(net, torch.randn(2, 3, 32, 32), rounds=2)
    assert times.keys() == {"dense", "routed"}
    assert all(seconds > 0 for seconds in times.values())
    assert (net.execution, net.compiled, torch.get_num_threads()) == ("packed", False, threads)
    net.train().backbone.stem.eval()  # frozen, as some fine-tuning wants it
    modes = [module.training for module in net.modules()]
    routed_times(net, torch.randn(2, 3, 32, 32), rounds=1)
    assert [module.training for module in net.modules()] == modes
    with pytest.raises(routespace.SpecError):
        routed_times(net, torch.randn(2, 5, 32, 32), rounds=1)
    assert [module.training for module in net.modules()] == modes
    assert (net.execution, torch.get_num_threads()) == ("packed", threads)


def test_what_it_is_compared_with_computes_everything():
    grid = RoutingGrid(GridSpec(layers=3, max_down=16, image_size=32))
    for architecture in (
        Architecture.full(grid),
        Architecture.routed(grid, "depth"),
        Architecture.staircase(grid),
    ):
        opened = architecture.opened()
        assert opened.is_static
        assert architecture.contains(opened)
        computed = {name for name in architecture.edges if not name.endswith("identity")}
        assert {name for name in opened.edges if not name.endswith("identity")} == computed
