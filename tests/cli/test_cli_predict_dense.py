"""`routespace predict` of networks that find objects or tell pixels: JSON, tables, drawn pictures, maps."""

import csv
import io
import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_tiny import dense_net
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner

from routespace import Card, Predictor, save_bundle
from routespace.cli.app import app
from routespace.cli.predict_dense import Told, show_told
from routespace.deploy.export.base import Prepared
from routespace.deploy.export.formats import EXPORTERS
from routespace.deploy.predict.images import gather
from routespace.draw.answers import colour_of
from routespace.errors import SpecError
from routespace.files import json_text
from routespace.preprocess import Preprocess, preprocess_to_json, save_preprocess
from routespace.workflow.drawing_answers import AnswerFolder

NAMES = "ant", "bee", "cat"
SIZES = (40, 60), (60, 40)
KINDS = {
    "detect": {"width": 32, "score_threshold": 0.0},
    "instance": {"width": 16, "proposals": 20, "max_detections": 10, "score_threshold": 0.0},
    "semantic": {"channels": 64},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("dense")
    for kind, settings in KINDS.items():
        net = dense_net(kind, classes=3, **settings).eval()
        save_bundle(net, place / kind, Card.of(net))
        save_preprocess(place / kind, Preprocess(size=(32, 64)).inside(multiple=8), NAMES)
    rng = np.random.default_rng(0)
    for number, size in enumerate(SIZES):  # of one name, in two folders
        (place / "pictures" / str(number)).mkdir(parents=True)
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "pictures" / str(number) / "a.png")
    return place


def predict(*args):
    """Run the command."""
    return CliRunner().invoke(app, ["predict", *map(str, args)], catch_exceptions=False)


@pytest.mark.parametrize("kind", ["detect", "instance"])
def test_objects_come_in_cocos_result_format(kind, place, tmp_path):
    out = predict(place / kind, place / "pictures", "--score", "0", "--json")
    results = json.loads(out.stdout)
    ground = COCO()
    ground.dataset = {
        "images": [{"id": n, "height": h, "width": w} for n, (h, w) in enumerate(SIZES, 1)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(NAMES, 1)],
        "annotations": [],
    }
    ground.createIndex()
    (tmp_path / "results.json").write_text(out.stdout)
    read = ground.loadRes(str(tmp_path / "results.json"))
    assert len(read.anns) == len(results) > 6
    assert {result["image_id"] for result in results} == {1, 2}
    assert ("segmentation" in results[0]) == (kind == "instance")
    expected = Predictor(place / kind, "cpu", least_score=0.0)(place / "pictures")
    assert [result["score"] for result in results] == pytest.approx(
        [score for answer in expected for score in answer.scores], abs=1e-7
    )  # coarser ones are ties, which change an average precision
    corners = np.concatenate([answer.boxes[:, :2] for answer in expected])
    assert np.abs(corners - np.array([result["bbox"][:2] for result in results])).max() < 1e-3


def annotations(folder, **changes):
    """A file of images and categories whose ids have holes."""
    images = [{"id": 10 * n + 7, "file_name": f"{n}/a.png"} for n in range(len(SIZES))]
    categories = [{"id": number, "name": name} for number, name in zip((90, 3, 17), NAMES, strict=True)]
    file = folder / "instances.json"
    file.write_text(json.dumps({"images": images, "categories": categories} | changes))
    return file


def test_results_have_the_ids_of_the_data_set(place, tmp_path):
    ids = annotations(tmp_path)
    plain = json.loads(predict(place / "detect", place / "pictures", "--score", "0", "--json").stdout)
    named = predict(place / "detect", place / "pictures", "--json", "--ids", ids)  # all that is found, for its AP
    found = json.loads(named.stdout)
    categories = dict(zip(NAMES, (90, 3, 17), strict=True))
    assert {result["image_id"] for result in found} == {7, 17}
    for result, before in zip(found, plain, strict=True):
        assert result["category_id"] == categories[result["category"]]
        assert result["image_id"] == 10 * before["image_id"] - 3
        assert result["bbox"] == before["bbox"]
    (tmp_path / "results.json").write_text(named.stdout)
    ground = COCO(str(ids))
    assert len(ground.loadRes(str(tmp_path / "results.json")).anns) == len(found)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"images": [{"id": 1, "file_name": "0/a.png"}]}, "has no image"),
        ({"categories": [{"id": 1, "name": "ant"}]}, "has no category 'bee', 'cat'"),
        ({"categories": []}, "has no list of categories"),
        ({"images": [{"id": "1", "file_name": "0/a.png"}]}, "has no file_name with a whole id"),
        ({"categories": [{"id": n, "name": "ant"} for n in (1, 2)]}, "1 and 2 have the same name 'ant'"),
    ],
)
def test_ids_that_do_not_fit_are_one_line(changes, line, place, tmp_path, cli):
    ids = annotations(tmp_path, **changes)
    cli("predict", place / "detect", place / "pictures", "--json", "--ids", ids).assert_refused(line)


