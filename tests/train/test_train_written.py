"""Scenes written to files: plain COCO and label maps, read back as they were."""

import json
from itertools import groupby

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from train_annotated import plain, source_of
from train_tiny import tiny
from typer.testing import CliRunner

from routespace.cli.app import app
from routespace.errors import BundleError, SpecError
from routespace.train.data.annotated.written import write_scenes
from routespace.train.data.source import scenes_of
from routespace.train.recipe.data_kinds import spec_at

SCENES = {"data.kind": "scenes", "data.object_px": [12, 40], "data.objects_per_scene": [1, 3]}
DIGITS = {"data.digits_per_scene": [1, 3], "data.digit_px": [12, 30]}
FEW = {"data.train_size": 5, "data.val_size": 4, "data.test_size": 3, "grid.image_size": [64, 96]}


def recipe(kind, **changes):
    return tiny().override(
        (SCENES | {"data.objects_per_scene": [1, 3]} if kind == "scenes" else DIGITS) | FEW | changes
    )


def read_back(folder, target):
    """The parts of what was written, through the kinds that read such files, as they lie."""
    spec = spec_at(folder).model_copy(update={"hflip": 0.0, "resize": (1.0, 1.0), "eval_size": (64, 96)})
    source = source_of(spec, target, fed=plain((64, 96)), size=(64, 96))
    return source, {"train": source.train(), "val": source.val(), "test": source.test()}


@pytest.mark.parametrize("target", ["objects", "masks", "pixels"])
@pytest.mark.parametrize("kind", ["digits", "scenes"])
def test_what_is_written_is_read_back_as_it_was(tmp_path, kind, target):
    chosen = recipe(kind)
    counts = write_scenes(chosen, target, tmp_path / "out")
    assert counts == {"train": 5, "val": 4, "test": 3}
    rendered = scenes_of(chosen, target)
    source, parts = read_back(tmp_path / "out", target)
    assert source.classes == rendered.classes
    assert source.quick_check() == ()
    for split, some in parts.items():
        scenes = getattr(rendered, split)()
        assert len(some) == len(scenes)
        for index in range(len(some)):
            (image, found), (scene, wanted) = some[index], scenes[index]
            torch.testing.assert_close(image, scene, atol=1e-5, rtol=0)
            if target == "pixels":
                assert torch.equal(found, wanted)
                continue
            assert found.keys() == wanted.keys()
            for name in wanted:
                assert torch.equal(found[name], wanted[name]), name


def test_pycocotools_opens_what_is_written(tmp_path):
    chosen = recipe("scenes")
    write_scenes(chosen, "masks", tmp_path / "out")
    coco = COCO(str(tmp_path / "out/annotations/instances_val.json"))
    scenes = scenes_of(chosen, "masks").val()
    assert sorted(coco.getImgIds()) == [0, 1, 2, 3]
    found = sorted(coco.loadAnns(coco.getAnnIds()), key=lambda one: one["id"])
    assert [one["id"] for one in found] == list(range(1, len(found) + 1))
    for number, some in groupby(found, key=lambda one: one["image_id"]):
        masks = np.stack([coco.annToMask(one).astype(bool) for one in some])
        assert np.array_equal(masks, scenes[number][1]["masks"].numpy())
    assert [one["name"] for one in coco.loadCats(coco.getCatIds())] == [str(digit) for digit in range(10)]


def test_all_is_written_or_nothing(tmp_path, monkeypatch):
    calls = []

    def stop(done, total):
        calls.append((done, total))
        if done == 7:
            raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="pulled"):
        write_scenes(recipe("digits"), "masks", tmp_path / "out", tell=stop)
    assert calls[-1] == (7, 12)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(BundleError, match="not empty"):
        write_scenes(recipe("digits"), "masks", tmp_path / "out")
    with pytest.raises(SpecError, match=r"data\.kind: 'folder' is not rendered"):
        write_scenes(tiny().override({"data.kind": "folder"}), "masks", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize(("task", "classes"), [("instance", 10), ("semantic", 11)])
def test_commands_write_scenes_and_check_them(tmp_path, task, classes):
    few = [f"data.{part}_size={count}" for part, count in (("train", 4), ("val", 3), ("test", 2))]
    changes = [word for one in [*few, "data.kind=scenes"] for word in ("--set", one)]
    found = run("data", "scenes", "--task", task, "-o", tmp_path / "out", *changes)
    assert found.exit_code == 0, found.output
    assert "train 4, val 3, test 2 scenes" in found.output
    found = run("data", "check", tmp_path / "out", "--task", task)
    assert found.exit_code == 0, found.output
    assert f"{classes} classes, 9 images (train 4, val 3, test 2)" in found.output
    again = run("data", "scenes", "--task", task, "-o", tmp_path / "out", *changes)
    assert (again.exit_code, "not empty" in again.output) == (2, True)
    path = next((tmp_path / "out").rglob("*.png"))
    path.write_bytes(b"")
    found = run("data", "check", tmp_path / "out", "--json", "--workers", 1)
    assert found.exit_code == 1
    data = json.loads(found.output)
    assert (data["ok"], data["images"]["val"]) == (False, 3)
    assert any(str(path) == finding["path"] for finding in data["findings"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data", "scenes", "--task", "classify", "-o", "x"], "detect or instance or semantic"),
        (["data", "scenes", "--task", "detect", "-o", "x", "--set", "data.kind=folder"], "data"),
        (["data", "check"], "give a folder or file, or --recipe"),
        (["data", "check", "--recipe", "digits_tiny"], "'digits' has no files to check"),
        (["data", "check", "nosuch.json"], "no such folder or file"),
        (["data", "check", "nosuch.json", "--task", "classify"], "detect or instance or semantic"),
        (["data", "check", "nosuch.csv", "--task", "detect"], "'csv' does not give what task 'detect' asks for"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    found = run(*words)
    assert found.exit_code == 2, found.output
    assert told in found.output
    assert "Traceback" not in found.output
    assert list(tmp_path.iterdir()) == []
