"""Recorded inference gives what inference gives: by a tape of our own on the CPU, by CUDA graphs on a GPU."""

import pytest
import torch
from dense_tiny import dense_net
from devices import CUDA
from tiny_grid import TINY_GRID
from torch.utils._pytree import tree_leaves

from routespace import Architecture, GateSpec, GridSpec, Replayed, RoutingGrid, TaskNet
from routespace.nn.replayed import MOST_SHAPES
from routespace.nn.tape import SAME, CudaTape

GRID = RoutingGrid(GridSpec(**TINY_GRID))
CAPACITY = GateSpec(capacity=True, keep=0.5)
NETS = {
    "static": lambda: TaskNet.classifier(Architecture.staircase(GRID), execution="auto"),
    "masked": lambda: TaskNet.classifier(Architecture.full(GRID), GateSpec(openness=0.6)),
    "capacity": lambda: TaskNet.classifier(Architecture.routed(GRID, "depth"), CAPACITY, execution="packed"),
    "pixels": lambda: dense_net("semantic", classes=4, channels=32),
}


class PlayedTape:
    """Calls again what was recorded, and puts what it gives where the first call put it."""

    def __init__(self):
        self.recorded = self.replays = 0

    def live(self, call):
        return call()

    def record(self, call):
        found, self.recorded = call(), self.recorded + 1

        def replay():
            self.replays += 1
            for old, new in zip(tree_leaves(found), tree_leaves(call()), strict=True):
                if isinstance(old, torch.Tensor):
                    once = tuple(slice(None) if step else slice(1) for step in old.stride())  # of what is expanded
                    old[once].copy_(new[once])

        return found, replay


def images(count, seed, device="cpu"):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)).to(device)


@pytest.mark.parametrize("kind", NETS)
def test_it_gives_what_the_network_gives(kind):
    torch.manual_seed(0)
    net, tape = NETS[kind]().eval(), PlayedTape()
    fast = Replayed(net, tape=tape)
    for seed in range(SAME + 3):
        given, wanted = fast(images(2, seed)), net(images(2, seed))
        torch.testing.assert_close(given.outputs, wanted.outputs)
        assert given.routes.keys() == wanted.routes.keys()
        for name, route in wanted.routes.items():
            assert torch.equal(given.routes[name].kept, route.kept)
    assert (tape.recorded, tape.replays) == (1, 3)


def test_what_asks_the_device_is_not_recorded():
    packed = TaskNet.classifier(Architecture.routed(GRID, "depth"), GateSpec(openness=0.6), execution="packed")
    boxes = dense_net("detect", classes=3)
    for net in (packed.eval(), boxes.eval(), NETS["static"]().train()):
        tape = PlayedTape()
        fast = Replayed(net, tape=tape)
        for seed in range(SAME + 2):
            fast(images(2, seed))
        assert tape.recorded == 0


def test_each_shape_has_its_own_and_few_are_kept():
    net, tape = NETS["static"]().eval(), PlayedTape()
    fast = Replayed(net, tape=tape)
    counts = range(1, MOST_SHAPES + 2)
    for count in counts:
        for seed in range(SAME + 1):
            fast(images(count, seed))
    assert (tape.recorded, tape.replays) == (len(counts), len(counts))
    fast(images(MOST_SHAPES, 0))
    fast(images(1, 0))  # the first one has been dropped
    assert tape.replays == len(counts) + 1


def test_on_a_cpu_it_is_the_network():
    net = NETS["static"]().eval()
    torch.testing.assert_close(Replayed(net)(images(2, 0)).logits, net(images(2, 0)).logits)


@pytest.mark.parametrize("device", [CUDA], indirect=True)
@pytest.mark.parametrize("kind", NETS)
def test_graphs_give_what_the_network_gives(kind, device, monkeypatch):
    recorded, record = [], CudaTape.record
    monkeypatch.setattr(CudaTape, "record", lambda tape, call: recorded.append(call) or record(tape, call))
    torch.manual_seed(0)
    net = NETS[kind]().eval().to(device)
    fast = Replayed(net)
    for seed in range(SAME + 3):
        given = fast(images(2, seed, device))
        torch.testing.assert_close(given.outputs, net(images(2, seed, device)).outputs, rtol=1e-4, atol=1e-5)
    assert len(recorded) == 1