def test_two_pictures_do_not_become_one_image(place, tmp_path, cli):
    """Its results would be there twice, and cost average precision without a word."""
    ids = annotations(tmp_path, images=[{"id": 5, "file_name": "a.png"}])
    args = "predict", place / "detect", "--json", "--ids", ids
    cli(*args, place / "pictures").assert_refused(
        "image 5 would be both", "0/a.png", "1/a.png", "give each image once"
    )
    picture = place / "pictures/0/a.png"
    cli(*args, picture, picture).assert_refused("image 5 would be")
    assert {result["image_id"] for result in json.loads(predict(*args[1:], picture).stdout)} == {5}


def test_names_that_windows_wrote_have_ids(place, tmp_path):
    ids = annotations(tmp_path, images=[{"id": n, "file_name": f"pictures\\{n}\\a.png"} for n in range(2)])
    found = predict(place / "detect", place / "pictures", "--json", "--ids", ids)
    assert {result["image_id"] for result in json.loads(found.stdout)} == {0, 1}


def test_only_objects_in_json_have_ids(place, tmp_path, cli):
    ids = annotations(tmp_path)
    cli("predict", place / "detect", place / "pictures", "--ids", ids).assert_refused("give --json")
    cli("predict", place / "semantic", place / "pictures", "--json", "--ids", ids).assert_refused("ids: only")


def test_objects_are_drawn_on_the_pictures_and_told_as_tables(place, tmp_path):
    args = place / "instance", place / "pictures", "--score", "0", "--draw", tmp_path / "seen"
    told = predict(*args)
    assert told.exit_code == 0
    assert "2 images, 20 objects" in told.stdout
    assert told.stderr == f"drawn in {tmp_path / 'seen'}\n"
    drawn = sorted(path.name for path in (tmp_path / "seen").iterdir())
    assert drawn == ["a.png", "a_2.png"]
    picture = np.asarray(Image.open(tmp_path / "seen" / "a.png"))
    assert picture.shape == (320, 480, 3)  # enlarged eight times, so that names are legible
    assert any((picture == colour_of(number)).all(-1).sum() > 100 for number in range(3))
    rows = list(csv.reader(io.StringIO(predict(*args[:4], "--csv", "-").stdout)))
    assert rows[0] == ["path", "label", "score", "x", "y", "width", "height"]
    assert len(rows) == 21
    assert "nothing" in predict(place / "detect", place / "pictures", "--score", "1").stdout
    one = predict(place / "detect", place / "pictures/0/a.png", "--score", "0").stdout
    assert "width" in one


ALIKE = (
    *(
        "a/x.jpg",
        "b/x.jpg",
        "x.jpg",
        "x.png",
        "X.png",
        "a/x_2.png",
        "a/ẞ.png",
        "b/ss.png",
        "猫の写真.png",
        "🐈.png",
    ),
    *("a/e\u0301.png", "b/\u00e9.png", "猫" * 83 + ".webp", "a/" + "猫" * 83 + ".webp", "line\nbreak.png"),
)


def test_no_answer_is_written_over_another(place, tmp_path):
    """Also where a file system takes capitals, or an accent that is a letter of its own, for the same."""
    for number, name in enumerate(ALIKE):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 8), (number, 0, 0)).save(tmp_path / "in" / name, lossless=True)
    out = predict(
        place / "semantic", tmp_path / "in", "--json", "--maps", tmp_path / "m", "--draw", tmp_path / "d"
    )
    assert out.exit_code == 0
    maps = {result["file_name"]: Path(result["map"]) for result in json.loads(out.stdout)}
    assert {str(Path(name).relative_to(tmp_path / "in")) for name in maps} == set(ALIKE)
    names = {unicodedata.normalize("NFC", path.name.casefold()) for path in maps.values()}
    assert len(names) == len(ALIKE) == len(list((tmp_path / "m").iterdir()))
    assert {path.name for path in (tmp_path / "d").iterdir()} == {path.name for path in maps.values()}
    answers = Predictor(place / "semantic", "cpu")(tmp_path / "in")
    for answer in answers:
        with Image.open(maps[answer.path]) as image:
            assert np.array_equal(np.asarray(image), answer.classes)


