"""Folders of pictures: what is a class, what is a picture, and which side of the split it is on."""

import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.datasets import ImageFolder
from train_photos import COLOURS, photo_recipe, photo_source, photos, picture, places

from routespace.errors import DataError, SpecError
from routespace.preprocess import Preprocess
from routespace.train.data.augment import needed_px
from routespace.train.data.catalogue import Entry, hold_out
from routespace.train.data.folder import list_folder
from routespace.train.data.source import located, make_source
from routespace.train.recipe.data import FolderSpec
from routespace.train.recipe.data_kinds import data_at

# -- classes --------------------------------------------------------------------------------------------


def test_the_class_is_the_first_folder_at_any_depth(tmp_path):
    for view in ("front", "back", "back/left"):
        photos(tmp_path / "views", ("cat", "dog"), 4, sub=view)
    source = photo_source(tmp_path / "views", 2)
    assert source.classes == ("cat", "dog")
    assert len(source.train()) + len(source.val()) == 24
    for place, label in (*source.train().items, *source.val().items):
        assert source.classes[label] == Path(place).relative_to(tmp_path / "views/train").parts[0]
    photos(tmp_path / "more", ("cat", "dog"), 4)
    photos(tmp_path / "more", ("dog",), 2, sub="puppy")
    assert photo_source(tmp_path / "more", 2).classes == ("cat", "dog")


def test_classes_and_labels_are_torchvisions(tmp_path):
    photos(tmp_path, ("Zebra", "ant", "10", "2", "Käfer ☕"), 3)
    photos(tmp_path, ("ant",), 2, sub="deep/er")
    source, theirs = photo_source(tmp_path, 5), ImageFolder(str(tmp_path / "train"))
    assert list(source.classes) == theirs.classes
    assert sorted(source.train().items + source.val().items) == sorted(theirs.samples)


@pytest.mark.parametrize("ext", ["webp", "bmp", "tif", "gif", "ppm", "avif", "jpe", "JPG", "PNG", "TIFF"])
def test_every_format_counts(tmp_path, ext):
    photos(tmp_path, ("cat", "dog"), 4)
    photos(tmp_path, ("ant",), 4, ext=ext)
    source = photo_source(tmp_path)
    assert source.summary.text.startswith("3 classes, 12 images")
    assert len(source.train()[0][0]) == 3


def test_what_systems_leave_behind_is_no_class_and_no_picture(tmp_path):
    photos(tmp_path, count=4)
    for name in (".ipynb_checkpoints/0.png", "__MACOSX/0.png", "cat/._0.png", "cat/.hidden.png", "dog/.git/0.png"):
        picture(tmp_path / "train" / name)
    for name in ("Thumbs.db", ".DS_Store", "cat/Thumbs.db", "cat/desktop.ini", "cat/.DS_Store"):
        (tmp_path / "train" / name).write_bytes(b"x")
    picture(tmp_path / "train/preview.png")
    summary = photo_source(tmp_path).summary
    assert summary.left_out == {"files outside class folders": 1}
    assert summary.text.startswith("3 classes, 12 images (train")


def test_the_line_at_the_start(tmp_path):
    photos(tmp_path, ("ant",), 12)
    photos(tmp_path, ("cat",), 15)
    photos(tmp_path, ("dog",), 14)
    for i in range(3):
        (tmp_path / f"train/ant/{i}.HEIC").write_bytes(b"x")
    (tmp_path / "train/dog/notes.txt").write_text("x")
    source = photo_source(tmp_path)
    train, val = len(source.train()), len(source.val())
    assert source.summary.text == (
        f"3 classes, 41 images (train {train}, val {val}): ant 12, cat 15, dog 14; left out: .heic 3, .txt 1"
    )
    names = [f"c{i:02d}" for i in range(30)]
    photos(tmp_path / "many", names, 2)
    assert photo_source(tmp_path / "many", 30).summary.text.endswith("c09 2, …")


def test_an_empty_or_unreadable_class_folder_is_named(tmp_path, monkeypatch):
    photos(tmp_path, count=3)
    (tmp_path / "train/horse").mkdir()
    with pytest.raises(DataError, match=r"train/horse: the class folder holds no pictures; put"):
        photo_source(tmp_path, 4)
    (tmp_path / "train/horse/1.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"train/horse: .*\(left out: .heic 1\)"):
        photo_source(tmp_path, 4)
    shutil.rmtree(tmp_path / "train/horse")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"train/cat: cannot be read \(Permission denied\)"):
        photo_source(tmp_path)


