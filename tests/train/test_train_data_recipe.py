"""The data section of a recipe: a spec for each kind, one line for whatever does not belong there."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from train_tiny import TINY, tiny

from routespace.errors import SpecError
from routespace.preprocess import Preprocess
from routespace.recipes import load_recipe, recipe_names
from routespace.search.space import Space
from routespace.train.data.augment import augmentation
from routespace.train.recipe.augment import check_augment
from routespace.train.recipe.data import CsvSpec, DigitsSpec, FolderSpec
from routespace.train.recipe.data_kinds import SPECS
from routespace.train.recipe.recipe import Recipe

ANNOTATED = ("coco", "segmentation", "voc", "cityscapes")  # which give no labels
FOLDER = {"data.kind": "folder", "data.root": "/photos"}
# What a recipe's data section was when one spec had the fields of both kinds.
FORMER = {
    "kind": "digits", "root": None, "train_size": 64, "val_size": 32, "test_size": 32, "digit_px": [16, 30],
    "digits_per_scene": [1, 1], "val_fraction": 0.02, "workers": 1, "scale": 0.08, "hflip": 0.5,
    "color_jitter": 0.0, "auto_augment": None, "erasing": 0.0, "interpolation": "bilinear", "crop_pct": 0.9,
}  # fmt: skip


def test_each_kind_has_its_own_fields_and_reads_back():
    assert list(SPECS) == ["digits", "folder", "csv", "webdataset", "timm", "scenes", *ANNOTATED]
    for kind, spec in SPECS.items():
        if kind in ANNOTATED:
            with pytest.raises(SpecError, match=f"data.kind: '{kind}' gives .*and the task asks for label"):
                tiny(data__kind=kind)
            continue
        recipe = tiny(data__kind=kind)
        assert type(recipe.data) is spec
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert (
        type(Recipe.parse({"name": "x", "grid": TINY["grid"]} | {"data": {"digit_px": [8, 9]}}).data) is DigitsSpec
    )
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.task.target != "label" or recipe.preprocess.size == recipe.grid.image_size


def test_another_kind_keeps_what_both_have():
    recipe = tiny(data__workers=3).override(FOLDER | {"data.crop_pct": 0.7})
    assert recipe.data == FolderSpec(root="/photos", workers=3, crop_pct=0.7)
    table = recipe.override({"data.kind": "csv", "data.root": "/photos/list.csv"})
    assert table.data == CsvSpec(root="/photos/list.csv", workers=3, crop_pct=0.7)
    assert table.override({"data.kind": "csv"}) == table


def test_phases_keep_what_another_kind_has_too():
    phase = {"epochs": 1, "image_size": 40, "data": {"train_size": 64, "digit_px": [16, 30], "workers": 2}}
    turned = tiny(train={**TINY["train"], "phases": [phase]}).override(FOLDER)
    assert turned.train.phases[0].data == {"workers": 2}
    assert turned.phase(0).data == turned.data.model_copy(update={"workers": 2})


def test_a_search_varies_the_fields_of_its_kind():
    recipe = tiny(search={"space": {"data.train_size": [64, 128]}, "overrides": {"data.val_size": 16, "seed": 2}})
    assert list(Space.of(recipe).distributions) == ["data.train_size"]
    turned = recipe.override(FOLDER)
    assert turned.search.space == {}
    assert turned.search.overrides == {"seed": 2}
    folder = tiny().override(FOLDER | {"search": {"space": {"data.scale": [0.1, 0.5]}}})
    assert list(Space.of(folder).distributions) == ["data.scale"]
    with pytest.raises(SpecError, match=r"^search.space.data.scale: means nothing with data.kind 'digits'"):
        tiny(search={"space": {"data.scale": [0.1, 0.5]}})
    with pytest.raises(SpecError, match=r"search.space.data.train_size: 0 is not allowed"):
        Space.of(tiny(search={"space": {"data.train_size": [0]}}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.val_fraction": 0.1}, ["data.val_fraction", "'digits'", "folder"]),
        ({"data.root": "x"}, ["data.root", "'digits'", "folder"]),
        (FOLDER | {"data.train_size": 64}, ["data.train_size", "'folder'", "digits", "val_fraction"]),
        (FOLDER | {"data.digit_px": [8, 9]}, ["data.digit_px", "'folder'"]),
        (FOLDER | {"data.label_column": "x"}, ["data.label_column", "csv"]),
        ({"data.nonsense": 1}, ["data.nonsense", "unknown", "train_size", "crop_pct"]),
        ({"data": {"kind": "folder", "nonsense": 1}}, ["data.nonsense", "unknown", "crop_pct"]),
        ({"data.kind": "imagenet"}, ["data.kind", "'imagenet'", "webdataset"]),
        ({"data.kind": ["folder"]}, ["data.kind", "webdataset"]),
        ({"data": 5}, ["data"]),
        (FOLDER | {"data.auto_augment": "foo"}, ["data.auto_augment", "foo", "rand-m9-mstd0.5-inc1"]),
        (FOLDER | {"data.auto_augment": "rand-x9"}, ["data.auto_augment", "x9", "mstd"]),
        (FOLDER | {"data.interpolation": "best"}, ["data.interpolation", "bicubic"]),
        (FOLDER | {"data.ratio": [2, 1]}, ["data.ratio"]),
        (FOLDER | {"data.skip_bad": -1}, ["data.skip_bad"]),
        (FOLDER | {"data.background": [0, 0, 256]}, ["data.background"]),
        (FOLDER | {"data.mean": [0.5]}, ["data.mean", "1 numbers for 3 channels"]),
        (FOLDER | {"data.std": [0.5, 0.5, 0]}, ["data.std", "above 0"]),
        ({"data.std": [0.5, 0.5]}, ["data.std", "2 numbers for 3 channels"]),
        (FOLDER | {"grid.in_channels": 2}, ["grid.in_channels", "2", "RGBA"]),
        (
            FOLDER | {"grid.in_channels": 4, "data.auto_augment": "original"},
            ["data.auto_augment", "in_channels 4"],
        ),
        ({"grid.in_channels": 1}, ["in_channels 3"]),
        ({"data.kind": "timm", "data.name": "tfds/mnist"}, ["data.name", "torch/NAME", "webdataset"]),
    ],
)
def test_what_does_not_belong_there_is_one_line(changes, words):
    with pytest.raises(SpecError) as caught:
        tiny().override(changes)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_a_run_of_before_still_reads():
    old = tiny().to_data() | {"data": FORMER}
    assert Recipe.parse(old).data == DigitsSpec(
        train_size=64, val_size=32, test_size=32, digit_px=(16, 30), workers=1
    )
    folder = Recipe.parse(old | {"data": FORMER | {"kind": "folder", "root": "photos"}}).data
    assert folder == FolderSpec(root="photos", workers=1, val_fraction=0.02, interpolation="bilinear")


def test_the_hash_is_the_same_wherever_the_data_lies():
    here, there = tiny().override(FOLDER), tiny().override(FOLDER | {"data.root": "/elsewhere"})
    assert here.hash == there.hash != tiny().override(FOLDER | {"data.hflip": 0.1}).hash
    assert here != there


def test_the_preprocess_of_a_recipe():
    assert tiny().preprocess == Preprocess(size=(32, 32), crop_pct=1.0)
    grey = tiny().override(FOLDER | {"grid.in_channels": 1, "data.mean": [0.2], "data.crop_pct": 0.8})
    assert grey.preprocess == Preprocess(size=(32, 32), channels=1, mean=(0.2,), crop_pct=0.8)


names = st.sampled_from(["rand", "augmix", "original", "originalr", "v0", "v0r", "3a", "foo", "random", ""])
keys = st.sampled_from(["m", "n", "p", "mstd", "mmax", "inc", "w", "d", "a", "b", "t", "x", ""])
values = st.sampled_from(["", "0", "1", "2", "5", "0.5", "1.", "9", "15", "abc", "weights", "3a", "3aw", "1.2.3"])
sections = st.lists(st.tuples(keys, values).map("".join), max_size=3)


@settings(max_examples=300, deadline=None)
@given(names, sections)
def test_what_passes_varies_a_picture(name, parts):
    policy = "-".join([name, *parts])
    try:
        check_augment(policy)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    transform = augmentation(FolderSpec(auto_augment=policy), Preprocess(size=(16, 16)))
    image = Image.fromarray(np.full((20, 20, 3), 90, np.uint8))
    assert transform(image).shape == (3, 16, 16)


@pytest.mark.parametrize(
    "policy",
    ["rand-m9-mstd0.5-inc1", "rand-m9-n3-mstd0.5", "rand-mstd1-tweights", "rand", "original-mstd0.5", "v0", "3a",
     "augmix-m5-w4-d2", "augmix-a0.5", "rand-n2-m10-p0.5-mstd101"],
)  # fmt: skip
def test_timms_own_examples_pass(policy):
    check_augment(policy)


@pytest.mark.parametrize("policy", ["foo", "rand-n20-tweights", "augmix-w0", "augmix-a0", "rand-inc", "rand-tx"])
def test_what_timm_would_stumble_over_or_pass_over_does_not(policy):
    with pytest.raises(ValueError, match=policy):
        check_augment(policy)
