"""Numbers of another size than a public function can use: one line that names the argument, before any work."""

import math

import pytest
import torch
from tiny_grid import TINY_GRID

from routespace import (
    Architecture,
    GridSpec,
    RouteNet,
    RoutingGrid,
    SpecError,
    TaskNet,
    budget_loss,
    calibrate_threshold,
    evaluate_candidates,
    extract,
    oracle_routes,
    profile,
    sample_static,
    select,
    verify,
)

GRID = RoutingGrid(GridSpec.parse(TINY_GRID))
FULL, STAIRS = Architecture.full(GRID), Architecture.staircase(GRID)
IMAGES = torch.zeros(1, 3, 32, 32)
NAN, INF = math.nan, math.inf
KNOWN = [{"boxes": torch.tensor([[1.0, 1.0, 9.0, 9.0]])}]

CALLS = {
    "drop_path": (lambda net, number: RouteNet(FULL, drop_path=number), [-0.1, 1, 2, NAN, INF]),
    "drop_path of a classifier": (
        lambda net, number: TaskNet.classifier(FULL, drop_path=number),
        [-0.1, 1.0, NAN],
    ),
    "weight": (
        lambda net, number: budget_loss(net, net(IMAGES).routes, macs=1e9, weight=number),
        [-1, NAN, INF],
    ),
    "base": (
        lambda net, number: budget_loss(net, net(IMAGES).routes, macs=1e9, base=number),
        [-1, 0, NAN, INF],
    ),
    "target": (lambda net, number: calibrate_threshold(net, [(IMAGES,)], number), [-1, 0, NAN, INF]),
    "drop_errors": (
        lambda net, number: evaluate_candidates(net, [STAIRS], [], drop_errors=number),
        [-1, NAN, INF],
    ),
    "around_px": (lambda net, number: oracle_routes(net, IMAGES, KNOWN, around_px=number), [-1]),
    "n": (lambda net, number: sample_static(GRID, number), [-1]),
    "low_macs": (lambda net, number: sample_static(GRID, 1, low_macs=number), [NAN, INF]),
    "seed": (lambda net, number: sample_static(GRID, 1, seed=number), [-1, 2**32]),
    "seed of verify": (lambda net, number: verify(net, STAIRS, extract(net, STAIRS), seed=number), [-1, 2**64]),
    "seed of profile": (lambda net, number: profile(GRID, seed=number), [-1, 10**400]),
    "scores": (
        lambda net, number: select(GRID, {"l00_r04_transformer": number}),
        [NAN, INF, 10**400],
    ),
}


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name, (_, numbers) in CALLS.items() for number in numbers]
)
def test_a_number_that_cannot_be_used_is_refused(name, number):
    net = TaskNet.classifier(FULL).eval()
    with pytest.raises(SpecError, match=rf"^{name.split()[0]}\b") as caught:
        CALLS[name][0](net, number)
    assert "give" in str(caught.value)
    assert "\n" not in str(caught.value)
