"""Predictions: what evaluation counts as right, by every kind of run, bundle and file, for every kind of image."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_grid import TINY_GRID
from train_photos import COLOURS, photo_recipe, photos, picture

from routespace import (
    Architecture,
    BundleError,
    Card,
    DataError,
    GridSpec,
    MissingDependencyError,
    Predictor,
    RoutingGrid,
    SpecError,
    TaskNet,
    evaluate,
    extract_bundle,
    load_bundle,
    save_bundle,
    train_recipe,
)
from routespace.deploy.examples import example_images
from routespace.deploy.export.formats import EXPORTERS
from routespace.deploy.predict.batches import read_batches
from routespace.deploy.predict.images import gather
from routespace.deploy.predict.network import OpenNetwork, open_network
from routespace.preprocess import Preprocess, preprocess_to_json, save_preprocess
from routespace.train.data.evaluation import evaluation_loaders
from routespace.workflow.artifacts import load_artifact
from routespace.workflow.exporting import export_artifact

KINDS = ["run", "bundle", *(f"alone_{name}/model{exporter.suffix}" for name, exporter in EXPORTERS.items())]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A routed run, the bundle of a static one, its files each alone in a folder, and images with wrong labels."""
    place = tmp_path_factory.mktemp("place")
    photos(place / "photos", count=30)
    train_recipe(photos_recipe(place, train__epochs=3), place / "static")
    start = {"train__weights": str(place / "static"), "train__start": "staircase"}  # which learns on in an epoch
    routed = photos_recipe(
        place, routing="both", budget__ratio=1.0, train__epochs=1, train__warmup_epochs=0, **start
    )
    train_recipe(routed, place / "run")
    extract_bundle(place / "static", place / "bundle")
    export_artifact(load_artifact(place / "bundle"), place / "all", list(EXPORTERS))
    for name, exporter in EXPORTERS.items():
        file = place / f"alone_{name}" / f"model{exporter.suffix}"
        file.parent.mkdir()
        shutil.copy(place / "all" / file.name, file)
    photos(place / "test", count=7, split="", sub="deep")
    for i in range(3):  # are called dogs, and look like cats
        picture(place / f"test/dog/wrong{i}.jpg", COLOURS["cat"], 40 + i, side=37 + 9 * i)
    return place


def photos_recipe(place, **changes):
    fixed = {"data__scale": 0.8, "data__crop_pct": 0.75, "train__lr": 5e-3}
    return photo_recipe(place / "photos", **fixed | changes)


def bundle_of(folder, channels=3, *, classes=("ant", "cat", "dog"), **spec):
    """A bundle of a network that was never trained."""
    torch.manual_seed(0)
    grid = RoutingGrid(GridSpec.parse(TINY_GRID | {"num_classes": 3, "in_channels": channels} | spec))
    net = TaskNet.classifier(Architecture.staircase(grid)).eval()
    save_bundle(net, folder, Card.of(net))
    save_preprocess(folder, Preprocess(size=(32, 32), channels=channels), classes)
    return net


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_are_right_as_evaluation_says(place, kind):
    of = load_artifact(place / ("run" if kind == "run" else "bundle"))
    loaders = evaluation_loaders(
        of.require_recipe(), of.net.spec, preprocess=of.preprocess, classes=of.classes, data=place / "test"
    )
    evaluated = evaluate(of.net, loaders.test)
    predictor = Predictor(place / kind, "cpu", 5)
    found = predictor(place / "test")
    assert len(found) == evaluated["images"] == 24
    names = [Path(one.path).relative_to(place / "test").parts[0] for one in found]
    right = sum(one.label == name for one, name in zip(found, names, strict=True))
    assert right / 24 == pytest.approx(evaluated["accuracy"], abs=1e-6)
    assert 0.4 < evaluated["accuracy"] < 1
    batch = next(iter(loaders.test))[0]
    np.testing.assert_allclose(
        predictor.logits(batch.numpy()), of.net(batch).logits.detach().numpy(), atol=2e-4, rtol=0
    )


