"""`train --from` and `--set train.weights`: what the command line was told holds, or is refused."""

import pytest
import torch
from PIL import Image

from routespace import TaskNet, load_recipe, load_run, save_bundle
from routespace.deploy.bundle import Card

FEW = {
    "data.train_size": 16,
    "data.val_size": 8,
    "train.batch_size": 8,
    "train.epochs": 0,
    "train.warmup_epochs": 0,
}
SMALL = {"grid.layers": 2, "grid.max_down": 8, "grid.embed_layers": "all"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A bundle with gates, `small`, and the recipe of its grid, `tiny.yaml`."""
    place = tmp_path_factory.mktemp("from")
    recipe = load_recipe("digits_tiny", [f"{name}={value}" for name, value in (FEW | SMALL).items()])
    (place / "tiny.yaml").write_text(recipe.to_yaml())
    net = TaskNet.classifier(recipe.architecture(), recipe.gates).eval()
    save_bundle(net, place / "small", Card.of(net))
    return place


@pytest.mark.parametrize(
    "change", ["grid.max_down=4", "grid.layers=3", "gates.kind=sigmoid", "train.start=staircase"]
)
def test_what_cannot_hold_is_refused(cli, place, tmp_path, change):
    args = ("train", place / "tiny.yaml", "--from", place / "small", "--set", change, "--out", tmp_path / "run")
    cli(*args).assert_refused(change.split("=")[0], "was asked")
    assert not (tmp_path / "run").exists()


def test_the_image_size_holds(cli, place, tmp_path):
    out = tmp_path / "run"
    changes = ("--set", "grid.image_size=96", "--set", "gates.rows=image")
    told = cli("train", place / "tiny.yaml", "--from", place / "small", *changes, "--out", out).assert_fine().out
    assert "images: 96x96 px; the given network is of 64x64 px" in told
    assert load_recipe(out).grid.image_size == load_run(out).net.spec.image_size == (96, 96)
    assert load_recipe(out).gates.rows == load_run(out).net.gate_spec.rows == "image"
    cli("train", out, "--resume").assert_fine()
    cli("train", out, "--resume", "--set", "grid.image_size=64").assert_refused("another recipe")


def test_my_classes_on_their_weights(cli, place, tmp_path):
    for name in ("ant", "bee", "cat"):
        for i in range(30):
            path = tmp_path / "three" / "train" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (70, 70), (8 * i, 90, 90)).save(path)
    args = ("train", place / "tiny.yaml", "--from", place / "small", "--data", tmp_path / "three")
    told = cli(*args, "--out", tmp_path / "run").assert_fine().out
    assert "head: new, for 3 classes" in told
    assert load_run(tmp_path / "run").net.spec.num_classes == 3


def test_a_file_of_weights_is_no_network_to_go_on_with(cli, place, tmp_path):
    torch.save({}, tmp_path / "b0.pth")
    args = ("train", place / "tiny.yaml", "--from", tmp_path / "b0.pth", "--out", tmp_path / "run")
    cli(*args).assert_refused("is a file", f"--set train.weights={tmp_path / 'b0.pth'}")


def test_weights_of_a_bundle_fill_the_recipes_grid(cli, place, tmp_path):
    args = ("train", place / "tiny.yaml", "--set", f"train.weights={place / 'small'}", "--out", tmp_path / "run")
    told = " ".join(cli(*args).assert_fine().out.split())
    assert "M parameters; new: gates" in told
