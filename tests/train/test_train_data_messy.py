"""A folder as people have it: twelve formats, odd modes, files that are none; photographs of other packages."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.cbook
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images
from train_photos import photo_recipe
from train_tiny import tiny
from typer.testing import CliRunner

from routespace.cli.app import app
from routespace.picture_files import plain_name
from routespace.preprocess import load_preprocess
from routespace.train.data.source import make_source
from routespace.train.run import train_recipe

FORMATS = ("jpg", "png", "webp", "bmp", "tiff", "gif", "JPG", "jpeg", "PNG", "avif", "ppm", "jpe")
COUNT = {"train": 24, "test": 12}
NAMES = ("T\u00e4nzerin ☕", "red flower", "temple")
SIDE = 48


def photographs():
    """Class name → photograph; names with a space, an umlaut and a symbol."""
    temple, flower = (Image.fromarray(image) for image in load_sample_images().images)
    face = Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg")).convert("RGB")
    return {"Ta\u0308nzerin ☕": face, "red flower": flower, "temple": temple}


def crops(root):
    """Write crops of each photograph in all formats, those of test from its right third."""
    draw = random.Random(0)
    for name, photo in photographs().items():
        for split, count in COUNT.items():
            folder = Path(root, split, name, "2021" if split == "train" else "")
            folder.mkdir(parents=True, exist_ok=True)
            low, high = (0, 2 * photo.width // 3) if split == "train" else (2 * photo.width // 3, photo.width)
            for i in range(count):
                left, top = draw.randrange(low, high - SIDE), draw.randrange(photo.height - SIDE)
                crop = photo.crop((left, top, left + SIDE, top + SIDE))
                crop.save(folder / f"{i:02d}.{FORMATS[i % len(FORMATS)]}")


def odd_ones(folder, photo):
    """Readable pictures of every other kind."""
    small = photo.crop((0, 0, SIDE, SIDE))
    grey = small.convert("L")
    grey.save(folder / "grey.png")
    small.convert("CMYK").save(folder / "cmyk.jpg")
    grey.convert("LA").save(folder / "la.png")
    small.convert("RGBA").rotate(45).save(folder / "rgba.png")
    grey.convert("1").save(folder / "bits.png")
    small.convert("P").save(folder / "palette.png", transparency=bytes(range(256)))
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(np.asarray(grey).astype(np.float32) / 255).save(folder / "float.tif")
    small.resize((1, 1)).save(folder / "dot.png")
    photo.resize((4000, 2250)).save(folder / "large.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    small.save(folder / "turned.jpg", exif=exif)
    small.save(folder / "webp.jpg", "WEBP")
    (folder / "link.png").symlink_to(folder / "grey.png")


def no_pictures(root):
    """What lies about in such folders."""
    for name in (".DS_Store", "Thumbs.db", "._00.jpg", "temple/._01.jpg", "temple/Thumbs.db", "__MACOSX/a/0.png"):
        path = Path(root, "train", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    Path(root, "train/temple/a.heic").write_bytes(b"x")
    Path(root, "train/notes.txt").write_text("x")


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    """The root of such a folder."""
    root = tmp_path_factory.mktemp("messy")
    crops(root)
    odd_ones(root / "train/temple", photographs()["temple"])
    no_pictures(root)
    return root


def command(*args):
    """Run the command line."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_every_picture_is_found_and_read(messy):
    source = make_source(photo_recipe(messy))
    assert source.classes == NAMES
    assert source.summary.left_out == {".heic": 1, "files outside class folders": 1}
    assert sum(map(len, source.parts.values())) == 3 * COUNT["train"] + 13
    assert len(source.test()) == 3 * COUNT["test"]
    for dataset in (source.train(), source.val(), source.test()):
        for image, _ in dataset:
            assert image.shape == (3, 32, 32)
            assert image.isfinite().all()
            assert image.abs().max() < 2.7


