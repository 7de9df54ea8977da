"""A network is tested by the names of its classes, fed as it was trained, wherever the images lie."""

import json
import shutil
from pathlib import Path

import pytest
from train_photos import COLOURS, photo_recipe, photos
from train_tiny import tiny
from typer.testing import CliRunner

from routespace.cli.app import app
from routespace.errors import DataError, SpecError
from routespace.preprocess import Preprocess, load_preprocess
from routespace.train.data.evaluation import evaluation_loaders
from routespace.train.run import train_recipe

SPANISH = {"ant": "hormiga", "cat": "gato", "dog": "perro"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run that tells three colours apart, its bundle, and folders to test it on."""
    place = tmp_path_factory.mktemp("place")
    for split in ("train", "test"):
        photos(place / "english", count=30 if split == "train" else 8, split=split)
    shutil.copytree(place / "english/test", place / "only_test/test")
    shutil.copytree(place / "english/test", place / "plain")
    shutil.copytree(place / "english/test/dog", place / "dogs/dog")
    for name, other in SPANISH.items():
        shutil.copytree(place / "english/train" / name, place / "spanish/train" / other)
        shutil.copytree(place / "english/test" / name, place / "spanish/test" / other)
    recipe = photo_recipe(place / "english", train__epochs=6, data__scale=0.8, data__crop_pct=0.75, train__lr=5e-3)
    assert train_recipe(recipe, place / "run").metrics["accuracy"] > 0.9
    assert command("extract", place / "run", "-o", place / "bundle").exit_code == 0
    return place


def command(*args):
    """Run the command line."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def evaluated(*args):
    """What `evaluate` measured."""
    result = command("evaluate", *args, "--json", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("kind", ["run", "bundle"])
def test_names_decide_wherever_the_images_lie(place, kind, monkeypatch):
    monkeypatch.chdir("/")
    own = evaluated(place / kind)
    assert own["images"] == 24
    assert own["accuracy"] > 0.9
    for folder in ("only_test", "plain", "english"):
        found = evaluated(place / kind, "--data", place / folder)
        assert (found["images"], found["accuracy"], found["loss"]) == (24, own["accuracy"], own["loss"])
    dogs = evaluated(place / kind, "--data", place / "dogs")  # one of the three classes, not the first
    assert dogs["images"] == 8
    assert dogs["accuracy"] > 0.8
    assert load_preprocess(place / kind) == (Preprocess(size=(32, 32), crop_pct=0.75), tuple(COLOURS))


def test_other_names_are_refused(place):
    result = command("evaluate", place / "bundle", "--data", place / "spanish", "--device", "cpu")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    for words in ("class 'gato'", "none of the network's 3 (ant, cat, dog)"):
        assert words in result.stderr


def test_another_number_of_classes_is_refused(place, tmp_path):
    (tmp_path / "digits.yaml").write_text(tiny(routing="static").to_yaml())
    result = command("evaluate", place / "bundle", "--recipe", tmp_path / "digits.yaml", "--device", "cpu")
    assert result.exit_code == 2
    assert "is about 10 classes, the network has 3 outputs" in result.stderr
    net, english = tiny().grid, photo_recipe(place / "english")
    with pytest.raises(DataError, match="is about 3 classes, the network has 10 outputs"):
        evaluation_loaders(english, net)
    with pytest.raises(DataError, match=r"grid.num_classes: 10, but .*english has 3 classes"):
        evaluation_loaders(tiny(), net, data=place / "english")
    with pytest.raises(SpecError, match="classes: 3 names for 10 outputs"):
        evaluation_loaders(tiny(), net, data=place / "english", classes=tuple(COLOURS))
    with pytest.raises(DataError, match=r"its classes \(0, 1, 2, .*\) are not the network's"):
        evaluation_loaders(tiny(), net, classes=[f"c{i}" for i in range(10)])


def test_networks_of_before_take_the_training_folders_names(place):
    recipe = photo_recipe(place / "english")
    loaders = evaluation_loaders(recipe, recipe.grid)
    assert loaders.source.classes == tuple(COLOURS)
    assert loaders.source.preprocess == recipe.preprocess
    assert sum(len(images) for images, _ in loaders.test) == 24
    with pytest.raises(DataError, match="no test images"):
        _ = evaluation_loaders(photo_recipe(place / "plain"), recipe.grid, data=place / "plain").test  # trained on


def test_a_digits_network_is_tested_on_written_digits(tmp_path):
    from routespace.train.data.digits import Scenes, write_image_folder

    recipe = tiny()
    scenes = Scenes("test", (32, 32), 0, recipe.data.digit_px)
    write_image_folder(tmp_path, counts={"test": 40}, scenes=scenes)
    loaders = evaluation_loaders(
        recipe, recipe.grid, preprocess=recipe.preprocess, classes=tuple("0123456789"), data=tmp_path
    )
    rendered = {label: images for images, label in ((i, int(y)) for i, y in loaders.source.test())}
    assert set(rendered) == set(range(10))
    own = evaluation_loaders(recipe.override({"data.test_size": 40}), recipe.grid).source.test()
    place, label = loaders.source.test().items[3]
    image, found = own[int(Path(place).stem)]
    assert found == label
    assert (loaders.source.test()[3][0] - image).abs().max() < 1e-5
