"""What `auto` decides by: what packing takes on this processor."""

import pytest
import torch

from routespace.grid.spec import GridSpec
from routespace.nn.families.base import modules_of
from routespace.nn.families.pvt_v2_block import PvtBlock
from routespace.nn.routing.execution import Auto, EdgeInput
from routespace.nn.routing.state import NodeState


@torch.no_grad()
@pytest.mark.parametrize(
    ("cheap", "keep", "masked"), [(True, 0.75, True), (False, 0.75, False), (True, 0.5, False)]
)
def test_packing_pays_later_where_whole_maps_are_cheap(cheap, keep, masked, monkeypatch):
    monkeypatch.setattr("routespace.nn.families.pvt_v2_block.convolutions_go_on", lambda: cheap)
    spec = GridSpec.preset("pvt_v2_b2")
    stage, hw = modules_of(spec.family).stage(spec, 4, 1).eval(), spec.map_size(4)
    x = torch.randn(1, hw[0] * hw[1], spec.width(4))
    kept = torch.arange(x.shape[1])[None] < keep * x.shape[1]
    calls, plain = [], PvtBlock.masked
    monkeypatch.setattr(PvtBlock, "masked", lambda *args: (calls.append(1), plain(*args))[1])
    Auto().row(stage, EdgeInput(NodeState(x), hw, kept))
    assert bool(calls) == masked
