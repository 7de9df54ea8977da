"""A program's own default device and type: networks that are made already compute where and as they are."""

import pytest
import torch
from tiny_grid import TINY_GRID

from routespace import (
    Architecture,
    Card,
    GridSpec,
    RoutingGrid,
    TaskNet,
    budget_loss,
    calibrate_threshold,
    extract,
    load_bundle,
    measure_usage,
    save_bundle,
    verify,
)

GRID = RoutingGrid(GridSpec.parse(TINY_GRID))
FULL, STAIRS = Architecture.full(GRID), Architecture.staircase(GRID)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def elsewhere():
    """What a program with a GPU sets: all that is made without a device lies there, where nothing of ours is."""
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)  # naming the device of before would leave torch listening to every call


@pytest.mark.parametrize("execution", ["dense", "packed", "auto"])
def test_a_default_device_is_no_device_of_a_network_that_is_made_already(execution, elsewhere):
    net, other = TaskNet.classifier(FULL, execution=execution), TaskNet.classifier(FULL, execution=execution)
    other.load_state_dict(net.state_dict())
    wanted = net.eval()(IMAGES).logits
    elsewhere()
    assert torch.equal(net(IMAGES).logits, wanted)
    assert measure_usage(net, [IMAGES])
    calibrate_threshold(net, [(IMAGES,)], 1e6)
    output = other.train()(IMAGES)
    (output.logits.sum() + budget_loss(other, output.routes, macs=1e9)).backward()
    other.update_gate_ema()
    assert {p.grad.device.type for p in other.parameters() if p.grad is not None} == {"cpu"}


def test_what_is_extracted_and_loaded_is_where_it_came_from(elsewhere, tmp_path):
    net = TaskNet.classifier(FULL).eval()
    elsewhere()
    small = extract(net, STAIRS)
    assert verify(net, STAIRS, small).ok
    save_bundle(small, tmp_path / "small", Card.of(small))
    loaded = load_bundle(tmp_path / "small").net
    assert torch.equal(loaded(IMAGES).logits, small(IMAGES).logits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_default_type_is_no_type_of_a_network_that_is_made_already(dtype, tmp_path):
    net = TaskNet.classifier(FULL).eval()
    save_bundle(net, tmp_path / "net", Card.of(net))
    wanted = net(IMAGES).logits
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for execution in ("dense", "packed", "auto"):
            with net.deciding_as(execution=execution):
                assert torch.allclose(net(IMAGES).logits, wanted, atol=1e-5)
        assert verify(net, STAIRS, extract(net, STAIRS)).ok
        assert torch.allclose(load_bundle(tmp_path / "net").net(IMAGES).logits, wanted, atol=1e-5)
    finally:
        torch.set_default_dtype(before)
