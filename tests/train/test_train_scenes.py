"""Scenes: what is composed, that boxes and masks are exact, and who may use which picture."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from train_pixels import pixels
from train_tiny import tiny

from routespace.errors import DataError, SpecError
from routespace.preprocess import Preprocess
from routespace.train.data.catalogue import Entry, three_sides
from routespace.train.data.loaders import Loaders, make_loaders
from routespace.train.data.scenes.files import scene_files
from routespace.train.data.scenes.on_device import Composed, DeviceLoaders, loaders_for, on_device
from routespace.train.data.scenes.source import ScenesDataset, ScenesSource
from routespace.train.recipe.recipe import Recipe
from routespace.train.recipe.scenes import ScenesSpec
from routespace.train.run import train_recipe

PLAIN = {
    "rotate": 0,
    "stretch": 0,
    "brightness": 0,
    "contrast": 0,
    "saturation": 0,
    "background_brightness": (1, 1),
}
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Cut-outs of three classes, four each: discs and bars of a colour; and seven grey photographs."""
    root = tmp_path_factory.mktemp("pieces")
    for name, colour in COLOURS.items():
        (root / "cutouts" / name).mkdir(parents=True)
        for i in range(4):
            image = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
            image.paste((*colour, 255), (10, 20, 50, 40) if i % 2 else (10, 10, 50, 50))
            image.save(root / "cutouts" / name / f"{i}.png")
    for i in range(7):
        (root / "photos" / f"trip{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (300, 200), (100 + i,) * 3).save(
            root / "photos" / f"trip{i % 2}" / f"{i}.jpg", quality=95
        )
    return root


def scenes(root, split="train", count=200, size=(64, 48), seed=0, **changes):
    given = {"cutouts": str(root / "cutouts"), "backgrounds": str(root / "photos"), "object_px": (8, 40)}
    spec = ScenesSpec.model_validate(given | PLAIN | changes)
    return ScenesDataset(spec, split, count, Preprocess(size=size), seed=seed)


def test_boxes_masks_and_labels_are_what_is_painted(pieces):
    made = scenes(pieces).compose(range(60))
    for b in range(60):
        objects, image = made.objects(b), made.images[b].numpy().astype(int)
        (mask,), (label,), (box,) = objects.masks, objects.labels, objects.boxes
        name = sorted(COLOURS)[label]
        grey = np.median(image[~mask], axis=0)
        nearer = np.abs(image - grey).sum(-1) - np.abs(image - COLOURS[name]).sum(-1)
        assert nearer[mask].min() > -4, b  # 4: both are rounded
        assert nearer[~mask].max() < 4, b
        x1, y1, x2, y2 = box.astype(int)
        missing = np.argwhere(~mask[y1:y2, x1:x2])  # a rectangle that is not turned fills its box
        assert all(y in (0, y2 - y1 - 1) and x in (0, x2 - x1 - 1) for y, x in missing)  # but for corners
        assert mask.sum() == (y2 - y1) * (x2 - x1) - len(missing)
        layout = made.layout
        assert abs((x2 - x1) - layout.width[b, 0]) <= 1.01
        assert abs((y2 - y1) - layout.height[b, 0]) <= 1.01
        assert label == layout.labels[b]


def test_a_scene_is_the_same_in_any_batch_and_new_in_each_epoch(pieces):
    data = scenes(pieces, objects_per_scene=(1, 3), distractors=(0, 2), rotate=90, hflip=0.5, brightness=0.3)
    whole = data.compose(range(24)).images
    order = random.Random(0).sample(range(24), 24)
    assert torch.equal(data.compose(order).images, whole[order])
    assert all(torch.equal(data.compose([i]).images[0], whole[i]) for i in (0, 7, 23))
    data.set_epoch(1)
    assert not torch.equal(data.compose(range(24)).images, whole)
    val = scenes(pieces, "val")
    before = val.compose(range(8)).images
    val.set_epoch(3)
    assert torch.equal(val.compose(range(8)).images, before)
    assert not torch.equal(
        scenes(pieces, seed=1).compose(range(8)).images, scenes(pieces).compose(range(8)).images
    )


