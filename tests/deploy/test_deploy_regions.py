"""Mask R-CNN in three files: what the network finds, or one line that says which file is wrong."""

import json
import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from dense_tiny import dense_net, pyramid_grid
from PIL import Image

from routespace import BundleError, Card, DataError, Predictor, RoutespaceError, SpecError, save_bundle
from routespace.deploy.export.base import Prepared
from routespace.deploy.export.formats import EXPORTERS
from routespace.deploy.export.load import load_exported
from routespace.deploy.export.write import export, export_as
from routespace.deploy.extract import extract
from routespace.files import json_text
from routespace.grid.architecture import Architecture
from routespace.nn.heads.kinds import decoder_of
from routespace.nn.heads.regions import OutsideRegions
from routespace.preprocess import Preprocess, preprocess_to_json, save_preprocess
from routespace.workflow.artifacts import load_artifact

NAMES = "ant", "bee", "cat"
FED = Preprocess(size=(48, 64)).inside(multiple=8)
SMALL = {"classes": 3, "width": 16, "proposals": 20, "max_detections": 10, "score_threshold": 0.0}
FILES = ["model.boxes.pt2", "model.masks.pt2", "model.pt2"]
TOLD = {"preprocess": json_text(preprocess_to_json(FED, NAMES), indent=None)}


