"""`routespace extract --image-size`: from a run to a bundle of another size, and sizes that cannot be."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from routespace import load_bundle, load_run
from routespace.cli.app import app
from routespace.cli.extract_steps import ShownExtraction
from routespace.train.tasks.kinds import ClassifySpec
from routespace.workflow.sizing import SizeChoice, TriedSize

TINY = [
    *("--set", "data.train_size=32", "--set", "data.val_size=32", "--set", "data.test_size=32"),
    *("--set", "train.batch_size=32", "--set", "train.warmup_epochs=0", "--set", "grid.layers=2"),
    *("--set", "grid.embed_layers=all", "--set", "train.epochs=1"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a finished run of a supernet on images of 64 px, `run`."""
    place = tmp_path_factory.mktemp("sizes")
    result = CliRunner().invoke(app, ["train", "digits_tiny", *TINY, "--out", str(place / "run")])
    assert result.exit_code == 0, (result.output, result.exception)
    return place


def test_extract_at_a_smaller_image_size(cli, place, tmp_path):
    small = tmp_path / "small"
    limit = ("--ratio", 0.5, "--image-size", "32,48x48,64", "-o", small)
    text = cli("extract", place / "run", *limit).assert_fine().out
    card = json.loads((small / "card.json").read_text())
    base = json.loads((place / "run" / "result.json").read_text())["base_macs"]
    assert card["costs"]["macs"] <= round(0.5 * base)  # of the run's own images
    size = load_bundle(small).net.spec.image_size
    assert text.count(" on validation at ") == 3
    assert f"{size[0]}x{size[1]} px: " in text
    assert text.count(", chosen") == 1
    assert [score["image_size"] for score in card["scores"]] == [[64, 64], list(size)]
    text = cli("extract", place / "run", "--image-size", 48, "-o", tmp_path / "one").assert_fine().out
    assert "48x48 px; the whole was trained on 64x64 px" in text
    assert "of 32 validation images of 48x48 px; whole of 64x64 px" in text
    text = cli("verify", tmp_path / "one", "--against", place / "run").assert_fine().out
    assert "48x48 px, to which the other network was moved from 64x64 px" in text
    report = json.loads(cli("evaluate", tmp_path / "one", "--json").assert_fine().out)
    assert report["macs"] == load_bundle(tmp_path / "one").card.macs
    onnx = cli("export", tmp_path / "one", "-o", tmp_path / "out", "--format", "pt2").assert_fine().out
    assert "model.pt2" in onnx
    assert json.loads((tmp_path / "out" / "preprocess.json").read_text())["size"] == [48, 48]


def test_of_each_size_is_told_what_it_can_do_before_and_after_its_first_epochs(place, capsys):
    tried = (
        TriedSize((32, 32), 1_000_000, 0.6, epochs=1, tuned=0.7),
        TriedSize((48, 48), 900_000, 0.5),
        TriedSize((64, 64), 2_000_000, 0.4, epochs=2, tuned=0.8),
        TriedSize((96, 96), why_not="too much"),
    )
    ShownExtraction(ClassifySpec.metric).sized(SizeChoice(load_run(place / "run"), tried=tried))
    assert capsys.readouterr().out.splitlines() == [
        "32x32 px: 60.0 % on validation at 1 M, 70.0 % after 1 epoch",
        "48x48 px: 50.0 % on validation at 0.9 M",
        "64x64 px: 40.0 % on validation at 2 M, 80.0 % after 2 epochs, chosen",
        "96x96 px: nothing fits (too much)",
        "",
    ]


def test_image_sizes_that_cannot_be(cli, place, tmp_path):
    out = ("-o", tmp_path / "no")
    for size, *words in (
        ("big", "image_size: 'big' is not allowed", "HxW"),
        ("96,", "image_size: '' is not allowed"),
        ("-5", "image_size: '-5' is not allowed"),
        ("8", "image_size: 8x8 px is too small for this grid", "at least 32 px"),
        ("48,8", "image_size: 8x8 px is too small for this grid"),
        ("99999", "image_size: (99999, 99999) is not allowed", "16384"),
    ):
        cli("extract", place / "run", f"--image-size={size}", *out).assert_refused(*words)
    impossible = ("--macs", "1K", "--image-size")
    cli("extract", place / "run", *impossible, 48, *out).assert_refused("macs", "least possible")
    cli("extract", place / "run", *impossible, "48,32", *out).assert_refused(
        "image_size: nothing fits at any of 2 sizes; at 32x32 px: macs"
    )
    table = tmp_path / "table.json"
    cli("profile", place / "run", "--rounds", 3, "--subnets", 0, "--keeps", "1", "-o", table).assert_fine()
    for sizes in ("48", "64,48"):
        limits = ("--ms", 1000, "--latency", table, "--image-size", sizes)
        cli("extract", place / "run", *limits, *out).assert_refused("measured on images of 64x64 px, not of 48x48")
    limits = ("--ms", 1000, "--latency", table, "--image-size", "64", "--no-evaluate")
    cli("extract", place / "run", *limits, "-o", tmp_path / "same").assert_fine()
    assert not (tmp_path / "no").exists()