def test_pictures_without_files_are_not_drawn_for_each_other(tmp_path):
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    AnswerFolder(gather(pictures), drawn=None, maps=tmp_path)  # maps are made of answers alone
    AnswerFolder(gather(pictures[0]), drawn=tmp_path, maps=None)
    with pytest.raises(SpecError, match="draw: 2 pictures have no file"):
        AnswerFolder(gather(pictures), drawn=tmp_path, maps=None)


@pytest.mark.parametrize("kind", ["detect", "semantic"])
def test_letters_that_no_font_has_are_told(kind, place, tmp_path):
    """The private letters of Unicode are in no font that matplotlib brings, and few have them."""
    bundle = tmp_path / "bundle"
    shutil.copytree(place / kind, bundle)
    strange = "\U000f1234\U000f1235"
    save_preprocess(bundle, Preprocess(size=(32, 64)).inside(multiple=8), [strange, f"b{strange[:1]}", "Кот"])
    score = ("--score", "0") if kind == "detect" else ()
    out = predict(bundle, place / "pictures", *score, "--draw", tmp_path / "seen")
    told = [line for line in out.stderr.splitlines() if line.startswith("warning: no font")]
    assert len(told) == 1
    assert "has \U000f1234" in told[0]
    assert "К" not in told[0]
    plain = predict(place / kind, place / "pictures", *score, "--draw", tmp_path / "plain")
    assert "no font" not in plain.stderr


def test_pixels_become_maps_whose_values_are_the_classes(place, tmp_path):
    out = predict(
        place / "semantic", place / "pictures", "--json", "--maps", tmp_path / "maps", "--draw", tmp_path / "seen"
    )
    expected = Predictor(place / "semantic", "cpu")(place / "pictures")
    for result, answer in zip(json.loads(out.stdout), expected, strict=True):
        with Image.open(result["map"]) as image:
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), answer.classes)
        assert result["size"] == list(answer.classes.shape)
        assert [part["name"] for part in result["classes"]] == list(answer.labels)
    with Image.open(tmp_path / "seen" / "a_2.png") as image:
        assert image.width == 320
        assert image.height > 480  # the names stand below
    assert "2 images, with" in predict(place / "semantic", place / "pictures").stdout


