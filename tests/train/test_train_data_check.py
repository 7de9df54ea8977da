"""Pictures that cannot be read: found beforehand, and named, left out and counted while training."""

import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from train_photos import photo_recipe, photo_source, photos, picture, places
from typer.testing import CliRunner

from routespace.cli.app import app
from routespace.errors import DataError
from routespace.pictures import picture_suffixes
from routespace.train.data import check, quick_check
from routespace.train.data.check import check_pictures
from routespace.train.data.loaders import Loaders, make_loaders
from routespace.train.data.source import make_source
from routespace.train.run import train_recipe


@pytest.fixture
def messy(tmp_path):
    """A folder with a fault of each kind; returns its root."""
    photos(tmp_path, count=8)
    photos(tmp_path, count=2, split="test")
    train_dir = tmp_path / "train"
    for split in ("train", "test"):  # the test pictures are others
        for i, path in enumerate(sorted((tmp_path / split).rglob("*.png"))):
            picture(path, (20, 90, 160), seed=100 * i + len(split))
    (train_dir / "ant/0.png").write_bytes(b"")
    content = (train_dir / "ant/1.png").read_bytes()
    (train_dir / "ant/1.png").write_bytes(content[: len(content) // 2])
    (train_dir / "ant/2.png").write_text("no picture")
    (train_dir / "cat/0.png").unlink()
    (train_dir / "cat/0.png").symlink_to(tmp_path / "nowhere.png")
    shutil.copy(train_dir / "cat/1.png", train_dir / "dog/copy.png")
    shutil.copy(train_dir / "cat/2.png", tmp_path / "test/cat/seen.png")
    picture(train_dir / "dog/true.webp", seed=999)
    (train_dir / "dog/true.webp").rename(train_dir / "dog/false.jpg")
    Image.fromarray(np.zeros((60, 1000, 3), np.uint8)).save(train_dir / "dog/large.png")
    return tmp_path


FAULTS = {
    "train/ant/0.png": ("unreadable", "empty"),
    "train/ant/1.png": ("truncated", "truncated"),
    "train/ant/2.png": ("unreadable", "no image"),
    "train/cat/0.png": ("unreadable", "leads nowhere"),
    "train/dog/copy.png": ("duplicate", "of another class (cat, dog)"),
    "test/cat/seen.png": ("duplicate", "in train and test"),
    "train/dog/false.jpg": ("wrong ending", "is WEBP"),
    "train/dog/large.png": ("huge", "1000 × 60 pixels"),
}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_fault_is_found_and_nothing_else(messy, monkeypatch, workers):
    monkeypatch.setattr(check, "HUGE_PX", 50_000 if workers == 1 else check.HUGE_PX)
    seen = []
    report = check_pictures(messy, workers=workers, progress=lambda done, total: seen.append((done, total)))
    found = {str(Path(f.path).relative_to(messy)): (f.problem, f.detail) for f in report.findings}
    wanted = dict(FAULTS)
    if workers == 2:  # other processes see the true limit
        del wanted["train/dog/large.png"]
    assert set(found) == set(wanted)
    for path, (problem, words) in wanted.items():
        assert found[path][0] == problem
        assert words in found[path][1]
    assert not report.ok
    assert seen[-1] == (34, 34)
    assert report.text == "3 classes, 34 images (train 27, test 7)"


def test_formats_that_go_by_several_names_are_right(tmp_path):
    photos(tmp_path, ("cat", "dog"), 2)
    image = Image.open(tmp_path / "train/cat/0.png")
    for i, suffix in enumerate(sorted({".jpe", ".jfif", ".tiff", ".pgm", ".apng", ".dib", ".webp", ".avif"})):
        assert suffix in picture_suffixes()
        image.rotate(i).convert("L" if suffix == ".pgm" else "RGB").save(tmp_path / f"train/cat/a{suffix}")
    image.save(tmp_path / "train/cat/mpo.jpg", "MPO")
    report = check_pictures(tmp_path)
    assert [finding for finding in report.findings if finding.problem != "duplicate"] == []


def look_at_all(source):
    """What training and then evaluation look at."""
    return source.parts, source.test()


@pytest.mark.parametrize(
    ("folder", "count", "words"),
    [
        ({"train": ("ant",)}, 3, "1 class (ant); a classifier needs two or more"),
        ({"train": ("ant", "cat")}, 1, "2 images are too few to train and validate with"),
        ({"train": ("ant", "cat"), "test": ("ant", "dog")}, 3, "test: class 'dog' (such as "),
        ({"train": ("ant", "cat"), "val": ("dog",)}, 3, "val: class 'dog' (such as "),
    ],
)
def test_what_training_refuses_is_not_fine(tmp_path, folder, count, words):
    for split, kinds in folder.items():
        photos(tmp_path, kinds, count, split=split)
        for i, path in enumerate(sorted((tmp_path / split).rglob("*.png"))):
            picture(path, (20, 90, 160), seed=100 * i + len(split))
    report = check_pictures(tmp_path)
    (found,) = report.findings
    assert not report.ok
    assert words in found.detail
    with pytest.raises(DataError) as caught:
        look_at_all(photo_source(tmp_path, 2))
    assert str(caught.value).removeprefix(f"{found.path}: ") in found.detail


def test_pictures_to_test_on_may_be_of_one_class(tmp_path):
    photos(tmp_path, ("ant",), 1, split="test")
    assert check_pictures(tmp_path).ok


def test_the_command_lists_and_exits(messy):
    result = CliRunner().invoke(app, ["data", "check", str(messy), "--workers", "1"])
    assert result.exit_code == 1
    for words in ("3 classes, 34 images", "cannot be read (3):", "ant/0.png  (is empty (0 bytes))", "is WEBP"):
        assert words in result.stdout
    as_json = CliRunner().invoke(app, ["data", "check", str(messy), "--workers", "1", "--json"])
    data = json.loads(as_json.stdout)
    assert data["ok"] is False
    assert data["counts"]["test"] == {"ant": 2, "cat": 3, "dog": 2}
    assert len(data["findings"]) == 7
    fine = photos(messy / "fine", count=2, split="")
    result = CliRunner().invoke(app, ["data", "check", str(fine), "--workers", "1"])
    assert result.exit_code == 0
    for args, words in [
        (["data", "check", str(messy / "no")], "no such folder or file"),
        (["data"], "Missing command"),
        (["data", "check", str(messy), "--workers", "0"], "equal to 1"),
    ]:
        result = CliRunner().invoke(app, args)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")
        assert words in result.stderr
        assert result.stderr.count("\n") == 1


def test_the_quick_look_reads_headers(messy):
    with pytest.raises(DataError) as caught:
        photo_source(messy).quick_check()
    message = str(caught.value)
    for words in ("ant/0.png: is empty", "(3 of 27 images)", f"routespace data check {messy}", "data.skip_bad=3"):
        assert words in message
    told = photo_source(messy, data__skip_bad=3).quick_check()
    assert len(told) == 3
    assert all(line.endswith("it will be left out") for line in told)


def test_what_the_quick_look_advises_can_be_followed(tmp_path):
    root = photos(tmp_path / "my photos", ("ant", "cat"), 2)
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError) as caught:  # none would be left
        photo_source(root, 2, data__skip_bad=4).quick_check()
    assert f"routespace data check '{root}'" in str(caught.value)
    assert "skip_bad" not in str(caught.value)


def test_a_copy_among_what_is_held_out_is_told(tmp_path):
    root = photos(tmp_path, ("ant", "cat"), 6)
    trained, held = (photo_source(root, 2).parts[side] for side in ("train", "val"))
    shutil.copy(trained[0].place, held[0].place)
    (finding,) = check_pictures(root).findings
    assert finding.path in (trained[0].place, held[0].place)
    assert finding.detail.endswith(", one of them held out for validation")


def test_the_quick_look_at_very_many_is_one_at_some(tmp_path, monkeypatch):
    photos(tmp_path, count=20)
    monkeypatch.setattr(quick_check, "QUICK", 5)
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"\(5 of 5 images\)"):
        photo_source(tmp_path).quick_check()


