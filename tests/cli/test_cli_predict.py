"""`routespace predict`: tables, JSON and CSV of what is on images; standard input; what cannot be read."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_grid import TINY_GRID
from train_photos import photos
from typer.testing import CliRunner

from routespace import Architecture, Card, GridSpec, Predictor, RoutingGrid, TaskNet, save_bundle
from routespace.cli.app import app
from routespace.cli.status import busy
from routespace.preprocess import Preprocess, save_preprocess
from routespace.workflow.artifacts import load_artifact
from routespace.workflow.exporting import export_artifact

NAMES = ("ant [small]", "a very long name of a class of animals that hardly anybody has seen", "dög ☕")


def bundle(folder, kind="staircase", channels=3):
    """A bundle of a network that was never trained."""
    torch.manual_seed(0)
    grid = RoutingGrid(GridSpec.parse(TINY_GRID | {"num_classes": 3, "in_channels": channels}))
    net = TaskNet.classifier(getattr(Architecture, kind)(grid)).eval()
    save_bundle(net, folder, Card.of(net))
    save_preprocess(folder, Preprocess(size=(32, 32), channels=channels), NAMES)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Bundles of a static network and of supernets, an exported file, and some images."""
    place = tmp_path_factory.mktemp("predict")
    bundle(place / "small")
    for channels in (1, 3, 4):
        bundle(place / f"routed{channels}", "full", channels)
    export_artifact(load_artifact(place / "small"), place / "out", ["pt2"])
    photos(place / "photos", count=2, split="", sub="deep")
    return place


@pytest.fixture
def messy(place, tmp_path):
    """The images, some that cannot be read, and others that are none."""
    folder = Path(shutil.copytree(place / "photos", tmp_path / "messy"))
    (folder / "bad.png").write_bytes(b"")
    (folder / "worse.jpg").write_bytes((folder / "ant/deep/0.png").read_bytes()[:70])
    (folder / "a.heic").write_bytes(b"x")
    return folder


def predict(*args, stdin=None):
    """Run the command."""
    return CliRunner().invoke(app, ["predict", *map(str, args), "--device", "cpu"], input=stdin)


def test_one_image_is_a_table_of_its_classes(place):
    image = place / "photos/ant/deep/0.png"
    done = predict(place / "small", image)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["class", "score"]
    found = Predictor(place / "small", "cpu")(image)
    assert [line.rsplit("  ", 1)[0].strip() for line in lines[1:]] == list(found.labels)
    assert lines[1].endswith(f"{100 * found.score:.1f} %")
    assert len(predict(place / "small", image, "--top", 1).stdout.splitlines()) == 2


@pytest.mark.parametrize("columns", ["40", "200"])
def test_a_folder_is_a_table_of_images_that_cuts_nothing(place, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.chdir(place)
    lines = predict("small", "photos").stdout.splitlines()
    found = Predictor(place / "small", "cpu")("photos")
    assert lines[0].split() == ["image", "class", "score", "then"]
    for line, one in zip(lines[1:], found, strict=False):
        assert line.startswith(one.path)
        assert all(name in line for name in NAMES)
    assert lines[-1].startswith("6 images: ")
    assert sum(int(part.rsplit(" ", 1)[1]) for part in lines[-1].removeprefix("6 images: ").split(", ")) == 6


def test_json_and_csv_say_the_same(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    images = ("photos/ant", "photos/cat/deep/1.png", "--top", 2)
    done = predict("out/model.pt2", *images, "--json", "--csv", tmp_path / "a.csv")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    names = ("ant/deep/0", "ant/deep/1", "cat/deep/1")
    assert [one["path"] for one in found] == [f"photos/{name}.png" for name in names]
    for one in found:
        assert set(one) == {"path", "label", "score", "top"}
        assert [one["label"], one["score"]] == list(one["top"][0].values())
        assert len(one["top"]) == 2
    text = (tmp_path / "a.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == ["path", "label", "score", "label_2", "score_2"]
    for row, one in zip(rows, found, strict=True):
        assert (row["path"], row["label"], row["label_2"]) == (one["path"], one["label"], one["top"][1]["label"])
        assert float(row["score"]) == pytest.approx(one["score"], abs=1e-6)
    printed = predict("small", *images, "--csv", "-")
    assert [row["label"] for row in csv.DictReader(io.StringIO(printed.stdout))] == [one["label"] for one in found]
    line = predict("small", "photos", "--csv", tmp_path / "b.csv").stdout
    assert line.startswith(f"{tmp_path / 'b.csv'}  6 images: ")


def test_standard_input_holds_an_image_or_paths(place, monkeypatch):
    monkeypatch.chdir(place)
    image = Path("photos/ant/deep/0.png")
    (expected,) = json.loads(predict("small", image, "--json").stdout)
    (found,) = json.loads(predict("small", "-", "--json", stdin=image.read_bytes()).stdout)
    assert found == expected | {"path": "-"}
    paths = [str(image), "photos/cat", "nosuch.png"]
    meant = [str(image), "photos/cat/deep/0.png", "photos/cat/deep/1.png"]
    for text in ("\n".join(paths) + "\n", "\r\n".join(paths), "\0".join(paths)):
        done = predict("small", "-", "--json", stdin=text)
        assert [one["path"] for one in json.loads(done.stdout)] == meant
        assert "nosuch.png: no such file" in done.stderr
        assert "1 of 4 images are left out" in done.stderr


@pytest.mark.parametrize(
    ("stdin", "words"), [(b"", "is empty"), (b"\xff\x00\x12", "neither an image"), (b"no\n", "neither")]
)
def test_other_standard_input_is_refused(place, stdin, words):
    done = predict(place / "small", "-", stdin=stdin)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: stdin: ")
    assert words in done.stderr


def test_what_cannot_be_read_is_named_and_counted(place, messy):
    for more in ([], ["--workers", 2, "--batch", 3]):
        done = predict(place / "small", messy, "--json", *more)
        assert done.exit_code == 1, done.stderr
        assert len(json.loads(done.stdout)) == 6
        told = done.stderr.splitlines()
        assert told[0] == f"warning: {messy}/bad.png: is empty (0 bytes); replace or remove it"
        assert told[1].startswith(f"warning: {messy}/worse.jpg: missing or corrupt image")
        assert told[2:] == ["warning: 2 of 8 images are left out", "left out: .heic 1"]


def test_a_line_now_and_then_where_output_goes_to_a_pipe(place, monkeypatch):
    monkeypatch.setattr("routespace.cli.status.QUIET_S", 0)
    told = predict(place / "small", place / "photos", "--batch", 4, "--json").stderr.splitlines()
    assert told == [f"predicting, {i} of 6 images …" for i in range(1, 7)]
    monkeypatch.setattr("routespace.cli.status.QUIET_S", 30)
    assert predict(place / "small", place / "photos", "--batch", 4, "--json").stderr == ""


def test_a_long_silence_is_told_again_and_again(monkeypatch, capfd):
    monkeypatch.setattr("routespace.cli.status.QUIET_S", 0.02)
    lines = ""
    with busy("tracing"):
        while lines.count("\n") < 2:  # pytest's time limit ends a teller that says nothing
            lines += capfd.readouterr().err
    assert all(re.fullmatch(r"tracing … \(\d+ s so far\)", line) for line in lines.splitlines())
    assert lines.count("\n") >= 2


def test_nothing_that_can_be_read_is_an_error(place, messy):
    for path in messy.iterdir():
        shutil.rmtree(path) if path.is_dir() else None
    done = predict(place / "small", messy)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: none of the 2 images can be used; first {messy}/bad.png: is empty")
    done = predict(place / "small", messy / "bad.png")
    assert done.exit_code == 2
    assert done.stderr == f"error: {messy}/bad.png: is empty (0 bytes); replace or remove it\n"


@pytest.mark.parametrize("channels", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3)), 4])
def test_a_picture_of_the_computed_tokens(place, tmp_path, channels):
    done = predict(place / f"routed{channels}", place / "photos", "--picture", tmp_path / "tokens.png")
    assert done.exit_code == 0, done.stderr
    assert Image.open(tmp_path / "tokens.png").size[1] > 500  # six rows
    image = (place / "photos/ant/deep/0.png").read_bytes()
    assert predict(place / f"routed{channels}", "-", "--picture", tmp_path / "one.svg", stdin=image).exit_code == 0
    assert (tmp_path / "one.svg").stat().st_size > 1000


