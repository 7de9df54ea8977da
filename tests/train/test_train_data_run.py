"""What a run keeps of its data, and what it says when the data is another one now."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from train_photos import photo_recipe, photos, picture

from routespace.errors import BundleError, DataError
from routespace.files import read_json
from routespace.preprocess import Preprocess, load_preprocess
from routespace.train.data.record import DataRecord
from routespace.train.data.source import make_source
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import train_recipe
from routespace.train.stopping import TrainingStoppedError


def stopped(recipe, out):
    """A run that was stopped in its first epoch."""

    def stop(progress):
        if progress.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingStoppedError):
        train_recipe(recipe, out, progress=stop)
    return out


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with `photos` in it."""
    photos(tmp_path / "photos", count=24)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_knows_its_data_from_every_folder(here, monkeypatch):
    lines = []
    recipe = photo_recipe("photos", train__epochs=1, data__crop_pct=0.8)
    train_recipe(recipe, "run", tell=lines.append)
    assert lines[0] == make_source(recipe).summary.text
    monkeypatch.chdir("/")
    saved = Recipe.from_yaml((here / "run/recipe.yaml").read_text())
    assert saved.data.root == str(here / "photos")
    assert len(make_source(saved).val()) == len(make_source(photo_recipe(here / "photos")).val())
    assert load_preprocess(here / "run") == (Preprocess(size=(32, 32), crop_pct=0.8), ("ant", "cat", "dog"))
    record = DataRecord.from_json(read_json(here / "run/data.json", wanted="a run"))
    assert record.changes(make_source(saved).record) == []


def test_digits_keep_how_they_are_fed_too(tmp_path):
    from train_tiny import tiny

    train_recipe(tiny(train__epochs=0, routing="static"), tmp_path / "run")
    preprocess, classes = load_preprocess(tmp_path / "run")
    assert preprocess == Preprocess(size=(32, 32), crop_pct=1.0)
    assert classes == tuple("0123456789")
    assert not (tmp_path / "run/data.json").exists()


def test_resume_says_what_has_changed(here):
    recipe = photo_recipe("photos", train__epochs=2)
    stopped(recipe, here / "run")
    before = (here / "run/data.json").read_text()
    picture("photos/train/cat/new.png")
    Path("photos/train/dog/3.png").unlink()
    with pytest.warns(UserWarning, match=r"1 image added \(cat/new.png\); 1 image removed \(dog/3.png\)"):
        train_recipe(recipe, here / "run", resume=True)
    assert (here / "run/data.json").read_text() == before  # what it began with


def test_resume_with_other_classes_is_refused(here):
    recipe = photo_recipe("photos", train__epochs=2)
    stopped(recipe, here / "run")
    shutil.move("photos/train/ant", "photos/train/bee")
    with pytest.raises(DataError, match=r"the run's classes are ant, cat, dog, .* now bee, cat, dog"):
        train_recipe(recipe, here / "run", resume=True)


def test_moved_data_is_given_anew(here):
    recipe = photo_recipe("photos", train__epochs=2)
    whole = train_recipe(recipe, here / "whole").metrics
    stopped(recipe, here / "run")
    shutil.move("photos", "elsewhere")
    with pytest.raises(DataError, match="no such folder or file"):
        train_recipe(recipe, here / "run", resume=True)
    result = train_recipe(recipe.override({"data.root": "elsewhere"}), here / "run", resume=True).metrics
    assert result["accuracy"] == whole["accuracy"]
    assert result["loss"] == whole["loss"]
    assert Recipe.from_yaml((here / "run/recipe.yaml").read_text()).data.root == str(here / "elsewhere")
    with pytest.raises(BundleError, match=r"\(data\.hflip: 0\.5 → 0\.1\); go on from its network, on a schedule"):
        train_recipe(recipe.override({"data.hflip": 0.1}), here / "run", resume=True)


@pytest.mark.filterwarnings("ignore:.*it will be left out")
def test_what_is_refused_leaves_no_folder(here):
    Path("photos/train/cat/0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"cat/0.png: is empty .*; replace or remove what cannot be read"):
        train_recipe(photo_recipe("photos"), here / "run")
    with pytest.raises(DataError, match=r"grid.num_classes: 4, .* set grid.num_classes=3"):
        train_recipe(photo_recipe("photos", 4), here / "run")
    assert not (here / "run").exists()
    train_recipe(photo_recipe("photos", data__skip_bad=1, train__epochs=0, grid__in_channels=1), here / "run")
    preprocess, _ = load_preprocess(here / "run")
    assert preprocess.channels == 1


def test_few_validation_images_are_a_warning(here):
    with pytest.warns(UserWarning, match="fewer than 5 validation images of 3 classes"):
        train_recipe(photo_recipe("photos", train__epochs=0, data__val_fraction=0.01), here / "run")


def test_a_run_of_before_is_none_with_a_reason(tmp_path):
    assert load_preprocess(tmp_path) is None
    (tmp_path / "preprocess.json").write_text("{")
    with pytest.raises(BundleError, match=r"preprocess.json: is not JSON"):
        load_preprocess(tmp_path)
    (tmp_path / "data.json").write_text(json.dumps({"format": "routespace.data/1"}))
    with pytest.raises(BundleError, match="data record: damaged"):
        DataRecord.from_json(read_json(tmp_path / "data.json", wanted="a run"))
