"""What Predictor says of objects and pixels: what the network itself says, in pixels of the pictures."""

import json
import tracemalloc
import unicodedata

import numpy as np
import pytest
import torch
from dense_tiny import dense_net, surer
from PIL import Image
from pycocotools import mask as coco_mask
from torch.nn import functional as F

from routespace import BundleError, Card, Predictor, SpecError, save_bundle
from routespace.deploy.export.write import export
from routespace.deploy.extract import extract
from routespace.deploy.predict.answers import FoundObjects, PixelClasses, coco_results, grown, pixels_from
from routespace.deploy.predict.coco_ids import read_coco_ids
from routespace.files import json_text
from routespace.grid.architecture import Architecture
from routespace.preprocess import Preprocess, preprocess_to_json, save_preprocess

NAMES = "ant", "bee", "cat"
FED = Preprocess(size=(32, 64)).inside(multiple=8)
SIZES = (40, 60), (60, 40), (30, 45)  # two of them are fed in one size
KINDS = {
    "detect": {"width": 32},
    "instance": {"width": 16, "proposals": 20, "max_detections": 10},
    "semantic": {"channels": 64},
}


def network(kind):
    settings = KINDS[kind] | ({"score_threshold": 0.0} if kind != "semantic" else {})
    return surer(dense_net(kind, classes=3, **settings).eval())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A bundle of each task's supernet, and pictures of three sizes."""
    place = tmp_path_factory.mktemp("dense")
    for kind in KINDS:
        net = network(kind)
        save_bundle(net, place / kind, Card.of(net))
        save_preprocess(place / kind, FED, NAMES)
    (place / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(
            place / "pictures" / f"{number}.png"
        )
    return place


def images_of(place):
    """Each picture alone, as the network reads it."""
    paths = sorted((place / "pictures").iterdir())
    return [torch.from_numpy(FED.read(path))[None] for path in paths]


def by_place(boxes, labels):
    """Places of objects in an order of their own: scores that are nearly alike come in any."""
    return sorted(range(len(labels)), key=lambda i: (labels[i], *np.round(boxes[i]).tolist()))


@pytest.mark.parametrize("kind", ["detect", "instance"])
def test_objects_are_the_networks_in_pixels_of_the_pictures(kind, place):
    predictor = Predictor(place / kind, "cpu", least_score=0.0)
    net = predictor.net
    found = predictor(place / "pictures")
    assert [answer.path.split("/")[-1] for answer in found] == ["0.png", "1.png", "2.png"]
    for answer, images, size in zip(found, images_of(place), SIZES, strict=True):
        with torch.no_grad():
            (wanted,) = net(images).outputs.detections([tuple(images.shape[2:])], [size])
        assert isinstance(answer, FoundObjects)
        assert (answer.size, len(answer.labels)) == (size, len(wanted["labels"]))
        assert len(answer.labels) > 3
        assert list(answer.scores) == pytest.approx(wanted["scores"].tolist(), rel=1e-4)
        names = [NAMES[label] for label in wanted["labels"]]
        ours, theirs = by_place(answer.boxes, answer.labels), by_place(wanted["boxes"].numpy(), names)
        np.testing.assert_allclose(answer.boxes[ours], wanted["boxes"][theirs], atol=1e-3, rtol=1e-4)
        assert [answer.labels[i] for i in ours] == [names[i] for i in theirs]
        if kind == "instance":
            assert answer.masks.shape == (len(answer.labels), *size)
            assert (answer.masks[ours] != wanted["masks"].numpy()[theirs]).mean() < 0.01
        else:
            assert answer.masks is None


def test_pixels_are_the_networks_in_pixels_of_the_pictures(place):
    predictor = Predictor(place / "semantic", "cpu")
    for answer, images, size in zip(predictor(place / "pictures"), images_of(place), SIZES, strict=True):
        with torch.no_grad():
            logits = predictor.net(images).outputs
        full = F.interpolate(logits, size, mode="bilinear", align_corners=False)[0]
        assert isinstance(answer, PixelClasses)
        assert answer.classes.shape == size
        assert (answer.classes != full.argmax(0).numpy()).mean() < 0.01
        counts = np.bincount(answer.classes.ravel(), minlength=3)
        assert dict(zip(answer.labels, answer.scores, strict=True)) == pytest.approx(
            {NAMES[number]: count / answer.classes.size for number, count in enumerate(counts) if count}
        )


@pytest.mark.parametrize("size", [(7, 9), (28, 36), (13, 5), (3, 4)])
def test_logits_grow_as_torch_lets_them(size):
    logits = torch.randn(5, 7, 9)
    wanted = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(grown(logits.numpy(), size), wanted, atol=1e-5)


def test_pixels_of_a_large_picture_take_little_memory():
    """Not a number for each class and pixel: those of a photograph and 150 classes would be gigabytes."""
    logits, size = torch.randn(150, 6, 8).numpy(), (900, 1200)
    tracemalloc.start()
    answer = pixels_from(None, size, logits, ())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 150 * size[0] * size[1] * 4 / 4
    rows = 100, 101, 899
    wanted = np.stack([grown(logits, size, range(row, row + 1))[:, 0].argmax(0) for row in rows])
    assert (answer.classes[list(rows)] == wanted).all()
    small = F.interpolate(torch.from_numpy(logits)[None], (90, 120), mode="bilinear", align_corners=False)[0]
    assert (pixels_from(None, (90, 120), logits, ()).classes == small.argmax(0).numpy()).mean() > 0.999


def test_results_are_what_cocos_tools_read(place):
    answer = Predictor(place / "instance", "cpu", least_score=0.0)(place / "pictures" / "0.png")
    results = coco_results(7, answer)
    json.dumps(results)
    for result, box, mask in zip(results, answer.boxes, answer.masks, strict=True):
        assert (result["image_id"], result["category"]) == (7, NAMES[result["category_id"] - 1])
        left, top, width, height = result["bbox"]
        assert [left, top, left + width, top + height] == pytest.approx(box.tolist(), abs=0.02)
        assert (coco_mask.decode(result["segmentation"]) == mask).all()


def test_only_objects_that_are_sure_enough_are_told(place):
    picture = place / "pictures" / "0.png"
    everything = Predictor(place / "detect", "cpu", least_score=0.0)(picture)
    cut = sorted(everything.scores)[len(everything.scores) // 2]
    sure = Predictor(place / "detect", "cpu", least_score=cut)(picture)
    assert sure.scores == tuple(score for score in everything.scores if score >= cut)
    nothing = Predictor(place / "detect", "cpu", least_score=1.0)(picture)
    assert (nothing.labels, nothing.label, nothing.score) == ((), "", 0.0)
    with pytest.raises(SpecError, match=r"least_score: 2 is not allowed"):
        Predictor(place / "detect", "cpu", least_score=2)


def test_a_detector_has_no_logits_of_classes(place):
    predictor = Predictor(place / "detect", "cpu")
    with pytest.raises(SpecError, match="tells objects, no classes of images"):
        predictor.logits(np.zeros((1, 3, 32, 32), np.float32))


def test_numbers_that_are_not_finite_are_said(place, tmp_path):
    net = network("semantic")
    torch.nn.init.constant_(net.head.classifier.bias, torch.nan)
    save_bundle(net, tmp_path / "bad", Card.of(net))
    save_preprocess(tmp_path / "bad", FED, NAMES)
    with pytest.raises(BundleError, match="not finite"):
        Predictor(tmp_path / "bad", "cpu")(place / "pictures")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
@pytest.mark.parametrize("kind", KINDS)
def test_exported_files_say_the_same(kind, suffix, place, tmp_path):
    fed = Preprocess(size=(48, 64)).inside(multiple=8)  # a detector's coarsest map needs two tokens a side
    net = network(kind)
    net = extract(net, Architecture.staircase(net.architecture.grid))
    save_bundle(net, tmp_path / "bundle", Card.of(net))
    save_preprocess(tmp_path / "bundle", fed, NAMES)
    told = {"preprocess": json_text(preprocess_to_json(fed, NAMES), indent=None)}
    path = tmp_path / f"model.{suffix}"
    export(net, path, metadata=told)
    ours, theirs = (Predictor(given, "cpu", least_score=0.0) for given in (tmp_path / "bundle", path))
    pictures = place / "pictures"
    for one, other in zip(ours.stream(pictures), theirs.stream(pictures), strict=True):
        if kind == "semantic":
            assert one.labels == other.labels
            assert one.scores == pytest.approx(other.scores, abs=1e-3)
            assert (one.classes != other.classes).mean() < 0.01
            continue
        apart = np.abs(np.array(one.boxes)[:, None] - np.array(other.boxes)).max(2)
        apart += 1e3 * (np.array(one.labels)[:, None] != np.array(other.labels))
        same = apart.argmin(1)  # objects of nearly one score may stand in another order
        assert sorted(same) == list(range(len(other.labels)))
        assert apart.min(1).max() < 1e-2
        assert one.scores == pytest.approx([other.scores[place] for place in same], abs=1e-3)
        if kind == "instance":
            assert len(one.labels) > 3
            assert (one.masks != other.masks[same]).mean() < 0.001


@pytest.mark.parametrize("form", ["NFC", "NFD"])  # as Linux and macOS write accents
def test_ids_are_found_however_accents_are_written(form, tmp_path):
    name, file = unicodedata.normalize(form, "café"), tmp_path / "annotations.json"
    images, categories = [{"id": 7.0, "file_name": f"{name}/1.png"}], [{"id": 90, "name": name}]
    file.write_text(json.dumps({"images": images, "categories": categories}))
    ids = read_coco_ids(file)
    for other in ("NFC", "NFD"):
        path = unicodedata.normalize(other, "pictures/café/1.png")
        ids.require(["caf\u00e9"], [path])  # as networks call their classes
        assert ids.image(path) == 7
        assert isinstance(ids.image(path), int)  # 7.0 is the same to COCO's tools