def test_the_card_of_an_extracted_network_says_how_to_use_it(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    exec("\n".join(load_bundle("bundle").card.use), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 90
    assert sum(line.split("/")[2] == line.split(" ")[1] for line in lines) > 45  # photos/train/ant/0.png ant 0.9


def test_scores_are_shares_the_greatest_first(place):
    predictor = Predictor(place / "bundle")
    image = place / "test/dog/wrong1.jpg"
    one = predictor(image, top=None)
    assert (one.path, one.label, one.score) == (str(image), one.labels[0], one.scores[0])
    assert sorted(one.labels) == ["ant", "cat", "dog"]
    assert list(one.scores) == sorted(one.scores, reverse=True)
    assert sum(one.scores) == pytest.approx(1)
    logits = torch.from_numpy(predictor.logits(predictor.preprocess.read(image)[None]))
    order = [predictor.classes.index(name) for name in one.labels]
    assert torch.allclose(logits.softmax(1)[0, order].double(), torch.tensor(one.scores, dtype=torch.double))
    short = predictor(str(image), top=2)
    assert (short.labels, short.scores) == (one.labels[:2], one.scores[:2])
    assert predictor([image]) == [one]
    with pytest.raises(SpecError, match="top: 0 is not allowed"):
        predictor(image, top=0)


def test_images_in_every_form_are_the_same_image(place, tmp_path):
    predictor = Predictor(place / "bundle")
    Image.open(place / "test/cat/deep/0.png").save(tmp_path / "a.png")
    pixels = Image.open(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    forms = [tmp_path / "a.png", pixels, np.asarray(pixels), io.BytesIO(content), str(tmp_path / "a.png")]
    scores = [predictor(form).scores for form in forms]
    assert len(set(scores)) == 1
    for one in predictor(iter([*forms[:3], tmp_path])):
        assert one.scores == pytest.approx(
            scores[0], abs=1e-6
        )  # products of a batch are added up in another order
    assert [one.path for one in predictor(forms[:2])] == [str(tmp_path / "a.png"), None]
    assert predictor([]) == []
    tensor = torch.from_numpy(np.array(pixels.convert("RGB"))).permute(2, 0, 1)  # as torchvision reads it
    assert predictor(tensor).scores == pytest.approx(scores[0], abs=1e-6)
    assert predictor([tensor]) == [predictor(tensor)]
    assert Predictor(place / "alone_onnx/model.onnx", torch.device("cpu"))(pixels).label == predictor(pixels).label
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 50).rotate(90, expand=True).save(
        tmp_path / "b.png", exif=exif
    )
    assert predictor(Image.open(tmp_path / "b.png")).scores == predictor(tmp_path / "b.png").scores


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        torch.zeros(3, 8, 8),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        b"bytes",
        3,
        [3],
    ],
    ids=[
        "float",
        "channels first",
        "four dimensions",
        "no pixels",
        "float tensor",
        "batch",
        "bytes",
        "number",
        "list of a number",
    ],
)
def test_other_things_are_refused(place, images):
    with pytest.raises(SpecError, match=r"images: an? .* was given") as caught:
        Predictor(place / "bundle")(images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("channels", "form"), [(1, None), (4, None), (4, "pt2"), pytest.param(1, "pt2", marks=pytest.mark.slow)]
)
def test_grey_and_transparent_networks(channels, form, tmp_path):
    net = bundle_of(tmp_path / "bundle", channels)
    place = tmp_path / "bundle"
    if form is not None:
        (report,) = export_artifact(load_artifact(place), tmp_path / "out", [form])
        place = report.path
    predictor = Predictor(place)
    rgba = Image.effect_mandelbrot((50, 40), (-2, -1, 1, 1), 50).convert("RGBA").rotate(30)
    assert {one.labels for one in predictor([rgba, rgba.convert("RGB"), rgba.convert("L"), rgba.convert("P")])}
    seen = predictor.preprocess(rgba)
    assert seen.shape == (channels, 32, 32)
    expected = net(torch.from_numpy(seen)[None]).logits.detach().softmax(1).max()
    assert predictor(np.asarray(rgba)).score == pytest.approx(float(expected), abs=1e-6)
    grey = np.asarray(rgba.convert("L"))
    assert predictor(grey).scores == predictor(grey[:, :, None]).scores


def test_a_file_that_takes_three_at_once(tmp_path):
    net = bundle_of(tmp_path / "bundle")
    told = json.dumps(preprocess_to_json(Preprocess(size=(32, 32)), ["ant", "cat", "dog"]))
    program = torch.export.export(net.as_module("logits"), (example_images(net, 3),))
    extra = {"metadata.json": json.dumps({"preprocess": told})}
    torch.export.save(program, tmp_path / "three.pt2", extra_files=extra)
    photos(tmp_path / "test", count=3, split="")
    fixed, free = Predictor(tmp_path / "three.pt2", batch_size=8), Predictor(tmp_path / "bundle", batch_size=4)
    assert fixed.batch_size == 3
    for count in (1, 3, 7):
        images = sorted((tmp_path / "test").rglob("*.png"))[:count]
        found, expected = fixed(images), free(images)
        assert [one.labels for one in found] == [one.labels for one in expected]
        np.testing.assert_allclose([one.scores for one in found], [one.scores for one in expected], atol=1e-6)