def test_links_are_followed_but_not_in_circles(tmp_path):
    photos(tmp_path / "else", ("far",), 3)
    photos(tmp_path / "here", ("ant", "cat"), 3)
    (tmp_path / "here/train/dog").symlink_to(tmp_path / "else/train/far")
    assert photo_source(tmp_path / "here").classes == ("ant", "cat", "dog")
    (tmp_path / "here/train/cat/again").symlink_to(tmp_path / "here/train/cat")
    with pytest.raises(DataError, match=r"cat/again: is a link to a folder around it"):
        photo_source(tmp_path / "here")


def test_what_is_refused_is_one_line(tmp_path):
    photos(tmp_path / "one", ("cat",), 3)
    with pytest.raises(DataError, match=r"1 class \(cat\); a classifier needs two or more"):
        photo_source(tmp_path / "one", 1)
    for split in ("train", "test"):
        picture(tmp_path / "flat" / split / "0.png")
    with pytest.raises(DataError, match=r"flat/test: no class folders; pictures are expected in .*/test/<class>/"):
        photo_source(tmp_path / "flat")
    picture(tmp_path / "bare/0.png")
    with pytest.raises(DataError, match=r"bare: no class folders \(1 files outside class folders\)"):
        photo_source(tmp_path / "bare")
    with pytest.raises(DataError, match=r"0.png: is no folder"):
        photo_source(tmp_path / "bare/0.png")
    photos(tmp_path / "each", count=1)
    with pytest.raises(DataError, match="3 images are too few to train and validate with"):
        photo_source(tmp_path / "each").train()


# -- where ----------------------------------------------------------------------------------------------


def test_a_plain_folder_of_classes_is_split(tmp_path):
    photos(tmp_path, split="")
    source = photo_source(tmp_path)
    assert source.summary.text.startswith("3 classes, 30 images (train")
    with pytest.raises(DataError, match=r"no test images; put them into test/<class>/"):
        source.test()
    photos(tmp_path / "vehicles", ("car", "plane", "train", "test"), split="")  # trains, not a split
    assert photo_source(tmp_path / "vehicles", 4).classes == ("car", "plane", "test", "train")


def test_a_val_folder_is_the_validation_part(tmp_path):
    photos(tmp_path, count=5)
    photos(tmp_path, count=2, split="Validation")
    source = photo_source(tmp_path)
    assert len(source.train()) == 15
    assert all("/Validation/" in place for place in places(source.val()))
    with pytest.raises(DataError, match="no test images"):
        source.test()
    imagenet = photo_source(tmp_path, data__val="cut")  # ImageNet's layout: val is what papers test on
    assert all("/train/" in place for place in places(imagenet.val()))
    assert all("/Validation/" in place for place in places(imagenet.test()))
    photos(tmp_path, count=1, split="test")
    for val in ("folder", "cut"):
        assert all("/test/" in place for place in places(photo_source(tmp_path, data__val=val).test()))


def test_classes_of_other_parts_are_found_by_name(tmp_path):
    photos(tmp_path, count=5)
    photos(tmp_path, ("cat", "dog"), 2, split="test")
    assert {label for _, label in photo_source(tmp_path).test().items} == {1, 2}
    photos(tmp_path, ("gato",), 2, split="test")
    with pytest.raises(DataError, match=r"class 'gato' \(such as .*test/gato/0.png\) is none of the network's 3"):
        photo_source(tmp_path).test()


def test_accents_may_be_written_in_two_ways(tmp_path):
    photos(tmp_path, ("Ka\u0308fer", "cat"), 5)
    photos(tmp_path, ("K\u00e4fer", "cat"), 2, split="test")
    source = photo_source(tmp_path, 2)
    assert source.classes == ("K\u00e4fer", "cat")
    assert len(source.test()) == 4