@pytest.mark.parametrize(
    ("kind", "option", "line"),
    [
        ("detect", "--maps", "maps: only networks that tell the class of each pixel make maps"),
        ("detect", "--score=2", "Input should be less than or equal to 1"),
        ("detect", "--top=2", "top: only classifiers rank the classes of an image"),
        ("semantic", "--score=0.5", "score: only networks that find objects have a least score"),
    ],
)
def test_what_a_task_does_not_give_is_one_line(kind, option, line, place, tmp_path):
    value = [] if "=" in option else [tmp_path / "out"]
    found = predict(place / kind, place / "pictures", option, *value)
    assert found.exit_code == 2
    assert line in " ".join(found.output.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_of_every_task_can_be_drawn(kind, place, tmp_path):
    out = predict(place / kind, place / "pictures", "--picture", tmp_path / "tokens.png")
    assert out.exit_code == 0
    assert (tmp_path / "tokens.png").stat().st_size > 1000


def test_an_image_keeps_its_number_and_its_file_whatever_stands_before_it(place, tmp_path):
    asked = [tmp_path / name for name in ("0/a.png", "broken.png", "1/a.png", "1/a_2.png")]
    for path in asked:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((place / "pictures" / "0" / "a.png").read_bytes())
    asked[1].write_text("no picture")
    out = predict(place / "semantic", *asked, "--json", "--maps", tmp_path / "maps")
    told = json.loads(out.stdout)
    assert [one["image_id"] for one in told] == [1, 3, 4]
    assert len({one["map"] for one in told}) == len(list((tmp_path / "maps").iterdir())) == 3


@pytest.mark.parametrize(
    ("metadata", "step", "line"),
    [
        ({"least_side": "40", "side_step": "8"}, 8, "takes sides of 40 px or more"),
        ({"image_size": "[32, 48]"}, None, "takes 32 × 48 px alone"),
    ],
)
def test_pictures_that_a_file_cannot_take_are_told_and_the_others_go_on(metadata, step, line, place, tmp_path):
    fed = Preprocess(size=(48, 64) if step else (32, 64)).inside(multiple=8)
    told = {
        "preprocess": json_text(preprocess_to_json(fed, NAMES), indent=None),
        "outputs": '["pixel_logits"]',
        **metadata,
    }
    images = torch.zeros(2, 3, 32, 48)
    file = tmp_path / "net.pt2"
    EXPORTERS["pt2"].write(Prepared(torch.nn.Conv2d(3, 3, 1), ("pixel_logits",), images, told, step=step), file)
    folder = Path(shutil.copytree(place / "pictures", tmp_path / "pictures"))
    Image.new("RGB", (60, 6)).save(folder / "flat.png")
    Image.new("RGB", (200, 140)).save(folder / "good.png")  # fed at 40 × 64 and at 32 × 48
    done = predict(file, folder, "--json", "--maps", tmp_path / "maps")
    assert done.exit_code == 1, done.stderr
    found = [Path(one["file_name"]).name for one in json.loads(done.stdout)]
    assert "good.png" in found
    assert "flat.png" not in found
    assert len(found) == len(list((tmp_path / "maps").iterdir()))
    lines = done.stderr.splitlines()
    assert any(text.startswith(f"warning: {folder}/flat.png: is fed at ") and line in text for text in lines)
    assert lines[-1].endswith("of 4 images are left out")
    only = predict(file, folder / "flat.png", "--json", "--maps", tmp_path / "none")
    assert (only.exit_code, only.stdout) == (2, "")
    assert only.stderr.startswith(f"error: {folder}/flat.png: is fed at ")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("option", ["--draw", "--maps"])
def test_pictures_are_never_written_over(option, place, tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes((place / "pictures" / "0" / "a.png").read_bytes())
    before = picture.read_bytes()
    found = predict(place / "semantic", picture, option, tmp_path)
    assert found.exit_code == 2
    assert "holds the pictures themselves" in " ".join(found.output.split())
    assert picture.read_bytes() == before
    both = predict(place / "semantic", picture, "--draw", tmp_path / "x", "--maps", tmp_path / "x")
    assert both.exit_code == 2
    assert "choose two" in " ".join(both.output.split())


def part(folder, region, network):
    """A file as it lies beside an exported one."""
    told = {"network": network, "region": region, "first": "model.pt2"}
    write_graph(folder / f"model.{region}.pt2", told)


def write_graph(path, metadata):
    prepared = Prepared(torch.nn.Conv2d(3, 2, 1), ("found",), torch.zeros(2, 3, 8, 8), metadata)
    EXPORTERS["pt2"].write(prepared, path)


def test_files_that_do_not_fit_are_one_line(place, tmp_path, cli):
    files = {name: f"model.{name}.pt2" for name in ("boxes", "masks")}
    write_graph(tmp_path / "model.pt2", {"regions": json.dumps(files), "network": "one"})
    picture = place / "pictures" / "0" / "a.png"
    part(tmp_path, "boxes", "one")
    cli("predict", tmp_path / "model.pt2", picture).assert_refused("its file of masks, model.masks.pt2, is not")
    cli("predict", tmp_path / "model.boxes.pt2", picture).assert_refused("give", "model.pt2")
    part(tmp_path, "masks", "another")
    cli("predict", tmp_path / "model.pt2", picture).assert_refused("model.masks.pt2", "of another network")
    for name in ("model.boxes.pt2", "model.pt2"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        cli("predict", tmp_path / "model.pt2", picture).assert_refused(name, "cannot be read", "damaged")


def test_what_is_no_picture_is_one_line(place, tmp_path, cli):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_text("no picture")
    (tmp_path / "instances.json").write_text("{}")
    for given, words in (
        ("empty", "no pictures in this folder"),
        ("a.png", "is no image that Pillow can read"),
        ("instances.json", "tells of images and is none; give an image, or a folder of images"),
        ("nowhere", "no such file or folder"),
    ):
        cli("predict", place / "instance", tmp_path / given).assert_refused(given, words)


def test_a_picture_on_which_nothing_is_found_is_told_as_one(capsys):
    show_told([Told("a.png", [], [])], "objects", single=True)
    assert capsys.readouterr().out == "nothing is found\n"
    show_told([Told("a.png", [], []), Told("b.png", [], [])], "objects", single=False)
    assert capsys.readouterr().out.endswith("2 images, 0 objects\n")