def test_an_onnx_file_that_takes_two_at_once(place, tmp_path):
    """As others write them: of fixed sizes, and without our metadata."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(place / "alone_onnx" / "model.onnx")
    for size, fixed in zip(model.graph.input[0].type.tensor_type.shape.dim, (2, 3, 32, 32), strict=True):
        size.dim_value = fixed
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "two.onnx")
    bundle = load_artifact(place / "bundle")
    with pytest.raises(BundleError, match=r"two.onnx: does not tell how images go in; .*routespace export"):
        Predictor(tmp_path / "two.onnx")
    given = Predictor(tmp_path / "two.onnx", preprocess=bundle.preprocess, classes=bundle.classes)
    assert given.batch_size == 2
    images = sorted((place / "test").rglob("*.png"))[:3]
    expected = Predictor(place / "bundle")(images)
    assert [one.labels for one in given(images)] == [one.labels for one in expected]
    model.metadata_props.add(key="preprocess", value="{")
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(BundleError, match=r"bad.onnx: its metadata cannot be read"):
        Predictor(tmp_path / "bad.onnx")
    small = Predictor(tmp_path / "two.onnx", preprocess=Preprocess(size=(16, 16)))
    with pytest.raises(Exception, match=r"two.onnx: cannot take images \(2, 3, 16, 16\)") as caught:
        small(images)
    assert "\n" not in str(caught.value)


def test_a_new_format_predicts_without_more(place, tmp_path, monkeypatch):
    """A format without a place for metadata: what lies beside its file is read."""
    pt2 = EXPORTERS["pt2"]

    def load(path, device=None):
        return replace(pt2.load(path, device), metadata={})

    new = replace(pt2, name="new", suffix=".new", load=load)
    monkeypatch.setattr("routespace.deploy.export.formats.EXPORTERS", {**EXPORTERS, "new": new})
    shutil.copy(place / "alone_pt2/model.pt2", tmp_path / "model.new")
    shutil.copy(place / "bundle/preprocess.json", tmp_path)
    image = Image.new("RGB", (40, 40), "red")
    assert Predictor(tmp_path / "model.new")(image).label == Predictor(place / "bundle")(image).label


def test_what_cannot_be_read_is_raised_or_left_out(place, tmp_path):
    folder = Path(shutil.copytree(place / "test/ant/deep", tmp_path / "mixed"))
    (folder / "2.png").write_bytes(b"")
    (folder / "a.jpg").write_bytes((folder / "3.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "__MACOSX").mkdir()
    shutil.copy(folder / "3.png", folder / "__MACOSX")
    predictor = Predictor(place / "bundle", batch_size=2)
    with pytest.raises(DataError, match=r"2.png: is empty \(0 bytes\); replace or remove it"):
        predictor(folder)
    for workers in (0, 2):
        predictor.workers, bad = workers, []
        found = list(predictor.stream(folder, unreadable=bad.append))
        assert [Path(one.path).name for one in found] == [f"{i}.png" for i in (0, 1, 3, 4, 5, 6)]
        assert [str(error).split(":")[0] for error in bad] == [str(folder / "2.png"), str(folder / "a.jpg")]
        assert "corrupt image" in str(bad[1])
    with pytest.raises(DataError, match="no such file or folder"):
        predictor(folder / "nosuch.png")
    with pytest.raises(DataError, match=r"nosuch\.png: no such file; replace or remove it"):
        predictor([folder / "nosuch.png"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"empty: no pictures in this folder \(.heic 1\)"):
        predictor(tmp_path / "empty")
    broken = Image.open(place / "test/dog/wrong0.jpg")
    broken.fp.close()
    with pytest.raises(DataError, match=r"wrong0\.jpg: missing or corrupt image"):
        predictor(broken)


def test_networks_that_do_not_tell(tmp_path):
    net = bundle_of(tmp_path / "bundle")
    (tmp_path / "bundle/preprocess.json").unlink()
    with pytest.raises(BundleError, match=r"bundle: does not tell how images go in; .*save_preprocess"):
        Predictor(tmp_path / "bundle")
    fed = Preprocess(size=(32, 32))
    image = Image.new("RGB", (9, 9), "blue")
    numbered = Predictor(tmp_path / "bundle", preprocess=fed)(image, top=None)
    assert sorted(numbered.labels) == ["0", "1", "2"]
    named = Predictor(tmp_path / "bundle", preprocess=fed, classes=["a", "b", "c"])(image, top=None)
    assert [int(number) for number in numbered.labels] == [ord(name) - ord("a") for name in named.labels]
    with pytest.raises(SpecError, match=r"gives \(1, 3\) for 1 images and 2 class names"):
        Predictor(tmp_path / "bundle", preprocess=fed, classes=["a", "b"])(image)
    with torch.no_grad():
        net.head.bias.fill_(float("nan"))
    save_bundle(net, tmp_path / "bad", Card.of(net))
    with pytest.raises(BundleError, match="not finite"):
        Predictor(tmp_path / "bad", preprocess=fed)(image)


def test_what_is_no_classifier_is_refused(tmp_path):
    bundle_of(tmp_path / "maps", num_classes=0, classes=())
    with pytest.raises(SpecError, match="maps: gives features_r08, no classes; give a classifier"):
        Predictor(tmp_path / "maps")


def test_what_is_none_of_these_is_told_by_what_it_is(place, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.onnx").write_text("x")
    for path, error, words in (
        (tmp_path / "nosuch", BundleError, r"does not exist; give a run, a bundle, or an exported file \(\.onnx"),
        (tmp_path / "a.txt", SpecError, r"no known format; give one of \.onnx, \.pt2"),
        (tmp_path / "a.onnx", BundleError, "cannot be read"),
        (place / "all", BundleError, r"folder of exported files; give one of them, such as .*model\.onnx"),
        (place / "photos", BundleError, "has no network"),
    ):
        with pytest.raises(error, match=words):
            Predictor(path)
    for more, words in (
        ({"device": "tpu"}, "device: 'tpu' is not allowed"),
        ({"batch_size": 0}, "batch_size: 0 is not allowed"),
        ({"workers": -1}, "workers: -1 is not allowed"),
    ):
        for kind in ("bundle", "alone_pt2/model.pt2"):
            with pytest.raises(SpecError, match=words):
                Predictor(place / kind, **more)
    with pytest.raises(SpecError, match=r"device: 'cuda' is not there for \.onnx files"):
        Predictor(place / "alone_onnx/model.onnx", "cuda")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"running .onnx files needs onnxruntime; install it with"):
        Predictor(place / "alone_onnx/model.onnx")


def test_onnx_files_run_without_torch_and_without_what_writes_them(place):
    code = (
        "import sys; sys.modules.update(torch=None, onnx=None, onnxscript=None); "
        "from routespace import Predictor; "
        "print([found.label for found in Predictor('model.onnx')(sys.argv[1])])"
    )
    words = [sys.executable, "-c", code, str(place / "test")]
    done = subprocess.run(words, cwd=place / "alone_onnx", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(
        [found.label for found in Predictor(place / "bundle", "cpu")(place / "test")]
    )


def test_a_routed_network_computes_what_its_gates_decide(place):
    assert Predictor(place / "run").net.execution == "auto"
    assert not Predictor(place / "run").net.architecture.is_static
    assert isinstance(open_network(place / "run"), OpenNetwork)


def test_importing_it_is_cheap():
    code = (
        "import sys; from routespace import Predictor; print([n for n in ('torch', 'timm') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.endswith("onnx")])
def test_on_a_gpu(place, kind):
    there, here = Predictor(place / kind, "cuda"), Predictor(place / kind, "cpu")
    found, expected = there(place / "test"), here(place / "test")
    assert [one.label for one in found] == [one.label for one in expected]
    np.testing.assert_allclose([one.score for one in found], [one.score for one in expected], atol=5e-3)
    assert Predictor(place / kind)(place / "test/cat/deep/0.png").label == expected[7].label  # auto


@pytest.mark.parametrize("workers", [0, 1])
def test_whole_pictures_are_read_in_groups_of_one_size(tmp_path, workers):
    preprocess = Preprocess(size=(32, 64), fit="inside", multiple=16)
    sizes = [(40, 60), (60, 40), (80, 120), (20, 20)]
    for number, (height, width) in enumerate(sizes):
        Image.fromarray(np.full((height, width, 3), 40 * number, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "4.png").write_bytes(b"")
    items = gather(tmp_path).items
    (batch,) = read_batches(items, preprocess, 8, workers=workers)
    assert batch.sizes == sizes
    assert [group.places for group in batch.groups] == [[0, 2], [1], [3]]
    assert [group.images.shape[2:] for group in batch.groups] == [(32, 48), (48, 32), (32, 32)]
    for group in batch.groups:
        for place, image in zip(group.places, group.images, strict=True):
            assert np.array_equal(image, preprocess.read(batch.paths[place]))
    assert [str(tmp_path / "4.png") in str(error) for error in batch.unreadable] == [True]
    with pytest.raises(SpecError, match="several sizes"):
        _ = batch.images
