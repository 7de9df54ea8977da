"""Which mode is fastest: what is timed, what follows from it, and that the network is left as it was."""

import pytest
import torch

import routespace
from routespace import Architecture, GridSpec, RoutingGrid, TaskNet
from routespace.workflow.modes import ModeTimes, mode_times


@pytest.fixture
def net() -> TaskNet:
    spec = GridSpec(layers=2, max_down=8, size="b0", image_size=32, num_classes=3)
    return TaskNet.classifier(Architecture.full(RoutingGrid(spec)), execution="packed")


def test_the_fastest_of_each_and_their_ratio():
    times = ModeTimes({"eager": 0.4, "compiled": 0.5}, {0.5: {"packed": 0.3, "packed, compiled": 0.2}})
    assert times.best() == ("eager", 0.4)
    assert times.best(0.5) == ("packed, compiled", 0.2)
    assert times.ratio(0.5) == 0.5
    assert times.as_data() == {
        "dense_ms": {"eager": 400, "compiled": 500},
        "best": "eager",
        "routed": [
            {"keep": 0.5, "ms": {"packed": 300, "packed, compiled": 200}, "best": "packed, compiled", "ratio": 0.5}
        ],
    }


def test_eager_modes_and_a_network_left_as_it_was(net):
    net.train().backbone.stem.eval()  # frozen, as some fine-tuning wants it
    modes, threads = [module.training for module in net.modules()], torch.get_num_threads()
    times = mode_times(net, torch.randn(2, 3, 32, 32), keeps=(1.0, 0.5), compiled=False, rounds=1)
    assert list(times.whole) == ["eager"]
    assert list(times.routed) == [1.0, 0.5]
    assert all(list(found) == ["masked", "packed", "auto"] for found in times.routed.values())
    assert all(seconds > 0 for found in times.routed.values() for seconds in found.values())
    assert [module.training for module in net.modules()] == modes
    assert (net.execution, net.compiled, torch.get_num_threads()) == ("packed", False, threads)


def test_a_static_network_and_a_family_without_compiled_steps(net):
    static = net.restrict(net.architecture.opened())
    assert mode_times(static, torch.randn(1, 3, 32, 32), compiled=False, rounds=1).routed == {}
    spec = GridSpec(layers=2, max_down=8, family="swin_v2", size="t", image_size=64, num_classes=3)
    swin = TaskNet.classifier(Architecture.routed(RoutingGrid(spec), "depth"))
    times = mode_times(swin, torch.randn(1, 3, 64, 64), keeps=(0.5,), rounds=1)
    assert list(times.whole) == ["eager"]
    assert list(times.routed[0.5]) == ["masked", "packed", "auto"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"keeps": (0.0,)}, "keep"),
        ({"keeps": (1.5,)}, "keep"),
        ({"rounds": 0}, "rounds"),
        ({"threads": 0}, "threads"),
        ({"threads": 2, "processor_time": True}, "clock"),
    ],
)
def test_bad_input(net, options, named):
    with pytest.raises(routespace.SpecError, match=named):
        mode_times(net, torch.randn(1, 3, 32, 32), compiled=False, **options)


@pytest.mark.slow
def test_compiled_modes(net):
    times = mode_times(net.eval(), torch.randn(2, 3, 32, 32), keeps=(0.5,), rounds=1, processor_time=True)
    assert list(times.whole) == ["eager", "compiled"]
    assert list(times.routed[0.5]) == ["masked", "packed", "packed, compiled", "auto", "auto, compiled"]
    assert not net.compiled
