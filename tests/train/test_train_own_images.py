"""`train.teacher_images: own`: a teacher of larger images sees a step's images at its own size."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from train_photos import photo_recipe
from train_tiny import tiny

from routespace.deploy.bundle import Card, save_bundle
from routespace.errors import SpecError
from routespace.nn.task_net import TaskNet
from routespace.preprocess import Preprocess, save_preprocess
from routespace.train.data.loaders import make_loaders
from routespace.train.own_images import own_images
from routespace.train.run import train_recipe
from routespace.train.teacher import Teacher, make_teacher

CPU = torch.device("cpu")
DIGITS = tuple("0123456789")
OWN = {"train__teacher_images": "own", "routing": "static"}


def bundle(folder, recipe, classes=DIGITS):
    """An untrained network of a recipe as a teacher."""
    torch.manual_seed(1)
    net = TaskNet.classifier(recipe.architecture()).eval()
    save_bundle(net, folder, Card.of(net))
    save_preprocess(folder, Preprocess(size=net.spec.image_size), classes)
    return str(folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A teacher of images of 64 px."""
    return bundle(tmp_path_factory.mktemp("own") / "large", tiny(routing="static", grid__image_size=64))


def made(recipe):
    """A recipe's loaders, and what its teacher sees."""
    loaders = make_loaders(recipe)
    teacher = make_teacher(
        recipe.train.teacher,
        like=loaders.source.preprocess,
        classes=loaders.source.classes,
        size=recipe.grid.image_size,
        device=CPU,
    )
    return loaders, own_images(recipe, loaders, teacher)


def test_they_are_the_scenes_of_the_recipe_at_the_teachers_size(large):
    recipe = tiny(train__teacher=large, **OWN)
    loaders, own = made(recipe)
    loaders.set_epoch(3, 1)
    own.set_epoch(3, 1)
    ours, at_its_size = (
        list(loaders.train),
        make_loaders(recipe.override({"grid.image_size": 64, "data.digit_px": [32, 60]})),
    )
    at_its_size.set_epoch(3, 1)
    wanted = list(at_its_size.train)
    assert len(ours) == len(wanted) == 3
    for (small,), (group,) in zip(ours, wanted, strict=True):
        (seen,) = own.take(CPU)
        assert torch.equal(seen, group.images)
        assert torch.equal(small.targets, group.targets)


def test_pictures_are_cut_out_alike(tmp_path):
    """A crop of a picture at twice the size, halved, is the crop that the network sees."""
    rng = np.random.default_rng(0)
    for name in ("ant", "cat", "dog"):
        for i in range(4):
            file = tmp_path / "photos" / "train" / name / f"{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 255, (6, 9, 3), np.uint8))
            coarse.resize((300, 200), Image.Resampling.BICUBIC).save(file, quality=95)
    options = {"data__scale": 0.2, "data__hflip": 0.5, "train__batch_size": 4, "data__val_fraction": 0.3}
    teacher = bundle(tmp_path / "t", photo_recipe("x", grid__image_size=64), ("ant", "cat", "dog"))
    recipe = photo_recipe(tmp_path / "photos", train__teacher=teacher, train__teacher_images="own", **options)
    loaders, own = made(recipe)
    loaders.set_epoch(1)
    own.set_epoch(1)
    for (group,) in loaders.train:
        halved = F.interpolate(own.take(CPU)[0], (32, 32), mode="bilinear", antialias=True)
        assert (halved - group.images).abs().mean() < 0.05 < group.images.std() / 4


def test_a_training_asks_its_teacher_about_them_and_goes_on_with_them(large, tmp_path, monkeypatch):
    seen, ask = [], Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", lambda self, images: seen.append(images.clone()) or ask(self, images))
    recipe = tiny(train__teacher=large, data__train_size=32, data__val_size=16, **OWN)
    copy = tmp_path / "copy"

    def watch(news):
        if (news.epoch, news.stage) == (2, "train") and not copy.exists():
            shutil.copytree(tmp_path / "run", copy)

    whole = train_recipe(recipe, tmp_path / "run", progress=watch)
    first, loaders = list(seen), make_loaders(recipe)
    assert [images.shape for images in first] == [(16, 3, 64, 64)] * 4
    seen.clear()
    resumed = train_recipe(recipe, copy, resume=True)
    assert all(torch.equal(one, other) for one, other in zip(seen, first[-len(seen) :], strict=True))
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, resumed.net.state_dict()[name]), name
    same_size = bundle(tmp_path / "same", tiny(routing="static"))
    assert made(recipe.override({"train.teacher": same_size}))[1] is None
    assert own_images(recipe.override({"train.teacher_images": "resized"}), loaders, None) is None


def test_what_cannot_be_seen_twice_is_refused(large):
    for changes, told in (
        ({"train__teacher": None}, "'own' needs a teacher from outside"),
        ({"train__teacher": "self", "routing": "depth"}, "'own' needs a teacher from outside"),
        ({"train__mixup": 0.2}, "makes images twice, which mixup and cutmix mix once"),
    ):
        with pytest.raises(SpecError, match=f"train.teacher_images: {told}|{told}"):
            tiny(**OWN | {"train__teacher": large} | changes)
    recipe = tiny(train__teacher=large, **OWN)
    plain = recipe.override({"train.teacher": None, "train.teacher_images": "resized"})
    assert plain.hash == tiny(routing="static").hash != recipe.hash