def static(**settings):
    """With one block, since those take the exporter most of its time."""
    net = dense_net("instance", grid=pyramid_grid(layers=1), **SMALL | settings)
    return extract(net, Architecture.staircase(net.architecture.grid)).eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network as a bundle and as a set of .pt2 files, and two pictures of one shape."""
    place, net = tmp_path_factory.mktemp("regions"), static()
    save_bundle(net, place / "bundle", Card.of(net))
    save_preprocess(place / "bundle", FED, NAMES)
    report = export(net, place / "files" / "model.pt2", metadata=TOLD)
    assert [one.path.name for one in report.all] == ["model.pt2", *FILES[:2]]
    assert all(one.max_difference <= one.tolerance and one.bytes > 1000 for one in report.all)
    (place / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "pictures" / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def predictor(place):
    """Of the set of files, which takes seconds to load."""
    return Predictor(place / "files/model.pt2", "cpu", least_score=0.0)


@pytest.fixture
def files(place, tmp_path):
    """The set again, to be spoiled."""
    shutil.copytree(place / "files", tmp_path / "set")
    return tmp_path / "set"


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


load_once = cache(load_exported)  # which takes a second; for files that nobody spoils


def decoder(path, **settings):
    """The file at a path, and what makes objects of it."""
    loaded = load_once(path)
    rates, head = (json.loads(loaded.metadata[key]) for key in ("rates", "head"))
    return loaded, decoder_of(rates, head | settings, loaded.region_runs())


def write_other(path, metadata):
    """A file of some other network, which tells what we like."""
    prepared = Prepared(torch.nn.Conv2d(3, 2, 1), ("found",), torch.zeros(2, 3, 8, 8), metadata)
    EXPORTERS["pt2"].write(prepared, path)


def assert_finds_the_same(net, path, size, batch):
    loaded, head = decoder(path)
    images = torch.randn(batch, 3, *size)
    with net.deciding_as(execution="dense"), torch.no_grad():
        wanted = net(images).outputs.detections([size] * batch)
    found = head.detections_of(loaded.run(images), [size] * batch)
    for mine, other in zip(found, wanted, strict=True):
        assert len(other["boxes"]) == 10
        assert torch.equal(mine["labels"], other["labels"])
        torch.testing.assert_close(mine["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(mine["scores"], other["scores"], rtol=1e-4, atol=1e-4)
        assert (mine["masks"] != other["masks"]).float().mean() < 1e-3


def test_any_number_of_images_of_any_size(place):
    assert names_in(place / "files") == FILES
    net = static()
    for size, batch in (((48, 64), 1), ((40, 96), 3)):
        assert_finds_the_same(net, place / "files" / "model.pt2", size, batch)


def test_a_predictor_says_what_the_bundles_does(place, predictor):
    ours = Predictor(place / "bundle", "cpu", least_score=0.0)
    pairs = list(zip(ours(place / "pictures"), predictor(place / "pictures"), strict=True))
    for one, other in pairs:
        assert one.labels == other.labels
        assert len(one.labels) == 10
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        assert one.masks.shape == other.masks.shape == (10, 40, 60)
        assert (one.masks != other.masks).mean() < 1e-3
    assert len(pairs) == 2


def test_masks_on_pictures_of_mixed_sizes_are_the_eager_detectors(predictor, tmp_path):
    rng, sizes, net = np.random.default_rng(1), [(40, 60), (60, 40), (90, 70), (48, 48), (40, 60)], static()
    for number, size in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    for size, found in zip(sizes, predictor(tmp_path), strict=True):
        numbers = torch.from_numpy(FED.read(found.path))[None]
        with torch.no_grad():
            (wanted,) = net(numbers).outputs.detections([tuple(numbers.shape[-2:])], [size])
        assert found.classes.tolist() == wanted["labels"].tolist()
        np.testing.assert_allclose(found.boxes, wanted["boxes"], atol=1e-3)
        assert found.masks.shape == tuple(wanted["masks"].shape) == (10, *size)
        assert (found.masks != wanted["masks"].numpy()).mean() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_gates_decide_densely(suffix, tmp_path):
    net = dense_net("instance", **SMALL).eval()
    export(net, tmp_path / f"net.{suffix}")
    assert names_in(tmp_path) == sorted(f"net.{name}{suffix}" for name in ("", "boxes.", "masks."))
    assert_finds_the_same(net, tmp_path / f"net.{suffix}", (40, 72), 2)


@pytest.mark.slow
def test_regions_are_computed_in_float32_whatever_the_weights_are_in(tmp_path):
    net = static().bfloat16()
    report = export(net, tmp_path / "net.pt2")
    assert [one.dtype for one in report.all] == ["bfloat16", "float32", "float32"]
    loaded, head = decoder(tmp_path / "net.pt2")
    raw = loaded.run(torch.randn(1, 3, 48, 64))
    (found,), (wanted,) = (some.detections_of(raw, [(48, 64)]) for some in (head, net.head))
    torch.testing.assert_close(found, wanted)
    assert all(weight.dtype == torch.bfloat16 for weight in net.parameters())


def test_an_image_in_which_nothing_is_found(place):
    asked = []

    def compute(regions):
        asked.append(len(regions))
        return regions.new_ones(len(regions), 4), regions.new_ones(len(regions), 16)

    scores, deltas = OutsideRegions(compute)(torch.zeros(0, 16, 7, 7))
    assert (tuple(scores.shape), tuple(deltas.shape), asked) == ((0, 4), (0, 16), [1])
    loaded, head = decoder(place / "files" / "model.pt2", score_threshold=1.0)
    for found in head.detections_of(loaded.run(torch.randn(2, 3, 48, 64)), [(48, 64)] * 2):
        assert {name: tuple(part.shape) for name, part in found.items()} == {
            "boxes": (0, 4), "scores": (0,), "labels": (0,), "masks": (0, 48, 64)
        }  # fmt: skip


def test_all_files_are_written_or_none(files):
    def places():
        return {path.name: path.stat().st_ino for path in files.iterdir()}

    def write(prepared, path):
        written.append(path.name)
        if path.name == "model.masks.pt2":
            raise RuntimeError("the third fails")
        shutil.copy(files / path.name, path)  # the very network: it passes the check
        return {}

    before, written = places(), []
    exporter = replace(EXPORTERS["pt2"], write=write)
    with pytest.raises(RoutespaceError, match=r"model\.masks\.pt2: .*the third fails"):
        export_as(exporter, static(), files / "model.pt2")
    assert (written, places()) == (["model.pt2", *FILES[:2]], before)
    (files / "model.masks.pt2").unlink()
    (files / "model.masks.pt2").mkdir()
    before = places()
    with pytest.raises(BundleError, match=r"model\.masks\.pt2: cannot be written"):
        export_as(exporter, static(), files / "model.pt2")
    assert (len(written), places()) == (3, before)


@pytest.mark.parametrize("name", ["boxes", pytest.param("masks", marks=pytest.mark.slow)])
def test_a_file_that_is_not_there_is_named(name, files):
    (files / f"model.{name}.pt2").unlink()
    with pytest.raises(BundleError, match=rf"its file of {name}, model\.{name}\.pt2, is not beside it"):
        Predictor(files / "model.pt2", "cpu")


@pytest.mark.slow
def test_files_that_do_not_belong_together_are_named(files, place):
    write_other(files / "model.boxes.pt2", {"network": "another", "region": "boxes"})
    with pytest.raises(BundleError, match=r"model\.boxes\.pt2: is not the file of boxes that belongs to model"):
        Predictor(files / "model.pt2", "cpu")
    shutil.copy(place / "files" / "model.masks.pt2", files / "model.boxes.pt2")
    with pytest.raises(BundleError, match="is not the file of boxes"):
        Predictor(files / "model.pt2", "cpu")
    content = (place / "files" / "model.boxes.pt2").read_bytes()
    (files / "model.boxes.pt2").write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match=r"model\.boxes\.pt2: cannot be read .* damaged") as caught:
        Predictor(files / "model.pt2", "cpu")
    assert "\n" not in str(caught.value)


def test_the_first_file_is_the_one_to_give(files):
    with pytest.raises(
        BundleError, match=r"holds only what a network computes of regions \(boxes\); give .*el\.pt2"
    ):
        Predictor(files / "model.boxes.pt2", "cpu")
    with pytest.raises(BundleError, match=r"a folder of exported files; give one of them, such as .*model\.pt2"):
        Predictor(files, "cpu")


def test_a_file_of_an_earlier_version_is_refused(tmp_path):
    head = json_text({"kind": "instance", **static().head.settings()})
    write_other(tmp_path / "net.pt2", {**TOLD, "rates": "[4, 8]", "head": head})
    with pytest.raises(SpecError, match=r"net\.pt2: head: .*export the network again"):
        Predictor(tmp_path / "net.pt2", "cpu")
    for told in ({"head": "no JSON"}, {"regions": "[1]"}):
        write_other(tmp_path / "net.pt2", {**TOLD, **told})
        with pytest.raises(BundleError, match=r"net\.pt2: its metadata cannot be read"):
            Predictor(tmp_path / "net.pt2", "cpu")


def test_a_picture_that_is_fed_too_small_is_one_line(place, tmp_path):
    write_other(tmp_path / "net.pt2", {**TOLD, "least_side": "56", "outputs": '["pixel_logits"]'})
    told = []
    logits = Predictor(tmp_path / "net.pt2", "cpu")
    with pytest.raises(DataError, match=r"0\.png: is fed at 4. × .*takes sides of 56 px or more"):
        logits(place / "pictures" / "0.png")
    assert list(logits.stream(place / "pictures", unreadable=told.append)) == []
    assert len(told) == 2


def test_files_take_the_smallest_images_that_the_network_takes(place):
    loaded, net = load_once(place / "files" / "model.pt2"), load_artifact(place / "bundle").net.eval()
    least, step = int(loaded.metadata["least_side"]), int(loaded.metadata["side_step"])
    assert least - step < net.spec.least_image_px <= least < 2 * net.head.coarsest(net.spec)
    for size in ((least, least), (least, 3 * step), (3 * step, least)):
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), net.deciding_as(execution="dense"):
            given = net.as_module()(images)
        for ours, theirs in zip(loaded.run(images), given, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
