"""Data of dense tasks at the command line: what --data supposes, what --set says, and heads of other classes."""

import json

import pytest
import yaml
from dense_tiny import dense_net
from train_annotated import ade, some_coco, voc
from train_tiny import tiny

from routespace import Card, save_bundle
from routespace.cli.train import other_classes
from routespace.grid.architecture import Architecture
from routespace.train.run import train_recipe

SMALL = {"grid.outputs": "pyramid", "grid.num_classes": 0, "train.epochs": 1, "train.batch_size": 2}
SMALL |= {"routing": "static", "budget.ratio": None}
PIXELS = {"kind": "semantic", "classes": 21, "channels": 64}


def small(task, **changes):
    """The tiny recipe for a task of annotated pictures."""
    return tiny().override(SMALL | {"task": task, "data": {"kind": "coco"}} | changes)


def recipe_file(path, recipe):
    path.write_text(yaml.safe_dump(recipe.to_data()))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A network of Pascal VOC's pixels whose pictures are of two sizes that are fed at one."""
    place = tmp_path_factory.mktemp("pixels")
    voc(place, [], sizes={"c": (96, 128)})
    data = {"kind": "voc", "root": str(place), "val_split": "trainval"}
    train_recipe(small(PIXELS, routing="depth", data=data), place / "run")
    return place / "run"


def test_pixels_of_pictures_of_several_sizes_are_evaluated(run, cli):
    report = json.loads(cli("evaluate", run, "--split", "val", "--json", "--no-speed").assert_fine().out)
    assert report["images"] == 3
    assert 0 <= report["miou"] <= 1


def test_a_head_of_other_classes_is_not_compared(run, tmp_path, cli):
    for name, task in (("other", "semantic"), ("boxes", "detect")):
        settings = {"classes": 3, **({"channels": 64} if task == "semantic" else {"width": 16})}
        net = dense_net(task, **settings)
        net = net.restrict(Architecture.staircase(net.architecture.grid)).eval()
        save_bundle(net, tmp_path / name, Card.of(net))
    cli("verify", tmp_path / "other", "--against", run).assert_refused("a head of other classes", "extracted from")
    cli("verify", tmp_path / "boxes", "--against", run).assert_refused("'detect'", "'semantic'")


def test_a_given_detectors_outputs_are_told_where_they_are_to_be_others(tmp_path):
    some_coco(tmp_path)
    recipe = small({"kind": "detect", "classes": 2}, data={"kind": "coco", "root": str(tmp_path)})
    assert other_classes(recipe, ("cat", "dog")) == ()
    assert other_classes(recipe, ("cat", "dog", "owl")) == ()  # the head is new, which is told elsewhere
    (line,) = other_classes(recipe, ("dog", "cat"))
    assert line.startswith("classes: the network's outputs were dog, cat, and are now to be cat, dog")


def test_what_is_set_holds_beside_the_data(tmp_path, cli):
    voc(tmp_path / "voc", [])
    recipe = recipe_file(tmp_path / "r.yaml", small(PIXELS))
    asked = "train", recipe, "--data", tmp_path / "voc", "--out", tmp_path / "run"
    cli(*asked, "--set", "data.year=2007").assert_refused("has no VOC 2007 part 'train'")
    assert not (tmp_path / "run").exists()
    told = cli(
        "data", "check", tmp_path / "voc", "--task", "semantic", "--set", "data.train_split=val"
    ).assert_fine()
    assert "2 images" in told.out
    cli("data", "check", tmp_path / "voc", "--set", "data.year=2007").assert_refused("has no VOC 2007 part")
    cli("data", "check", tmp_path / "voc", "--set", "train.epochs=1").assert_refused("no field of the data")
    cli("data", "check", tmp_path / "voc", "--set", "data.shift=1").assert_refused("means nothing with data.kind")


def test_ade20k_is_known_by_its_table(tmp_path, cli):
    ade(tmp_path / "ade")
    (tmp_path / "ade/classes.txt").rename(tmp_path / "ade/objectInfo150.txt")
    assert "annotations fit" in cli("data", "check", tmp_path / "ade").assert_fine().out
    cli("data", "check", tmp_path / "ade", "--set", "data.shift=0").assert_refused("counts its classes from 1")
    recipe = recipe_file(tmp_path / "r.yaml", small(PIXELS | {"classes": 3}))
    cli("train", recipe, "--data", tmp_path / "ade", "--out", tmp_path / "run").assert_fine()
