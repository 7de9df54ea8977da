"""`train.teacher`: soft labels of a bundle, a run, timm's networks or the network itself."""

import json
import shutil

import pytest
import timm
import torch
from tiny_grid import TINY_GRID
from train_photos import photo_recipe, photos
from train_tiny import tiny

from routespace.deploy.bundle import Card, save_bundle
from routespace.errors import BundleError, DataError, RoutespaceError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.task_net import TaskNet
from routespace.preprocess import Preprocess, save_preprocess
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import train_recipe
from routespace.train.run_folder import RunFolder
from routespace.train.tasks.classify import Classify
from routespace.train.teacher import Feeding, make_teacher

DIGITS = tuple("0123456789")
SMALL = {"train__epochs": 1, "data__train_size": 32, "data__val_size": 16}
CPU = torch.device("cpu")


def network(seed=1, **changes):
    recipe = tiny(routing="static", **changes)
    torch.manual_seed(seed)
    net = TaskNet.classifier(recipe.architecture()).eval()
    with torch.no_grad():
        net.head.bias.copy_(torch.randn(len(net.head.bias)))
    return net


def bundle(folder, net, classes=DIGITS, **fed):
    save_bundle(net, folder, Card.of(net))
    save_preprocess(folder, Preprocess.parse({"size": net.spec.image_size} | fed), classes)
    return str(folder)


def teacher(source, classes=DIGITS, size=(32, 32)):
    return make_teacher(source, like=Preprocess(size=size), classes=classes, size=size, device=CPU)


def test_soft_loss_is_kl_at_a_temperature():
    task = Classify(3)
    ours, theirs = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[0.3, 0.1, 2.0]])
    p, q = (theirs / 4).softmax(1), (ours / 4).softmax(1)
    assert task.soft_loss(ours, theirs, 4.0).item() == pytest.approx(16 * (p * (p / q).log()).sum().item())
    assert task.soft_loss(ours, ours, 2.0).item() == pytest.approx(0, abs=1e-6)


def test_a_teacher_of_the_same_classes_says_what_it_says(tmp_path):
    net, images = network(), torch.randn(4, 3, 32, 32)
    found = teacher(bundle(tmp_path / "b", net))
    assert torch.allclose(found(images), net(images).logits, atol=1e-5)
    assert "MMACs an image of 32x32 px" in found.line
    assert found.line.endswith("classes by name")
    assert found.macs == Card.of(net).macs


def test_classes_go_by_name(tmp_path):
    net, images = network(), torch.randn(4, 3, 32, 32)
    source = bundle(tmp_path / "b", net, classes=DIGITS[::-1])
    assert torch.allclose(teacher(source)(images), net(images).logits.flip(1), atol=1e-5)
    assert torch.allclose(teacher(source, classes=("7", "2"))(images), net(images).logits[:, [2, 7]], atol=1e-5)
    with pytest.raises(DataError, match=r"train.teacher: .*does not know the class 'cat' \(1 of 2 are unknown\)"):
        teacher(source, classes=("cat", "2"))


def test_images_come_in_the_teachers_normalisation_and_size(tmp_path):
    net = network(grid__image_size=64)
    ours = Preprocess(size=(32, 32))
    fed = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.25, 0.5)}
    found = teacher(bundle(tmp_path / "b", net, **fed))
    pixels = torch.rand(2, 3, 32, 32)
    mean, std, their_mean, their_std = (
        torch.tensor(values).view(1, 3, 1, 1) for values in (ours.mean, ours.std, fed["mean"], fed["std"])
    )
    large = torch.nn.functional.interpolate(
        (pixels - their_mean) / their_std, (64, 64), mode="bilinear", antialias=True
    )
    torch.testing.assert_close(found((pixels - mean) / std), net(large).logits.detach(), atol=1e-4, rtol=1e-4)
    grid = RoutingGrid(GridSpec.parse(TINY_GRID | {"in_channels": 1}))
    grey = bundle(tmp_path / "grey", TaskNet.classifier(Architecture.staircase(grid)), channels=1)
    with pytest.raises(SpecError, match="it reads images of 1 channels, the recipe has 3"):
        teacher(grey)


