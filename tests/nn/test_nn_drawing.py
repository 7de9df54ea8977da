"""Networks that are filled afterwards are made without drawing weights, and are otherwise the same."""

import pytest
import torch
from dense_tiny import PYRAMID_GRID
from tiny_grid import TINY_GRID
from torch import nn

from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.drawing import truncated_normal_, undrawn
from routespace.nn.heads.kinds import make_head
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet
from routespace.nn.weights import filled

SWIN = {name: value for name, value in TINY_GRID.items() if name != "sr_ratios"} | {
    "family": "swin_v2",
    "window": 4,
}
KINDS = {
    "pvt_v2": (TINY_GRID, {"kind": "classify"}),
    "swin_v2": (SWIN | {"family": "swin_v2", "window": 4}, {"kind": "classify"}),
    "detector": (PYRAMID_GRID, {"kind": "detect", "classes": 3, "width": 32}),
}


def make(kind: str) -> TaskNet:
    grid, head = KINDS[kind]
    spec = GridSpec.parse(grid)
    backbone = RouteNet(Architecture.full(RoutingGrid(spec)), GateSpec(skipped="mlp"))
    return TaskNet(backbone, make_head(spec, head))


def drawn(kind: str, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return make(kind).state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stand_where_weights_would_be_drawn(kind):
    one, other = drawn(kind, 0), drawn(kind, 1)
    generator = torch.get_rng_state()
    with undrawn():
        made = make(kind).state_dict()
    assert torch.equal(torch.get_rng_state(), generator)
    assert list(made) == list(one)
    for name, tensor in made.items():
        is_drawn = not torch.equal(one[name], other[name])
        assert torch.equal(tensor, torch.zeros_like(tensor) if is_drawn else one[name]), name
    assert any(name.endswith("attn.proj.weight") and not tensor.any() for name, tensor in made.items())


def test_a_network_that_is_filled_has_all_of_the_weights():
    state = drawn("pvt_v2", 0)
    made = filled(lambda: make("pvt_v2"), state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in made.state_dict().items())
    assert all(weight.requires_grad for weight in made.parameters())


def test_elsewhere_it_is_torchs_truncated_normal_distribution():
    ours, theirs = torch.empty(2, 50, 30)
    torch.manual_seed(3)
    assert truncated_normal_(ours, std=0.4) is ours
    torch.manual_seed(3)
    nn.init.trunc_normal_(theirs, std=0.4)
    assert torch.equal(ours, theirs)


def test_what_is_drawn_in_another_way_is_drawn():
    """Such as an orthogonal matrix, which zeros cannot be made into."""
    with undrawn():
        weight = nn.init.orthogonal_(torch.empty(5, 5))
        noise = torch.randn(100)
    torch.testing.assert_close(weight @ weight.t(), torch.eye(5))
    assert noise.std() > 0.5