def test_pictures_that_cannot_be_drawn(place, tmp_path):
    for source, name, words in (
        ("small", "a.png", "the network is static and computes every token; give a routed one"),
        (
            "out/model.pt2",
            "a.png",
            "model.pt2 is an exported file and computes every token",
        ),
        ("routed3", "a.jpg", "a.jpg' ends in no known format"),
    ):
        done = predict(place / source, place / "photos", "--picture", tmp_path / name)
        assert (done.exit_code, done.stdout) == (2, "")
        assert words in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nosuch", "photos"], ["nosuch", "does not exist"]),
        (["photos", "photos"], ["photos", "has no network"]),
        (["out", "photos"], ["out/model.pt2"]),
        (["small/card.json", "photos"], ["card.json", "no known format"]),
        (["small", "nosuch"], ["nosuch", "no such file or folder"]),
        (["small", "small"], ["small", "no pictures in this folder", ".json 3"]),
        (["small", "photos", "--picture", "a.png"], ["picture", "static"]),
        (["small", "photos", "--csv", "photos"], ["photos", "cannot be written"]),
        (["small", "photos", "--json", "--csv", "-"], ["--csv", "--json"]),
        (["small", "photos", "--top", "0"], ["--top"]),
        (["small", "photos", "-"], ["images: -", "give it alone"]),
        (["small"], ["IMAGE"]),
    ],
)
def test_errors_come_before_torch(place, args, words, alone):
    done = alone(place, "predict", *args)
    assert (done.code, done.out, done.torch) == (2, "", False), done.err
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_a_name_that_is_no_utf_8(place, tmp_path):
    odd = tmp_path / "n\udcff.png"
    shutil.copy(place / "photos/ant/deep/0.png", odd)
    assert "n\\udcff.png" in predict(place / "small", tmp_path).stdout
    done = predict(place / "small", tmp_path, "--csv", tmp_path / "a.csv")
    assert done.exit_code == 0, done.stderr
    assert bytes(odd).split(b"/")[-1] in (tmp_path / "a.csv").read_bytes()


def test_a_bundle_without_its_recipe_is_evaluated_on_named_images(cli, tmp_path):
    folder = bundle(tmp_path / "alone")
    photos(tmp_path / "photos", count=2, split="", sub="deep")
    save_preprocess(folder, Preprocess(size=(32, 32), channels=3), ("dog", "ant", "cat"))
    cli("evaluate", folder).assert_refused("has no recipe.yaml", "--data", "--recipe")
    report = json.loads(cli("evaluate", folder, "--data", tmp_path / "photos", "--json").assert_fine().out)
    right = [found.label == Path(found.path).parts[-3] for found in Predictor(folder, "cpu")(tmp_path / "photos")]
    assert report["images"] == len(right) == 6
    assert report["accuracy"] == pytest.approx(sum(right) / 6)