def test_a_network_that_exists_is_tested_by_class_name(tmp_path):
    """Whatever folders are there, in whatever order: names decide."""
    photos(tmp_path / "some", ("dog", "ant"), 3, split="test")
    recipe = photo_recipe(tmp_path / "some")
    source = make_source(recipe, classes=("dog", "cat", "ant"), whole=True)  # needs no train folder
    assert {(Path(place).parent.name, label) for place, label in source.test().items} == {("dog", 0), ("ant", 2)}
    photos(tmp_path / "plain", ("cat",), 3, split="")
    found = make_source(photo_recipe(tmp_path / "plain"), classes=("dog", "cat", "ant"), whole=True)
    assert [label for _, label in found.test().items] == [1, 1, 1] == [label for _, label in found.val().items]
    photos(tmp_path / "spanish", ("gato", "perro"), 3, split="test")
    with pytest.raises(DataError, match=r"'gato' .* none of the network's 3 \(dog, cat, ant\)"):
        make_source(photo_recipe(tmp_path / "spanish"), classes=("dog", "cat", "ant")).test()
    with pytest.raises(SpecError, match="classes: 2 names for 3 outputs"):
        make_source(recipe, classes=("dog", "cat"))
    with pytest.raises(DataError, match="no training images"):
        photo_source(tmp_path / "some", 2).train()
    other = Preprocess(size=(32, 32), crop_pct=0.5)
    assert make_source(recipe, classes=source.classes, preprocess=other).test().preprocess == other


def test_roots_are_made_absolute(tmp_path, monkeypatch):
    photos(tmp_path / "photos", count=3)
    monkeypatch.chdir(tmp_path)
    recipe = located(photo_recipe("photos"))
    assert recipe.data.root == str(tmp_path / "photos")
    assert located(recipe) == recipe
    assert data_at("photos") == {"data.kind": "folder", "data.root": str(tmp_path / "photos")}
    assert data_at("a.csv")["data.kind"] == "csv"
    monkeypatch.chdir("/")
    assert len(make_source(recipe).classes) == 3


# -- splits that hold -----------------------------------------------------------------------------------


def test_one_more_picture_changes_no_side(tmp_path):
    photos(tmp_path, ("cat", "dog"), 100)
    source = photo_source(tmp_path, 2, data__val_fraction=0.2)
    trained, held = set(places(source.train())), set(places(source.val()))
    assert 20 <= len(held) <= 60
    for i in range(30):
        picture(tmp_path / f"train/cat/a/new{i}.png")
    now = photo_source(tmp_path, 2, data__val_fraction=0.2)
    assert held <= set(places(now.val()))
    assert trained <= set(places(now.train()))


def test_sides_do_not_depend_on_the_place_or_the_order_of_reading(tmp_path):
    photos(tmp_path / "a", count=30)
    shutil.copytree(tmp_path / "a", tmp_path / "b/c")
    first, second = photo_source(tmp_path / "a"), photo_source(tmp_path / "b/c", seed=9)
    assert [p.removeprefix(f"{tmp_path}/a") for p in places(first.val())] == [
        p.removeprefix(f"{tmp_path}/b/c") for p in places(second.val())
    ]
    assert first.record.digest == second.record.digest


entries = st.lists(
    st.tuples(st.sampled_from(["ant", "cat", "dog"]), st.integers(0, 400)), min_size=1, max_size=80, unique=True
)


@settings(max_examples=200, deadline=None)
@given(entries, entries, st.floats(0.01, 0.9))
def test_every_class_is_on_both_sides_and_stays(first, more, fraction):
    made = [Entry(None, name, f"{number}.png") for name, number in first]
    grown = list(dict.fromkeys([*made, *(Entry(None, name, f"{number}.png") for name, number in more)]))
    random.Random(0).shuffle(grown)
    trained, held = map(set, hold_out(made, fraction))
    assert trained | held == set(made)
    assert not trained & held
    for name in COLOURS:
        count = sum(entry.name == name for entry in made)
        ours = [entry for entry in trained if entry.name == name]
        assert bool(ours) == (count >= 1)
        assert any(entry.name == name for entry in held) == (count >= 2)
        if len(ours) >= 2:  # of a class with more than a single picture to train with
            now = {entry for entry in hold_out(grown, fraction)[0] if entry.name == name}
            assert set(ours) <= now


def test_the_share_is_about_the_fraction():
    made = [Entry(None, "cat", f"a/{i}.jpg") for i in range(20_000)]
    for fraction in (0.02, 0.2, 0.5):
        assert abs(len(hold_out(made, fraction)[1]) / 20_000 - fraction) < 0.01


