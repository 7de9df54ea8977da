"""Networks of every element type, on every device: measured, extracted and verified like float32 on a CPU."""

import pytest
import torch
from thinning import thinned

from routespace.deploy.bundle import Card, load_bundle, save_bundle
from routespace.deploy.extract import extract
from routespace.deploy.verify import verify
from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.task_net import TaskNet
from routespace.nn.usage import measure_usage
from routespace.train.evaluate import evaluate
from routespace.workflow.timing import routed_times

FIELDS = {"layers": 2, "max_down": 8, "widths": (16, 32), "heads": (1, 2), "mlp_ratios": (2.0, 2.0),
          "image_size": 64, "num_classes": 10}  # fmt: skip
FAMILIES = {"pvt_v2": {"sr_ratios": (4, 2)}, "swin_v2": {"family": "swin_v2", "window": 4}}
TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def make_net(family="pvt_v2", kind="full"):
    torch.manual_seed(0)
    grid = RoutingGrid(GridSpec.parse(FIELDS | FAMILIES[family]))
    net = TaskNet.classifier(getattr(Architecture, kind)(grid), GateSpec(openness=0.5))
    for name, parameter in net.named_parameters():  # a branch that begins at zero would hide what is wrong in it
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.ones_(parameter)
    return net.eval()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, 64, 64, generator=generator), torch.randint(0, 10, (n,), generator=generator))
        for n in (4, 3)
    ]


@pytest.mark.parametrize(*thinned(family=list(FAMILIES), kind=["full", "staircase"], dtype=TYPES), ids=str)
def test_every_type_is_evaluated_and_verified(family, kind, dtype, device):
    net = make_net(family, kind).to(device, dtype)
    result = evaluate(net, batches())
    assert result["images"] == 7
    assert 0 < result["counted_macs"] <= result["expected_macs"] * 100
    usage = measure_usage(net, [images for images, _ in batches()])
    assert set(usage) == set(result["usage"])
    part = extract(net, Architecture.staircase(net.architecture.grid))
    report = verify(net, part.architecture, part)
    assert report.ok, report.lines()
    assert report.dtype in report.lines()[0]
    assert str(dtype) == f"torch.{report.dtype}"
    assert {parameter.dtype for parameter in net.parameters()} == {dtype}


def test_half_a_network_is_compared_by_half_a_networks_tolerance(device):
    net = make_net().to(device)
    part = extract(net, Architecture.staircase(net.architecture.grid))
    for dtype in (torch.float16, torch.bfloat16):
        report = verify(net, part.architecture, part.to(dtype))
        assert report.ok, report.lines()
        assert report.dtype == str(dtype).removeprefix("torch.")
        assert not verify(net, part.architecture, part, tolerance=1e-6).ok
        with torch.no_grad():
            changed = extract(part.float(), part.architecture)
            changed.backbone.outputs["r08"].norm.weight.mul_(1.5)
        assert not verify(net, part.architecture, changed.to(dtype)).ok


def test_a_network_of_another_type_rounds_differently_all_the_way():
    net = make_net()
    part = extract(net, Architecture.staircase(net.architecture.grid))
    same, other = (verify(net, part.architecture, part.to(dtype)) for dtype in (torch.float32, torch.float64))
    assert same.dtype == other.dtype == "float32"
    assert same.tolerance < other.tolerance
    assert same.ok
    assert other.ok


@pytest.mark.parametrize("tolerance", [-1, float("nan"), float("inf")])
def test_a_tolerance_that_says_nothing_is_refused(tolerance):
    net = make_net(kind="staircase")
    with pytest.raises(SpecError, match="tolerance"):
        verify(net, net.architecture, extract(net, net.architecture), tolerance=tolerance)


def test_work_goes_to_the_device_that_is_asked_for_and_networks_stay_where_they_are(device):
    net = make_net()
    part = extract(net, Architecture.staircase(net.architecture.grid), device=device)
    assert next(part.parameters()).device.type == device.type
    assert verify(net, part.architecture, part, device="cpu").ok
    assert verify(net, part.architecture, part, device=device, tolerance=1e-5).ok
    here = measure_usage(net, [batches()[0][0]])
    there = measure_usage(net, [batches()[0][0]], device=device)
    assert here.keys() == there.keys()
    assert evaluate(net, batches(), device=device)["images"] == 7
    assert next(net.parameters()).device.type == "cpu"
    assert next(part.parameters()).device.type == device.type
    if device.type != "cpu":
        with pytest.raises(SpecError, match="say where to compare"):
            verify(net, part.architecture, part)


def test_a_device_that_is_not_there():
    net = make_net(kind="staircase")
    for call in (
        lambda: extract(net, net.architecture, device="cuda:99"),
        lambda: verify(net, net.architecture, extract(net, net.architecture), device="tpu"),
        lambda: measure_usage(net, [batches()[0][0]], device="tpu"),
        lambda: evaluate(net, batches(), device="tpu"),
    ):
        with pytest.raises(SpecError, match="device"):
            call()


def test_a_routed_network_is_timed_on_its_own_device_in_its_own_type(device):
    net = make_net().to(device, torch.bfloat16)
    times = routed_times(net, batches()[0][0], rounds=2)
    assert all(seconds > 0 for seconds in times.values())


def test_a_bundle_of_a_network_on_any_device_loads_on_the_cpu(device, tmp_path):
    net = make_net().to(device)
    save_bundle(net, tmp_path / "bundle", Card.of(net))
    loaded = load_bundle(tmp_path / "bundle").net
    assert next(loaded.parameters()).device.type == "cpu"
    images = batches()[0][0]
    with torch.no_grad():
        assert torch.allclose(loaded(images).logits, net(images.to(device)).logits.cpu(), atol=1e-3)
