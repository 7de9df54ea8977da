"""No explicit wish is swallowed: what has no effect, or says something twice, is refused in one line."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from tiny_grid import TINY_GRID
from train_photos import photos
from typer.testing import CliRunner

from routespace import (
    Architecture,
    BundleError,
    Card,
    GridSpec,
    RoutingGrid,
    TaskNet,
    load_exported,
    load_recipe,
    save_bundle,
)
from routespace.cli.app import app
from routespace.preprocess import Preprocess, save_preprocess
from routespace.workflow.artifacts import load_artifact
from routespace.workflow.exporting import export_artifact

CLASSES = ("ant", "cat", "dog")
ROUTED = ["extract", "here", "-o", "small", "--routed"]


@pytest.fixture
def bundle(tmp_path):
    """A static bundle of three classes with the recipe of its pictures, and the pictures."""
    photos(tmp_path / "photos", count=3)
    torch.manual_seed(0)
    grid = RoutingGrid(GridSpec.parse(TINY_GRID | {"num_classes": 3}))
    net = TaskNet.classifier(Architecture.staircase(grid)).eval()
    data = {"data.kind": "folder", "data.root": str(tmp_path / "photos"), "data.val_fraction": 0.4}
    recipe = load_recipe("digits_tiny").override({"grid": net.spec.model_dump(), **data})
    save_bundle(net, tmp_path / "small", Card.of(net), texts={"recipe.yaml": recipe.to_yaml()})
    save_preprocess(tmp_path / "small", Preprocess(size=(32, 32)), CLASSES)
    return tmp_path / "small"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "digits_tiny", "--data", "here", "--set", "data.root=there"], ["data.root", "there", "one of"]),
        (["train", "digits_tiny", "--data", "here", "--set", "data={root: there}"], ["data.root", "there"]),
        (["train", "digits_tiny", "--seed", "3", "--set", "seed=4"], ["seed: --seed says 3, --set says 4"]),
        (["train", "digits_tiny", "--device", "cpu", "--set", "train.device=cuda"], ["train.device", "cuda"]),
        (["train", "digits_tiny", "--device", "cpu", "--set", "train={device: cuda}"], ["train.device", "cuda"]),
        (
            ["search", "digits_tiny", "--latency", "a.json", "--set", "search.latency_table=b.json"],
            ["search.latency_table", "--latency says a.json"],
        ),
        (["search", "digits_tiny", "--data", "here", "--set", "data.root=there"], ["data.root", "there"]),
        (["build", "--layers", "3", "--size", "b0", "--set", "layers=4"], ["layers: --layers says 3"]),
        (
            ["build", "--layers", "3", "--size", "b0", "--image-size", "64", "--set", "image_size=32"],
            ["image-size"],
        ),
        (["train", "digits_tiny", "--set", "train.sandwich_parts=3"], ["no effect where train.mode is plain"]),
        (["train", "digits_tiny", "--set", "search.trials=3"], ["search.trials: is for `routespace search`"]),
        (["search", "digits_tiny", "--set", "gates.keep=.3"], ["gates.keep: has no effect where"]),
        (["data", "check", "here", "--set", "data.root=there"], ["data.root", "here", "there"]),
        (["evaluate", "here", "--compile", "--no-speed"], ["compile", "--no-speed"]),
        ([*ROUTED, "--choose", "kl"], ["choose: is about a part, and with --routed none is chosen"]),
        ([*ROUTED, "--method", "threshold"], ["method: is about a part"]),
        ([*ROUTED, "--drop-rates"], ["drop-rates: is about a part"]),
        ([*ROUTED, "--finetune", "2", "--cut", ".5"], ["cut: is about a part"]),
        ([*ROUTED, "--limit", "params=2M"], ["limit.params: is about a part"]),
        ([*ROUTED, "--ratio", ".6,.5"], ["routed: its threshold is calibrated to one budget"]),
        ([*ROUTED, "--image-size", "32,64"], ["image-size: with --routed it is one size"]),
    ],
)
def test_two_values_for_one_thing_are_refused(args, words, tmp_path, alone):
    ended = alone(tmp_path, *args)
    assert ended.code == 2, ended
    assert len(ended.err.splitlines()) == 1
    assert all(word in ended.err for word in words), ended.err
    assert not list(tmp_path.iterdir())


def test_the_same_value_twice_is_fine(cli):
    cli("build", "--layers", 3, "--size", "b0", "--set", "layers=3").assert_fine()


@pytest.mark.parametrize("wish", [["--choose", "candidates"], ["--method", "threshold"], ["--drop-rates"]])
def test_a_static_network_that_is_taken_whole_leaves_no_choice(wish, cli, bundle, tmp_path):
    cli("extract", bundle, "-o", tmp_path / "again", *wish).assert_refused("taken whole", "--ratio")
    assert not (tmp_path / "again").exists()


def test_a_method_is_of_usage_alone(cli, bundle, tmp_path):
    wish = ["--method", "threshold", "--choose", "kl", "--ratio", "0.9"]
    cli("extract", bundle, "-o", tmp_path / "again", *wish).assert_refused("threshold", "kl")


def test_compiled_blocks_are_timed_where_something_is_timed(cli, bundle):
    cli("evaluate", bundle, "--compile", "--split", "val").assert_refused("compile", "static", "bench")


def test_a_recipe_of_other_classes_is_refused_before_the_work(cli, bundle, tmp_path):
    out = tmp_path / "again"
    cli("extract", bundle, "-o", out, "--recipe", "digits_tiny").assert_refused("10 classes", "3 outputs")
    photos(tmp_path / "birds", {"wren": (9, 9, 9), "crow": (0, 0, 0), "rook": (5, 5, 5)}, count=3)
    recipe = load_recipe(bundle).override({"data.root": str(tmp_path / "birds")})
    (tmp_path / "birds.yaml").write_text(recipe.to_yaml())
    wish = ["--recipe", tmp_path / "birds.yaml"]
    cli("extract", bundle, "-o", out, *wish).assert_refused("'crow'", "none of the network's")
    cli("extract", bundle, "-o", out, *wish, "--no-evaluate", "--finetune", 1).assert_refused("'crow'")
    assert not out.exists()


def test_images_with_fewer_classes_are_labelled_by_their_names(cli, bundle, tmp_path):
    """The third class must not be taken for the first because it stands first in its folder."""
    shutil.rmtree(tmp_path / "photos/train/ant")
    cli("extract", bundle, "-o", tmp_path / "again").assert_fine()
    card = json.loads((tmp_path / "again/card.json").read_text())
    told = cli("evaluate", bundle, "--split", "val", "--json").assert_fine()
    assert card["scores"][-1]["value"] == json.loads(told.out)["accuracy"]


def test_advice_on_a_folder_without_test_images_can_be_followed(cli, bundle, tmp_path):
    refused = cli("evaluate", bundle, "--data", tmp_path / "photos")
    refused.assert_refused("no test images", "--split val", f"--data (such as {tmp_path / 'photos/train'})")
    cli("evaluate", bundle, "--data", tmp_path / "photos/train").assert_fine()


def test_exports_do_not_change_how_others_in_their_folder_are_fed(cli, bundle, tmp_path):
    before = (bundle / "preprocess.json").read_text()
    larger = ["--format", "pt2", "--image-size", 64]
    cli("export", bundle, "-o", bundle, *larger).assert_refused("model.safetensors", "32×32", "64×64")
    assert (bundle / "preprocess.json").read_text() == before
    assert not (bundle / "model.pt2").exists()
    (tmp_path / "out").mkdir()
    shutil.copy(bundle / "preprocess.json", tmp_path / "out")
    (tmp_path / "out/model.onnx").write_bytes(b"exported before")
    cli("export", bundle, "-o", tmp_path / "out", *larger).assert_refused("model.onnx", "another folder")


def test_exports_replace_nothing_unasked(cli, bundle, tmp_path):
    (tmp_path / "out").mkdir()
    there = tmp_path / "out/model.pt2"
    there.write_bytes(b"somebody else's")
    wish = ["export", bundle, "-o", tmp_path / "out", "--format", "pt2"]
    cli(*wish).assert_refused(str(there), "exists", "--overwrite")
    with pytest.raises(BundleError, match=r"model\.pt2: exists; .*overwrite=True"):
        export_artifact(load_artifact(bundle), tmp_path / "out", ["pt2"])
    assert there.read_bytes() == b"somebody else's"
    cli(*wish, "--overwrite").assert_fine()
    assert load_exported(there).names == ("logits",)
    assert sorted(path.name for path in there.parent.iterdir()) == ["model.pt2", "preprocess.json"]


def test_a_table_is_checked_by_the_columns_that_are_named(tmp_path):
    photos(tmp_path, count=2, split=".")
    table = tmp_path / "list.csv"
    table.write_text("file,kind\n" + "".join(f"{name}/{i}.png,{name}\n" for name in CLASSES for i in range(2)))
    named = ["--set", "data.path_column=file", "--set", "data.label_column=kind", "--workers", "1"]
    result = CliRunner().invoke(app, ["data", "check", str(table), *named])
    assert result.exit_code == 0, result.output
    assert "3 classes, 6 images" in result.output


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders here")
def test_what_would_wait_for_ever_or_leads_round_is_told(tmp_path):
    photos(tmp_path, count=1, split=".")
    os.mkfifo(tmp_path / "ant/pipe.png")
    (tmp_path / "cat/round.png").symlink_to("round.png")
    result = CliRunner().invoke(app, ["data", "check", str(tmp_path), "--workers", "1"])
    assert result.exit_code == 1, result.output
    assert "left out: special files 1" in result.output
    assert str(Path("cat/round.png")) in result.output


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "pictures"], ["'pictures' is a folder without recipe.yaml", "--data pictures"]),
        (["train", "digit_tiny"], ["perhaps digits_tiny", "names: "]),
        (["evaluate", "study"], ["study: is a study", "study/trials/0000"]),
        (["predict", "study", "pictures/x.png"], ["study: is a study", "study/trials/0000"]),
    ],
)
def test_a_newcomer_is_told_what_was_meant(args, words, tmp_path, alone):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "study").mkdir()
    (tmp_path / "study/study.json").write_text("{}")
    ended = alone(tmp_path, *args)
    assert (ended.code, ended.torch, len(ended.err.splitlines())) == (2, False, 1), ended
    assert all(word in ended.err for word in words), ended.err


@pytest.mark.filterwarnings("ignore:fewer than 5 validation images")
def test_classes_of_other_names_are_told_where_a_head_goes_on(cli, bundle, tmp_path):
    spanish = {"hormiga": (40, 200, 40), "gato": (200, 40, 40), "perro": (40, 40, 200)}
    photos(tmp_path / "spanish", spanish, count=3)
    small = ["--set", "train.epochs=0", "--set", "train.warmup_epochs=0", "--set", "train.batch_size=2"]
    told = "the network's outputs were ant, cat, dog, and are now to be gato, hormiga, perro"
    other = cli("train", bundle, "--from", bundle, "--data", tmp_path / "spanish", "--out", tmp_path / "a", *small)
    assert told in " ".join((other.assert_fine().out + other.err).split())
    same = cli("train", bundle, "--from", bundle, "--out", tmp_path / "b", *small).assert_fine()
    assert "outputs were" not in same.out + same.err