@settings(max_examples=25, deadline=None)
@given(
    objects=st.integers(1, 5),
    distractors=st.integers(0, 4),
    rotate=st.floats(0, 180),
    low=st.integers(6, 20),
    more=st.integers(0, 28),
    stretch=st.floats(0, 0.5),
)
def test_pieces_lie_inside_and_never_overlap(pieces, objects, distractors, rotate, low, more, stretch):
    span = (low, low + more)
    changes = {
        "objects_per_scene": (1, objects),
        "distractors": (0, distractors),
        "rotate": rotate,
        "stretch": stretch,
    }
    made = scenes(pieces, object_px=span, **changes).compose(range(12))
    layout, (high, wide) = made.layout, made.layout.size
    down, across = layout.reach
    for b in range(12):
        there = np.flatnonzero(layout.cutout[b] >= 0)
        assert 1 <= (layout.label[b] >= 0).sum() <= objects
        for i in there:
            assert layout.y[b, i] - down[b, i] >= -1e-9 or 2 * down[b, i] > high
            assert layout.x[b, i] + across[b, i] <= wide + 1e-9 or 2 * across[b, i] > wide
            for j in there[there > i]:
                apart = abs(layout.y[b, i] - layout.y[b, j]) - down[b, i] - down[b, j]
                aside = abs(layout.x[b, i] - layout.x[b, j]) - across[b, i] - across[b, j]
                assert max(apart, aside) >= -1e-9
        largest = np.where(layout.label[b] >= 0, np.maximum(layout.height[b], layout.width[b]), -1).argmax()
        assert layout.labels[b] == layout.label[b, largest]
        objects_seen = made.objects(b)
        assert len(objects_seen.labels) == len(objects_seen.boxes) == len(objects_seen.masks)
        assert not (objects_seen.masks.sum(0) > 1).any()


def test_classes_come_in_turn(pieces):
    data = scenes(pieces)
    labels = data.compose(range(30)).layout.labels
    assert [sorted(labels[i : i + 3]) for i in range(0, 30, 3)] == [[0, 1, 2]] * 10
    assert data.batch(range(3))[1].tolist() == labels[:3].tolist()
    source = ScenesSource(data.spec, data.preprocess, seed=0)
    assert source.classes == ("blue", "green", "red")
    assert source.summary.text.startswith("3 classes, 13000 images (train 12000, val 1000)")


def test_distractors_have_a_shape_but_no_label(pieces):
    made = scenes(pieces, distractors=(2, 2), object_px=(10, 16)).compose(range(20))
    assert ((made.layout.cutout >= 0).sum(1) > 1).any()
    assert all(len(made.objects(b).labels) == 1 for b in range(20))
    greys = made.images[(made.owner >= 0) & (made.owner < 2)].float()
    assert greys.std(1).max() < 12  # filled with grey photographs (JPEG's), not with the cut-out's colour


# -- who may use which picture --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split_by", "apart"), [("background", "photos"), ("cutout", "cutouts"), ("both", "both")]
)
def test_splits_share_nothing_of_what_they_are_split_by(pieces, split_by, apart):
    spec = scenes(pieces, split_by=split_by).spec
    used = {split: scene_files(spec, split) for split in ("train", "val", "test")}
    for field in ("cutouts", "photos"):
        files = [{entry.place for entry in getattr(chosen, field)} for chosen in used.values()]
        assert all(files)
        if apart in (field, "both"):
            assert not (files[0] & files[1])
            assert not (files[0] & files[2])
            assert not (files[1] & files[2])
        else:
            assert files[0] == files[1] == files[2]


@given(
    st.lists(st.text("abcdef", min_size=1, max_size=6), min_size=3, max_size=60, unique=True),
    st.floats(0.05, 0.45),
)
def test_a_pictures_side_follows_from_its_own_name(names, share):
    entries = [Entry(name, "x", name) for name in names]
    sides = three_sides(entries, share)
    assert sorted(entry.key for part in sides.values() for entry in part) == sorted(names)
    assert all(sides.values())
    fewer = three_sides(entries[:-1], share)
    if len(names) > 40:  # with so many no side is filled up
        moved = sum(entry not in sides[side] for side, part in fewer.items() for entry in part)
        assert moved <= 2


def test_what_cannot_be_composed_is_said_in_one_line(pieces, tmp_path):
    for changes, told in {
        "missing": (
            {"cutouts": str(tmp_path / "no")},
            "no: no such folder; give one with <class>/",
        ),
        "photos": ({"backgrounds": str(tmp_path / "no")}, "no such folder; give one with photographs"),
        "none": ({"backgrounds": str(pieces / "cutouts" / "red" / "nothing")}, "no such folder"),
    }.values():
        with pytest.raises(DataError, match=told) as caught:
            scenes(pieces, **changes)
        assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures; give a folder with photographs"):
        scenes(pieces, backgrounds=str(tmp_path / "empty"))
    (tmp_path / "few" / "a").mkdir(parents=True)
    Image.new("RGBA", (20, 20), (9, 9, 9, 255)).save(tmp_path / "few" / "a" / "1.png")
    with pytest.raises(DataError, match="too few cut-outs of each class to keep those of train"):
        scenes(pieces, cutouts=str(tmp_path / "few"), split_by="both")
    Image.new("RGBA", (20, 20), (9, 9, 9, 0)).save(tmp_path / "few" / "a" / "1.png")
    with pytest.raises(DataError, match=r"1\.png: is nearly all transparent"):
        scenes(pieces, cutouts=str(tmp_path / "few"))
    with pytest.raises(IndexError, match="outside 0"):
        scenes(pieces, count=5).compose([5])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data.object_px": [40, 20]}, r"object_px: \[40, 20\] must be \[least, greatest\]"),
        ({"data.object_px": [20, 400]}, r"data\.object_px: \[20, 400\] does not fit"),
        ({"data.held_out": 0.6}, "held_out: 0.6 is the share of val"),
        ({"data.digit_px": [10, 20]}, "digit_px: means nothing with data.kind 'scenes'"),
        ({"grid.in_channels": 1}, "does not fit data.kind 'scenes'; give 3"),
    ],
)
def test_what_a_recipe_cannot_ask_for(changes, told):
    with pytest.raises(SpecError, match=told):
        tiny().override({"data.kind": "scenes", "data.object_px": [12, 20]} | changes)


