"""From a run to a checked, exported bundle on each device, by what a Python user calls."""

import pytest
import torch

from routespace import (
    Architecture,
    GateSpec,
    GridSpec,
    RoutingGrid,
    TaskNet,
    evaluate_network,
    export,
    extract_bundle,
    load_bundle,
    load_exported,
    load_recipe,
    load_run,
    profile,
    train_recipe,
    verify,
)
from routespace.deploy.latency.table import predict
from routespace.workflow.timing import routed_times

TINY = [
    *("data.train_size=64", "data.val_size=32", "data.test_size=50", "train.batch_size=32", "train.epochs=1"),
    *("train.warmup_epochs=0", "grid.layers=2", "grid.embed_layers=all"),
]


def test_from_a_run_to_a_bundle_on_a_device(device, tmp_path):
    recipe = load_recipe("digits_tiny", [*TINY, f"train.device={device.type}"])
    run = train_recipe(recipe, tmp_path / "run").folder
    loaded = load_run(run, device=device.type)
    report = evaluate_network(loaded.net, recipe, split="val")
    assert report["images"] == 32
    assert report["speed"]["measured_speedup"] > 0
    taken = extract_bundle(run, tmp_path / "small", macs=round(0.6 * recipe.base_macs()))
    small = load_bundle(tmp_path / "small").net.to(device)
    assert verify(loaded.net, small.architecture, small).ok
    assert evaluate_network(small, recipe, split="val")["accuracy"] == pytest.approx(taken.score, abs=0.05)
    path = tmp_path / "small.pt2"
    export(small, path)
    images = torch.randn(3, 3, *small.spec.image_size)
    with torch.no_grad():
        expected = small(images.to(device)).logits
    (given,) = load_exported(path).run(images)
    assert (given.to(device) - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"]
)
def test_speed_and_a_latency_table_of_a_device(compiled, device):
    grid = RoutingGrid(GridSpec(layers=2, max_down=8, size="b0", image_size=64, num_classes=5))
    net = TaskNet.classifier(Architecture.full(grid), GateSpec(openness=0.5)).eval().to(device)
    took = routed_times(net, torch.randn(4, 3, 64, 64), rounds=3, compiled=compiled)
    assert min(took["dense"], took["routed"]) > 0
    table = profile(grid, device=device, batch=4, gates=GateSpec(), rounds=3, subnets=4, compiled=compiled)
    assert table.device.kind == device.type
    assert 0 < predict(table, Architecture.staircase(grid)) < predict(table, Architecture.full(grid).opened())