# -- while training -------------------------------------------------------------------------------------


def damage(dataset, *numbers):
    """Truncate some pictures of a dataset, so that their headers are fine; returns their names."""
    names = []
    for number in numbers:
        path = Path(places(dataset)[number])
        path.write_bytes(path.read_bytes()[:-400])
        names.append(path.name)
    return names


@pytest.mark.parametrize("workers", [0, 1])
def test_one_bad_picture_stops_with_one_line(tmp_path, workers):
    photos(tmp_path, count=20)
    recipe = photo_recipe(tmp_path, data__workers=workers)
    damage(make_source(recipe).train(), 7)
    path = places(make_source(recipe).train())[7]
    loaders = make_loaders(recipe)
    with pytest.raises(DataError) as caught:
        list(loaders.train)
    message = str(caught.value)
    assert message.startswith(f"{path}: missing or corrupt image")
    assert "\n" not in message
    assert len(message) < 200 + len(path)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_pictures_are_named_left_out_and_counted(tmp_path, workers):
    photos(tmp_path, count=20)
    recipe = photo_recipe(tmp_path, data__workers=workers, data__skip_bad=3)
    source = make_source(recipe)
    names = damage(source.train(), 3, 4) + damage(source.val(), 1)
    whole = make_loaders(recipe)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in range(2):
            whole.set_epoch(epoch)
            assert all(len(images) == 16 for ((images, _),) in whole.train)  # others take their places
        assert sum(len(images) for images, _ in whole.val) == len(source.val()) - 1
        assert sum(len(images) for images, _ in whole.calibration) == len(source.val()) - 1
    told = [str(warning.message) for warning in caught if "left out" in str(warning.message)]
    assert len(told) == 3  # each once, whatever the epochs and parts
    assert all(any(name in line for line in told) for name in names)
    assert told[-1].endswith("left out (3 of at most 3)")
    damage(source.val(), 2)
    with pytest.raises(DataError, match=r"; it is one more than data.skip_bad=3"):
        list(whole.val)