# -- training -------------------------------------------------------------------------------------------


def test_a_run_trains_on_digits_without_a_square_around_them(tmp_path):
    size = {"data.train_size": 32, "data.val_size": 20, "data.test_size": 20, "data.object_px": [12, 28]}
    recipe = tiny().override(
        {"data.kind": "scenes", "train.epochs": 1, "data.background_brightness": [0.3, 0.6]} | size
    )
    result = train_recipe(recipe, tmp_path / "run")
    assert 0 <= result.metrics["accuracy"] <= 1
    assert [len(labels) for _, labels in make_loaders(recipe).val]


def test_a_run_of_ones_own_cutouts_keeps_what_it_saw(pieces, tmp_path, monkeypatch):
    monkeypatch.chdir(pieces)
    own = {"data.kind": "scenes", "data.cutouts": "cutouts", "data.backgrounds": "photos", "grid.num_classes": 3}
    size = {"data.train_size": 32, "data.val_size": 15, "data.object_px": [12, 28], "train.epochs": 1}
    _ = train_recipe(tiny().override(own | size), tmp_path / "run")
    assert Recipe.read(tmp_path / "run" / "recipe.yaml").data.cutouts == str(pieces / "cutouts")
    assert (tmp_path / "run" / "data.json").is_file()
    with pytest.raises(DataError, match="has 3 classes"):
        make_loaders(tiny().override(own | size | {"grid.num_classes": 10}))


def test_scenes_that_are_composed_where_the_network_is_are_the_same():
    recipe = tiny().override({"data": {"kind": "scenes", "train_size": 48, "val_size": 20, "object_px": [12, 30]}})
    plain, there = make_loaders(recipe), make_loaders(recipe, kind=on_device("cpu"))
    for loaders in (plain, there):
        loaders.set_epoch(1, 1)
    for first, second in zip(plain.train, there.train, strict=True):
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.targets, b.targets)
    assert [len(group.images) for group in there.val] == [16, 4]
    for a, b in zip(plain.val, there.val, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)
    with pytest.raises(SpecError, match="cannot be composed on a device"):
        list(make_loaders(tiny(), kind=on_device("cpu")).val)


@pytest.mark.slow
def test_batches_that_are_composed_together_are_the_same(pieces):
    dataset = scenes(pieces, objects_per_scene=(1, 3), distractors=(0, 1))
    batches, device = [range(3), range(3, 9), range(9, 11), range(20, 21)], torch.device("cpu")
    alone, together = (list(Composed(dataset, batches, device, ahead_px=scenes * 64 * 48)) for scenes in (0, 9))
    assert [len(group.images) for group in together] == [3, 6, 2, 1]
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)


def test_a_training_on_composed_batches_is_the_same(tmp_path):
    recipe = tiny().override({"data": {"kind": "scenes", "train_size": 32, "val_size": 16, "object_px": [12, 30]}})
    first = train_recipe(recipe, tmp_path / "first").net.state_dict()
    second = train_recipe(recipe, tmp_path / "second", loaders=on_device("cpu")).net.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_batch_and_what_is_known_of_it():
    source = ScenesSource(ScenesSpec(object_px=(12, 30)), Preprocess(size=(48, 48)), seed=0)
    dataset = source.train()
    images, labels, objects = dataset.known_batch(range(4))
    assert torch.equal(images, dataset.batch(range(4))[0])
    assert [int(known.labels[0]) for known in objects] == labels.tolist()


def test_a_training_composes_scenes_on_its_gpu():
    """A classifier's, where nobody asked for loader processes; they are the scenes that a CPU composes."""
    gpu, scenes = torch.device("cuda"), tiny().override({"data": {"kind": "scenes"}})
    assert issubclass(loaders_for(scenes, gpu), DeviceLoaders)
    assert loaders_for(scenes, gpu).device == gpu
    assert loaders_for(scenes, torch.device("cpu")) is Loaders
    assert loaders_for(tiny(), gpu) is Loaders
    assert loaders_for(scenes.override({"data.workers": 2}), gpu) is Loaders
    assert loaders_for(pixels().override({"data": {"kind": "scenes"}}), gpu) is Loaders