def test_few_validation_images_are_told(tmp_path):
    photos(tmp_path, count=20)
    warnings = photo_source(tmp_path, data__val_fraction=0.02).summary.warnings
    assert len(warnings) == 1
    for words in ("fewer than 5 validation images of 3 classes", "ant 1", "steps of 33 %", "val_fraction"):
        assert words in warnings[0]
    photos(tmp_path, count=5, split="val")
    assert photo_source(tmp_path).summary.warnings == ()
    photos(tmp_path / "numbers", [str(i) for i in range(12)], 30)
    told = photo_source(tmp_path / "numbers", 12, data__val_fraction=0.4).summary.warnings
    assert any("10 comes before 2" in word for word in told)


def test_a_record_tells_what_changed(tmp_path):
    photos(tmp_path, count=20)
    before = photo_source(tmp_path).record
    assert before.changes(type(before).from_json(before.to_json())) == []
    picture(tmp_path / "train/cat/new.png")
    (tmp_path / "train/dog/3.png").unlink()
    changed = before.changes(photo_source(tmp_path).record)
    assert changed == ["1 image added (cat/new.png)", "1 image removed (dog/3.png)"]
    moved = before.changes(photo_source(tmp_path, data__val_fraction=0.6).record)
    assert any("held out now, but trained on before" in line for line in moved)
    shutil.move(tmp_path / "train/ant", tmp_path / "train/bee")
    assert before.changes(photo_source(tmp_path).record)[0] == "classes were ant, cat, dog, now bee, cat, dog"


def test_many_names_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("routespace.train.data.record.MOST_NAMES", 10)
    photos(tmp_path, count=20)
    before = photo_source(tmp_path).record
    assert before.to_json()["names"] == {}
    picture(tmp_path / "train/cat/new.png")
    changed = before.changes(photo_source(tmp_path).record)
    assert len(changed) == 1
    assert changed[0].endswith("not the same ones")
    assert "/cat: " in changed[0]


# -- channels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_have_the_grids_channels(tmp_path, channels):
    photos(tmp_path, count=4)
    policy = None if channels == 4 else "rand-m9-n4-mstd0.5"
    recipe = photo_recipe(tmp_path, grid__in_channels=channels, data__auto_augment=policy, data__erasing=0.5)
    source = make_source(recipe.override({"data.color_jitter": 0.3, "data.vflip": 0.5}))
    for dataset in (source.train(), source.val()):
        for image, _ in dataset:
            assert image.shape == (channels, 32, 32)
            assert image.dtype == torch.float32


@pytest.mark.parametrize("policy", ["original", "v0r", "3a", "augmix-m5", "rand-m10-n8-inc1", "rand-n8-tweights"])
def test_grey_and_coloured_pictures_take_every_policy(tmp_path, policy):
    photos(tmp_path, count=3)
    for channels in (1, 3):
        source = photo_source(tmp_path, grid__in_channels=channels, data__auto_augment=policy, data__grayscale=0.5)
        train = source.train()
        for epoch in range(15):
            train.set_epoch(epoch)
            assert train[0][0].shape == (channels, 32, 32)


def test_hidden_names_inside_a_listing(tmp_path):
    """The same rule for a test folder, and for what lies in class folders."""
    photos(tmp_path, count=2, split="test")
    picture(tmp_path / "test/__MACOSX/cat/._0.png")
    listed = list_folder(tmp_path / "test")
    assert listed.classes == ("ant", "cat", "dog")
    assert len(listed.entries) == 6


@pytest.mark.parametrize(("scale", "ratio"), [(0.08, (3 / 4, 4 / 3)), (0.3, (0.5, 2.0)), (1.0, (1.0, 1.0))])
def test_photos_are_decoded_large_enough_for_every_crop(scale, ratio):
    """What timm's random crop cuts out of a picture of that size is never enlarged."""
    spec, preprocess = FolderSpec(scale=scale, ratio=ratio), Preprocess(size=(32, 32))
    side = needed_px(spec, preprocess)
    random.seed(0)
    for image in (Image.new("L", (side, side)), Image.new("L", (2 * side, side))):
        for _ in range(300):
            _, _, height, width = RandomResizedCropAndInterpolation.get_params(image, (scale, 1.0), ratio)
            assert min(height, width) >= 31