def test_timms_networks_teach_by_place(monkeypatch):
    model = timm.create_model("resnet10t", num_classes=10)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: model)
    found = teacher("timm:resnet10t")
    assert found(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert found.line.endswith("classes by place, as it has no names")
    assert found.macs == pytest.approx(700e6, rel=0.5)
    with pytest.raises(SpecError, match="it tells 10 classes without names, the data has 3"):
        teacher("timm:resnet10t", classes=("a", "b", "c"))


@pytest.mark.parametrize(
    ("source", "told"),
    [("nosuch", "does not exist; give timm:NAME, the folder"), ("timm:nosuch", "timm knows no")],
)
def test_what_is_no_teacher_is_refused_before_anything_is_written(source, told, tmp_path):
    with pytest.raises(RoutespaceError, match=f"^train.teacher: .*{told}") as caught:
        train_recipe(tiny(train__teacher=source), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_recipe_refuses_a_self_without_gates():
    with pytest.raises(SpecError, match=r"train.teacher: 'self' needs gates; routing 'static' has none"):
        tiny(routing="static", train__teacher="self")


def test_recipes_without_a_teacher_keep_their_hash():
    data = tiny().to_data()
    for name in ("teacher", "teacher_weight", "teacher_temperature"):
        data["train"].pop(name)
    assert Recipe.parse(data).hash == tiny().hash != tiny(train__teacher="self").hash
    assert tiny(train__teacher="/a/big").hash == tiny(train__teacher="/b/big").hash


def test_with_all_the_weight_the_data_labels_do_not_matter(tmp_path):
    """The student of a constant teacher learns its answer; the reported loss is weight·soft + rest·task."""
    net = network()
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.copy_(8.0 * torch.nn.functional.one_hot(torch.tensor(3), 10))
    source = bundle(tmp_path / "b", net)
    options = {"routing": "static", "train__teacher": source, "data__val_size": 16, "train__lr": 0.02}
    recipe = tiny(**options, train__teacher_weight=1.0, train__epochs=3)
    result = train_recipe(recipe, tmp_path / "run")
    assert (result.net(torch.randn(8, 3, 32, 32)).logits.argmax(1) == 3).all()
    last = RunFolder(tmp_path / "run").read_metrics()[-1]
    assert last["loss"] == pytest.approx(last["soft_loss"])
    assert result.metrics["teacher_macs"] == Card.of(net).macs
    half = tiny(**options, train__teacher_weight=0.25, train__epochs=1)
    train_recipe(half, tmp_path / "half")
    (line,) = RunFolder(tmp_path / "half").read_metrics()
    assert line["loss"] == pytest.approx(0.25 * line["soft_loss"] + 0.75 * line["task_loss"], rel=1e-5)


def test_the_network_itself_teaches_once_its_gates_are_free(tmp_path):
    recipe = tiny(train__teacher="self", budget__open_frac=0.5, **SMALL | {"train__epochs": 2})
    train_recipe(recipe, tmp_path / "run")
    held, free = RunFolder(tmp_path / "run").read_metrics()
    assert held["soft_loss"] == 0
    assert free["soft_loss"] != 0  # rounding may take next to nothing below it
    assert free["loss"] > free["task_loss"]  # that of both passes
    assert free["train_expected_ratio"] < held["train_expected_ratio"]  # the routed pass's alone


@pytest.mark.parametrize("kind", ["bundle", "self"])
def test_a_taught_run_is_resumed_exactly(kind, tmp_path):
    source = bundle(tmp_path / "b", network()) if kind == "bundle" else "self"
    recipe = tiny(train__teacher=source, data__train_size=32, data__val_size=16)
    copy = tmp_path / "copy"

    def watch(news):
        if (news.epoch, news.step, news.stage) == (2, 1, "train"):
            shutil.copytree(tmp_path / "run", copy)

    whole = train_recipe(recipe, tmp_path / "run", progress=watch)
    if kind == "bundle":
        moved = shutil.move(tmp_path / "b", tmp_path / "elsewhere" / "b")
        recipe = recipe.override({"train.teacher": str(moved)})
    resumed = train_recipe(recipe, copy, resume=True)
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, resumed.net.state_dict()[name]), name


def test_a_resumed_run_wants_the_same_teacher(tmp_path):
    source = bundle(tmp_path / "b", network())
    recipe = tiny(train__teacher=source, **SMALL)
    train_recipe(recipe, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "b")
    bundle(tmp_path / "b", network(seed=2))
    with pytest.raises(BundleError, match=r"train.teacher: .* has other weights than when .* began"):
        train_recipe(recipe, tmp_path / "run", resume=True)


def test_pictures_are_taught_by_the_names_of_their_folders(tmp_path):
    """A teacher that was trained on other folders, with a class more, in bf16."""
    photos(tmp_path / "three")
    first = train_recipe(photo_recipe(tmp_path / "three", train__epochs=1), tmp_path / "first")
    shutil.copytree(tmp_path / "three", tmp_path / "two")
    for folder in (tmp_path / "two").rglob("ant"):
        shutil.rmtree(folder)
    recipe = photo_recipe(tmp_path / "two", train__epochs=1, grid__num_classes=2, train__batch_size=4)
    lines = []
    recipe = recipe.override({"train.teacher": str(first.folder), "train.precision": "bf16"})
    train_recipe(recipe, tmp_path / "run", tell=lines.append)
    assert any(line.startswith("teacher: ") and line.endswith("by name") for line in lines)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["teacher"] == str(first.folder)


def test_a_teacher_of_whole_pictures_sees_windows_in_their_shape():
    ours, theirs = (Preprocess(size=size).inside(multiple=8) for size in ((32, 128), (64, 256)))
    same = Feeding.between(ours, ours, (32, 32), CPU)
    images = torch.randn(2, 3, 24, 32)  # a window of a picture that is fed smaller
    assert torch.allclose(same(images), images, atol=1e-6)
    assert same(images).shape == images.shape
    assert Feeding.between(ours, theirs, (32, 32), CPU)(images).shape == (2, 3, 48, 64)
