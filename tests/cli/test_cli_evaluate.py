"""`routespace evaluate`: what it tells of each class, and recipes of the package with one's own data."""

import csv
import json
import shutil

import pytest
import safetensors.torch
import timm
import torch
from tiny_grid import TINY_GRID
from train_photos import photo_recipe, photos

from routespace import Architecture, Card, GridSpec, RoutingGrid, TaskNet, save_bundle
from routespace.preprocess import Preprocess, save_preprocess
from routespace.recipes import load_recipe
from routespace.train.run_folder import RunFolder

CLASSES = ("ant", "cat", "dog")
SMALL = {
    "grid.image_size": 32,
    "grid.depths": 1,
    "train.epochs": 1,
    "train.warmup_epochs": 0,
    "train.batch_size": 8,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A bundle that says the same of every picture, and pictures of three classes."""
    place = tmp_path_factory.mktemp("evaluate")
    grid = RoutingGrid(GridSpec.parse(TINY_GRID | {"num_classes": 3}))
    net = TaskNet.classifier(Architecture.staircase(grid)).eval()
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.copy_(torch.tensor([0.0, 2.0, 1.0]))
    save_bundle(net, place / "small", Card.of(net))
    save_preprocess(place / "small", Preprocess(size=(32, 32)), CLASSES)
    photos(place / "photos", count=2, split="")
    photos(place / "photos", ("ant",), count=5, split="")
    return place


def test_each_class_is_told(cli, place, tmp_path):
    file = tmp_path / "confusion.csv"
    given = "evaluate", place / "small", "--data", place / "photos"
    text = cli(*given, "--by-class", "--confusion", file).assert_fine().out
    assert "accuracy    22.2 % of 9 test images" in text
    assert "also        balanced_accuracy 33.3 %" in text
    assert "by class    worst ant 0.0 %, often taken for cat; dog 0.0 %, often taken for cat; cat 100.0 %" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["class", "images", "accuracy", "precision", "taken", "for"] in rows
    assert ["ant", "5", "0.0", "%", "–", "cat"] in rows
    assert ["cat", "2", "100.0", "%", "22.2", "%", "–"] in rows
    table = list(csv.reader(file.read_text().splitlines()))
    assert table == [["class", *CLASSES], ["ant", "0", "5", "0"], ["cat", "0", "2", "0"], ["dog", "0", "2", "0"]]


def test_json_has_every_class_and_answer(cli, place):
    report = json.loads(cli("evaluate", place / "small", "--data", place / "photos", "--json").assert_fine().out)
    assert report["classes"] == {
        "ant": {"images": 5, "accuracy": 0.0, "taken_for": "cat"},
        "cat": {"images": 2, "accuracy": 1.0, "precision": pytest.approx(2 / 9)},
        "dog": {"images": 2, "accuracy": 0.0, "taken_for": "cat"},
    }
    assert report["confusion"] == {"ant": {"cat": 5}, "cat": {"cat": 2}, "dog": {"cat": 2}}
    assert report["balanced_accuracy"] == pytest.approx(1 / 3)


def test_images_that_moved_are_told_before_an_extraction_and_given_anew(cli, place, tmp_path):
    shutil.copytree(place / "small", tmp_path / "whole")
    (tmp_path / "whole/recipe.yaml").write_text(photo_recipe(tmp_path / "gone").to_yaml())
    asked = "extract", tmp_path / "whole", "-o", tmp_path / "out"
    refused = cli(*asked)
    refused.assert_refused(str(tmp_path / "gone"), "--data PATH")
    assert refused.out == ""
    cli(*asked, "--data", tmp_path / "nosuch").assert_refused("nosuch", "no such folder")
    assert "validation images; whole" in cli(*asked, "--data", place / "photos").assert_fine().out
    assert load_recipe(tmp_path / "out").data.root == str(place / "photos")
    cli("extract", place / "small", "-o", tmp_path / "more").assert_refused("has no recipe.yaml", "--recipe")


def test_a_table_that_cannot_be_written_is_refused_before_the_work(cli, place, tmp_path):
    (tmp_path / "file").write_text("")
    given = "evaluate", place / "small", "--data", place / "photos"
    cli(*given, "--confusion", tmp_path / "file" / "a.csv").assert_refused("file")


few = pytest.mark.filterwarnings("ignore:fewer than 5 validation images")


def assigned(changes):
    return [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]


@few
def test_a_recipe_of_the_package_takes_the_datas_classes(cli, tmp_path):
    folder, run = photos(tmp_path / "photos", count=6), tmp_path / "run"
    changes = assigned(SMALL | {"train.start": "open", "routing": "static"})
    train = "train", "digits_tiny", "--data", folder, "--out", run, *changes
    done = cli(*train).assert_fine()
    assert "grid.num_classes: 3, as the data has, in place of the recipe's 10" in done.out + done.err
    assert RunFolder(run).read_recipe().grid.num_classes == 3
    cli(*train, "--resume").assert_fine()
    cli(*train[:-1], "train.batch_size=4", "--set", "grid.num_classes=4", "--out", tmp_path / "x").assert_refused(
        "grid.num_classes: 4", "has 3 classes"
    )
    own = tmp_path / "own.yaml"
    own.write_text(load_recipe("digits_tiny", ["data.kind=folder", "grid.num_classes=4"]).to_yaml())
    cli("train", own, "--data", folder, "--out", tmp_path / "y").assert_refused("grid.num_classes: 4")


@few
@pytest.mark.usefixtures("weights_drawn_at_once")
def test_the_recipe_for_photographs_fine_tunes_weights_from_timm(cli, tmp_path):
    folder, run, weights = photos(tmp_path / "photos", count=6), tmp_path / "run", tmp_path / "b0.safetensors"
    photos(folder, ("ant",), count=14)
    safetensors.torch.save_file(timm.create_model("pvt_v2_b0").state_dict(), weights)
    quick = {"grid.image_size": 32, "train.epochs": 1, "train.warmup_epochs": 0, "train.batch_size": 8}
    train = "train", "photos", "--data", folder, "--out", run, *assigned(quick)
    done = cli(*train, "--set", f"train.weights={weights}").assert_fine()
    assert "new: gates, head (3 classes)" in done.out
    recipe = RunFolder(run).read_recipe()
    assert recipe.train.start == "staircase"
    ant, cat, dog = recipe.task.class_weights
    assert ant < 1 < cat == dog
    cli("train", "photos", "--out", tmp_path / "x").assert_refused("data.root", "--data")