def test_from_check_to_prediction(messy, tmp_path, monkeypatch):
    monkeypatch.chdir(messy.parent)
    checked = command("data", "check", messy.name, "--workers", "1", "--json")
    assert checked.exit_code == 0
    findings = json.loads(checked.stdout)["findings"]
    found = {(Path(finding["path"]).name, finding["problem"]) for finding in findings}
    assert found == {("webp.jpg", "wrong ending"), ("link.png", "duplicate")}
    recipe = photo_recipe(messy, train__epochs=2, train__batch_size=8, data__scale=0.5, data__workers=1)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    ran = command("train", tmp_path / "recipe.yaml", "--data", messy.name, "--out", tmp_path / "run")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout.startswith("3 classes, 85 images (train ")
    assert "left out: .heic 1, files outside class folders 1" in ran.stdout
    monkeypatch.chdir("/")
    tested = command("evaluate", tmp_path / "run", "--json", "--device", "cpu")
    assert tested.exit_code == 0, tested.stderr
    result = json.loads(tested.stdout)
    assert result["images"] == 3 * COUNT["test"]
    again = json.loads(command("evaluate", tmp_path / "run", "--data", messy, "--json", "--device", "cpu").stdout)
    assert (again["accuracy"], again["loss"]) == (result["accuracy"], result["loss"])
    assert load_preprocess(tmp_path / "run")[1] == NAMES
    predicted = command("predict", tmp_path / "run", messy / "test", "--json", "--device", "cpu")
    assert share_right(json.loads(predicted.stdout), messy) == pytest.approx(result["accuracy"], abs=1e-6)
    odd = command("predict", tmp_path / "run", messy / "train", "--json", "--device", "cpu")
    assert len(json.loads(odd.stdout)) == 85  # what the class folders hold, as training found it
    assert odd.stderr == "left out: .heic 1, .txt 1\n"


def share_right(found, root):
    """The share of predictions that are the name of the image's folder below `test`."""
    names = [plain_name(Path(one["path"]).relative_to(root / "test").parts[0]) for one in found]
    return np.mean([one["label"] == name for one, name in zip(found, names, strict=True)])


def fine(*args):
    """What a command that ends well prints."""
    done = command(*args)
    assert done.exit_code == 0, (args, done.stderr)
    return done.stdout


@pytest.mark.slow
def test_from_a_bundle_s_weights_to_an_onnx_file_alone(messy, tmp_path):
    """The whole way: weights of a bundle, training, extraction, fine-tuning, export, prediction."""
    pytest.importorskip("onnxruntime")
    train_recipe(tiny(routing="static", train__epochs=1), tmp_path / "digits")
    fine("extract", tmp_path / "digits", "-o", tmp_path / "pretrained")
    recipe = photo_recipe(messy, routing="both", train__epochs=3, train__batch_size=8, train__lr=5e-3)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert fine("data", "check", messy).startswith("3 classes, 121 images (train 85, test 36)")
    weights = ("--set", f"train.weights={tmp_path / 'pretrained'}")
    told = fine("train", tmp_path / "recipe.yaml", *weights, "--out", tmp_path / "run")
    assert f"weights: {tmp_path / 'pretrained'}" in told
    assert "new: gates, head (3 classes)" in told
    routed = json.loads(fine("evaluate", tmp_path / "run", "--json", "--no-speed", "--device", "cpu"))
    assert routed["counted_macs"] < routed["macs"]
    assert share_right(json.loads(fine("predict", tmp_path / "run", messy / "test", "--json")), messy) == (
        pytest.approx(routed["accuracy"], abs=1e-6)
    )
    fine("extract", tmp_path / "run", "--ratio", 0.7, "-o", tmp_path / "small")
    tuning = ("--set", "train.epochs=8", "--set", "train.warmup_epochs=0", "--set", "train.lr=5e-3")
    fine("train", tmp_path / "recipe.yaml", "--from", tmp_path / "small", *tuning, "--out", tmp_path / "tuned")
    fine("extract", tmp_path / "tuned", "-o", tmp_path / "final")
    tested = json.loads(fine("evaluate", tmp_path / "final", "--json", "--device", "cpu"))
    fine("export", tmp_path / "final", "-o", tmp_path / "exported", "--format", "onnx")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(tmp_path / "exported/model.onnx", alone)
    for gone in ("digits", "pretrained", "run", "small", "tuned", "final", "exported"):
        shutil.rmtree(tmp_path / gone)
    code = (
        "import json, sys; from routespace import Predictor; predictor = Predictor('model.onnx', batch_size=5); "
        "print(json.dumps([{'path': one.path, 'label': one.label} for one in predictor(sys.argv[1])]))"
    )
    words = [sys.executable, "-c", code, messy / "test"]
    done = subprocess.run(words, cwd=alone, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert len(found) == tested["images"] == 3 * COUNT["test"]
    assert share_right(found, messy) == pytest.approx(tested["accuracy"], abs=1e-6)
    assert 2 <= len({one["label"] for one in found}) <= 3


def test_a_broken_one_is_refused_before_anything_is_written(messy, tmp_path):
    broken = messy / "train/temple/zzz.png"
    broken.write_bytes(b"")
    try:
        refused = command(
            "train", "digits_tiny", "--data", messy, "--set", "grid.num_classes=3", "-o", tmp_path / "run"
        )
    finally:
        broken.unlink()
    assert refused.exit_code == 2
    assert "zzz.png: is empty (0 bytes); replace or remove" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_training_on_grey_pictures(messy, tmp_path):
    result = train_recipe(photo_recipe(messy, grid__in_channels=1, train__epochs=1), tmp_path / "run")
    assert np.isfinite(result.metrics["loss"])
