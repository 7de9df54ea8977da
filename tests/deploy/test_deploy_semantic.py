"""Networks of pixel classes are extracted, verified, saved and exported whole, for images of any size."""

import pytest
import torch
from dense_tiny import PYRAMID_GRID, dense, dense_net
from train_pixels import pixels

from routespace.deploy.bundle import Card, load_bundle, save_bundle
from routespace.deploy.export.load import load_exported
from routespace.deploy.export.write import export
from routespace.deploy.extract import extract
from routespace.deploy.verify import verify
from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet
from routespace.workflow.evaluation import paint_tokens

SIZE = 50, 77
DECODERS = pytest.mark.parametrize("decoder", ["semantic_fpn", "upernet"])


def supernet(decoder):
    recipe = pixels(task__decoder=decoder, gates__openness=0.5)
    torch.manual_seed(0)
    head = recipe.task.make(recipe.grid).head(recipe.grid)
    net = TaskNet(RouteNet(recipe.architecture(), recipe.gates), head).eval()
    for gate in net.gates.values():
        for weight in gate.parameters():
            torch.nn.init.normal_(weight, std=0.5)
    return net


@DECODERS
def test_a_part_keeps_the_head_and_gives_the_supernets_pixels(decoder, tmp_path):
    net = supernet(decoder)
    part = Architecture.staircase(net.architecture.grid)
    small = extract(net, part)
    report = verify(net, part, small, image_size=SIZE)
    assert report.ok, report.lines()
    assert max(report.max_difference, report.replay_difference) <= 1e-5
    save_bundle(small, tmp_path / "bundle", Card.of(small))
    again, images = load_bundle(tmp_path / "bundle").net.eval(), torch.randn(2, 3, *SIZE)
    assert again.head.settings() == net.head.settings()
    with net.deciding_as(held=part):
        torch.testing.assert_close(again(images).outputs, net(images).outputs)


@pytest.mark.slow
def test_files_of_windowed_blocks_take_images_of_one_size(tmp_path):
    fields = {name: value for name, value in PYRAMID_GRID.items() if name != "sr_ratios"}
    grid = RoutingGrid(GridSpec(**fields | {"family": "swin_v2", "window": 4}))
    net = dense_net("semantic", grid=grid, classes=3, channels=64).eval()
    export(extract(net, Architecture.staircase(grid)), tmp_path / "net.onnx", image_size=(40, 64))
    loaded = load_exported(tmp_path / "net.onnx")
    assert "side_step" not in loaded.metadata
    assert loaded(torch.randn(2, 3, 40, 64)).shape == (2, 3, 10, 16)


def test_logits_of_pixels_are_no_classifiers():
    found = supernet("semantic_fpn")(torch.randn(1, 3, 32, 32))
    assert found.outputs.shape == (1, 11, 8, 8)
    with pytest.raises(SpecError, match="this network has no classifier"):
        _ = found.logits


@pytest.mark.parametrize("decoder", ["semantic_fpn", "detector"])
def test_the_tokens_of_an_evaluated_dense_network_can_be_painted(decoder, tmp_path):
    recipe = pixels(gates__openness=0.5)
    net = supernet("semantic_fpn")
    if decoder == "detector":
        recipe = dense({"kind": "detect", "classes": 10, "width": 32})
        net = dense_net("detect", classes=10, width=32)
    assert paint_tokens(net, recipe, tmp_path / "tokens.png", split="val").stat().st_size > 1000


def assert_files_take_any_number_of_images_of_any_size(net, path):
    report = export(net, path)
    assert report.max_difference <= 1e-5
    loaded = load_exported(path)
    assert loaded.names == ("pixel_logits",)
    assert loaded.metadata["side_step"] == "8"
    for shape in ((1, 3, 16, 24), (3, 3, 72, 40)):
        images = torch.randn(shape)
        with torch.no_grad(), net.deciding_as(execution="dense"):
            torch.testing.assert_close(loaded(images), net(images).outputs, atol=1e-5, rtol=1e-4)


def test_files_of_decoders_take_any_number_of_images_of_any_size(tmp_path):
    """Without blocks, which take the exporter most of its time; those of Mask R-CNN's files have some."""
    net = supernet("semantic_fpn")
    grid = net.architecture.grid
    plain = Architecture.static(
        grid.spec, [name for name, edge in grid.edges.items() if edge.kind != "transformer"]
    )
    assert_files_take_any_number_of_images_of_any_size(extract(net, plain), tmp_path / "net.pt2")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
@pytest.mark.parametrize("routed", [False, True])
@DECODERS
def test_files_take_any_number_of_images_of_any_size(decoder, routed, suffix, tmp_path):
    net = supernet(decoder)
    net = net if routed else extract(net, Architecture.staircase(net.architecture.grid))
    assert_files_take_any_number_of_images_of_any_size(net, tmp_path / f"net.{suffix}")
