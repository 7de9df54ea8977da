"""Detectors are extracted, verified, saved and exported like classifiers; a file finds the same."""

import json
import warnings

import pytest
import torch
from dense_tiny import dense_net, surer

from routespace.deploy.bundle import Card, load_bundle, save_bundle
from routespace.deploy.export.load import load_exported
from routespace.deploy.export.write import export
from routespace.deploy.extract import extract
from routespace.deploy.verify import verify
from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.nn.heads.kinds import decoder_of

SIZE = 50, 77
DETECTORS = {
    "retinanet": ("detect", {"width": 32}),
    "fcos": ("detect", {"width": 64, "detector": "fcos"}),
    "mask r-cnn": ("instance", {"width": 16, "proposals": 20, "max_detections": 10}),
}
ALL = pytest.mark.parametrize("name", list(DETECTORS))


def supernet(name: str):
    kind, settings = DETECTORS[name]
    return surer(dense_net(kind, classes=3, score_threshold=0.0, **settings))


def equal_objects(found, wanted) -> None:
    assert len(found) == len(wanted)
    for mine, other in zip(found, wanted, strict=True):
        assert len(mine["boxes"]) > 5
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)


@ALL
def test_a_part_keeps_the_head_and_gives_the_supernets_outputs(name, tmp_path):
    net = supernet(name)
    part = Architecture.staircase(net.architecture.grid)
    small = extract(net, part)
    report = verify(net, part, small, image_size=SIZE)
    assert report.ok, report.lines()
    assert report.replay_difference is not None
    assert report.replay_difference <= 1e-5
    save_bundle(small, tmp_path / "bundle", Card.of(small))
    again = load_bundle(tmp_path / "bundle").net
    assert again.head.settings() == net.head.settings()
    images = torch.randn(2, 3, *SIZE)
    with net.eval().deciding_as(held=part):
        whole = net(images).outputs
    equal_objects(again(images).outputs.detections([SIZE] * 2), whole.detections([SIZE] * 2))


@ALL
def test_a_routed_part_finds_the_same_however_it_computes(name):
    net = supernet(name).eval()
    images = torch.randn(2, 3, *SIZE)
    found = {}
    for execution in ("dense", "packed", "auto"):
        with net.deciding_as(execution=execution):
            found[execution] = net.head.tensors(net(images).outputs)
    for execution in ("packed", "auto"):
        torch.testing.assert_close(found[execution], found["dense"], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
@ALL
def test_boxes_of_an_exported_files_raw_tensors_are_the_networks(name, suffix, tmp_path):
    net = extract(supernet(name), Architecture.staircase(supernet(name).architecture.grid)).eval()
    path = tmp_path / f"net.{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = export(net, path, image_size=(56, 80))
    assert all(one.max_difference <= one.tolerance for one in report.all)
    loaded = load_exported(path)
    assert loaded.names == net.head.names
    for batch, size in zip((1, 3), ((40, 64), (72, 48)), strict=True):
        images = torch.randn(batch, 3, *size)
        sizes = [size] * batch
        wanted = net(images).outputs.detections(sizes)
        equal_objects(net.head.detections_of(loaded.run(images), sizes), wanted)
        told = [json.loads(loaded.metadata[key]) for key in ("rates", "head")]
        decoder = decoder_of(*told, loaded.region_runs())  # from the files alone
        equal_objects(decoder.detections_of(loaded.run(images), sizes), wanted)


def test_files_of_other_networks_make_no_boxes():
    with pytest.raises(SpecError, match="kind 'classify' makes no boxes"):
        decoder_of([32], {"kind": "classify"})
    with pytest.raises(SpecError, match="nothing that computes their boxes and masks"):
        decoder_of([32], {"kind": "instance", "classes": 3})


def without_rate_4_or_8(net, rate: int) -> Architecture:
    """A part of the tiny grid, whose rates are 4 and 8, that never reaches one of them."""
    names = [name for name, edge in net.architecture.grid.edges.items() if edge.kind == "transformer"]
    if rate == 8:
        return Architecture.static(net.spec, [name for name in names if "_r04_" in name])
    return Architecture.static(net.spec, ["l00_r04_transformer", "l01_r04_patch_embed", "l01_r08_transformer"])


@pytest.mark.parametrize("rate", [4, 8])
@pytest.mark.parametrize("name", ["retinanet", "mask r-cnn", "semantic", "maps"])
def test_a_bundle_of_a_part_that_never_reaches_a_rate_says_so_and_loads(name, rate, tmp_path):
    if name in DETECTORS:
        kind, settings = DETECTORS[name]
        more = {"finest": 4} if kind == "detect" else {}
        net = dense_net(kind, classes=3, score_threshold=0.0, **settings, **more)
    else:
        net = dense_net(name, **({"classes": 4} if name == "semantic" else {}))
    small = extract(net, without_rate_4_or_8(net, rate)).eval()
    card = save_bundle(small, tmp_path / "bundle", Card.of(small))
    assert f"never reaches rates {rate}" in card.remarks[0]
    again = load_bundle(tmp_path / "bundle")
    assert again.card.remarks == card.remarks
    images = torch.randn(2, 3, *SIZE)
    torch.testing.assert_close(again.net.tensors(again.net(images)), small.tensors(small(images)), rtol=0, atol=0)
    assert Card.of(net).remarks == net.head.lines()


@pytest.mark.slow
@pytest.mark.parametrize("rate", [4, 8])
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
@pytest.mark.parametrize("name", ["retinanet", "mask r-cnn"])
def test_exported_files_of_such_parts_make_the_networks_boxes(name, suffix, rate, tmp_path):
    kind, settings = DETECTORS[name]
    more = {"finest": 4} if kind == "detect" else {}
    net = surer(dense_net(kind, classes=3, score_threshold=0.0, **settings, **more))
    small = extract(net, without_rate_4_or_8(net, rate)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(small, tmp_path / f"net.{suffix}", image_size=(56, 80))
    size = 72, 48
    loaded, images = load_exported(tmp_path / f"net.{suffix}"), torch.randn(1, 3, *size)
    told = [json.loads(loaded.metadata[key]) for key in ("rates", "head")]
    found = decoder_of(*told, loaded.region_runs()).detections_of(loaded.run(images), [size])
    equal_objects(found, small(images).outputs.detections([size]))