def test_another_takes_the_place_the_same_in_every_run(tmp_path):
    photos(tmp_path, count=20)
    recipe = photo_recipe(tmp_path, data__skip_bad=9)
    damage(make_source(recipe).train(), 3)
    with pytest.warns(UserWarning, match="left out"):
        runs = [torch.cat([images for ((images, _),) in make_loaders(recipe).train]) for _ in range(2)]
    assert torch.equal(*runs)


def test_a_training_leaves_them_out(tmp_path):
    photos(tmp_path / "photos", count=20)
    recipe = photo_recipe(tmp_path / "photos", train__epochs=1, data__skip_bad=2)
    damage(make_source(recipe).train(), 3)
    with pytest.warns(UserWarning, match=r"left out \(1 of at most 2\)"):
        result = train_recipe(recipe, tmp_path / "run")
    assert result.metrics["images"] == len(make_source(recipe).val())


def test_more_workers_than_processors_are_no_warning_of_torchs(tmp_path):
    photos(tmp_path, count=6)
    recipe = photo_recipe(tmp_path, data__workers=64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaders = Loaders(recipe, make_source(recipe))
        assert len(loaders.val) >= 1
        assert loaders.train is not None


@pytest.mark.skipif(sys.platform != "linux", reason="forked workers")
def test_pillows_warnings_do_not_come_from_workers(tmp_path, capfd):
    photos(tmp_path, count=10)
    for path in (tmp_path / "train").rglob("*.png"):
        Image.open(path).convert("P").save(path, transparency=bytes([128] * 256))
    loaders = make_loaders(photo_recipe(tmp_path, data__workers=1))
    assert len(list(loaders.train)) == 1
    assert capfd.readouterr().err == ""
