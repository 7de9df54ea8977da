"""The commands after one another on a tiny run, from train to fine-tuned bundle; and bad input."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from routespace import Architecture, RoutingGrid, TaskNet, file_names, load_bundle, load_recipe, save_bundle
from routespace.cli.app import app
from routespace.deploy.bundle import Card

TINY = [
    *("--set", "data.train_size=96", "--set", "data.val_size=32", "--set", "data.test_size=50"),
    *("--set", "train.batch_size=32", "--set", "train.warmup_epochs=0", "--set", "grid.layers=2"),
    *("--set", "grid.embed_layers=all"),
]
ONE_EPOCH = [*TINY, "--set", "train.epochs=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a finished run of a supernet, `run`, and what was extracted from it, `small`."""
    place = tmp_path_factory.mktemp("journey")
    for args in (
        ["train", "digits_tiny", *ONE_EPOCH, "--out", place / "run"],
        ["extract", place / "run", "--ratio", "0.6", "-o", place / "small"],
    ):
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        assert result.exit_code == 0, (result.output, result.exception)
    return place


def test_a_finished_run_tells_its_numbers(place):
    result = json.loads((place / "run" / "result.json").read_text())
    assert {"accuracy", "counted_macs", "expected_macs", "params"} <= set(result)
    assert (place / "run" / "net" / "network.json").exists()


def test_a_training_is_given_seconds_in_place_of_epochs(cli, tmp_path):
    out = cli("train", "digits_tiny", *TINY, "--set", "train.seconds=0.001", "--out", tmp_path / "run")
    text = out.assert_fine().out  # one step of three, and no time for more
    assert "epoch 1  " in text
    assert "epochs: 0.33" in text
    told = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (told["steps"], told["epochs"]) == (1, 0.33)
    shown = cli("recipes", "show", tmp_path / "run").assert_fine().out
    assert "seconds: 0.001" in shown
    short = ("--set", "train.seconds=0", "--out", tmp_path / "no")
    cli("train", "digits_tiny", *short).assert_refused("train.seconds", "greater than 0")


def test_extract_under_a_latency_limit(cli, place, tmp_path):
    table = tmp_path / "table.json"
    out = cli("profile", place / "run", "--rounds", 3, "--subnets", 0, "-o", table).assert_fine().out
    assert "row_gate" in out  # a run with gates brings them, and its edges at several shares of tokens
    assert "as it was used" in out
    assert {part["keep"] for part in json.loads(table.read_text())["parts"]} == {0.1, 0.25, 0.5, 0.75, 1.0}
    limit = ("--ms", 1000, "--latency", table)
    text = cli("extract", place / "run", *limit, "-o", tmp_path / "small").assert_fine().out
    assert "predicted (limit 1000 ms)" in text
    impossible = ("--ms", 1e-6, "--latency", table)
    cli("extract", place / "run", *impossible, "-o", tmp_path / "no").assert_refused("latency_ms", "least")
    cli("extract", place / "run", "--ms", 3, "-o", tmp_path / "no").assert_refused("--latency")
    assert not (tmp_path / "no").exists()


def test_extract_under_limits_on_other_resources(cli, place, tmp_path):
    whole = json.loads(cli("cost", place / "run", "--json").assert_fine().out)
    most = {"params": 0.6 * whole["params"], "bytes": 0.7 * whole["bytes"]}
    limits = [word for name, amount in most.items() for word in ("--limit", f"{name}={amount}")]
    text = cli("extract", place / "run", *limits, "--no-evaluate", "-o", tmp_path / "small").assert_fine().out
    card = load_bundle(tmp_path / "small").card
    assert all(card.costs[name] <= amount for name, amount in most.items())
    assert text.count("(limit ") == 2
    assert "moved" in text


def test_evaluate_uses_the_test_split(cli, place):
    picture = place / "tokens.png"
    report = json.loads(cli("evaluate", place / "run", "--picture", picture, "--json").assert_fine().out)
    assert picture.stat().st_size > 10_000
    assert all(0 <= area <= 1 for area in report["object_auc"].values())
    cli("evaluate", place / "run", "--picture", "tokens.jpg").assert_refused("tokens.jpg", ".png")
    cli("evaluate", place / "small", "--picture", "tokens.png").assert_refused("picture", "static")
    assert (report["split"], report["images"]) == ("test", 50)
    assert report["counted_macs"] <= report["macs"]
    assert report["speed"]["counted_speedup"] == pytest.approx(report["macs"] / report["counted_macs"])
    text = cli("evaluate", place / "run", "--split", "val", "--no-speed").assert_fine().out
    assert "32 val images" in text
    assert "gates find objects" in text
    assert "a coin has 0.50" in text
    assert "expected" in text


def test_extracted_network_is_within_the_limit_and_verified(cli, place):
    base = json.loads((place / "run" / "result.json").read_text())["base_macs"]
    net, card = load_bundle(place / "small")
    assert card.static
    assert card.macs <= round(0.6 * base)
    assert card.params == sum(parameter.numel() for parameter in net.parameters())
    out = cli("verify", place / "small", "--against", place / "run").assert_fine().out
    assert "the same network" in out
    report = json.loads(cli("evaluate", place / "small", "--json").assert_fine().out)
    assert report["macs"] == report["counted_macs"] == card.macs
    assert "speed" not in report


def test_the_routed_network_is_taken_home(cli, place, tmp_path):
    result = json.loads((place / "run" / "result.json").read_text())
    text = cli("extract", place / "run", "--routed", "-o", tmp_path / "same").assert_fine().out
    assert "with everything computed\n" in text
    card = load_bundle(tmp_path / "same").card
    assert card.counted_macs == pytest.approx(result["counted_macs"])
    assert card.scores[-1].value == pytest.approx(result["accuracy"])
    assert [score.stage for score in card.scores] == ["trained"]
    most = round(0.9 * card.counted_macs)
    text = cli("extract", place / "run", "--routed", "--macs", most, "-o", tmp_path / "less").assert_fine().out
    assert "(limit " in text
    assert f"gates          threshold {load_bundle(tmp_path / 'less').net.gate_spec.threshold:.4g}; " in text
    assert f"train {tmp_path / 'less'} --from {tmp_path / 'less'}" in text
    assert 0.9 * most <= load_bundle(tmp_path / "less").card.counted_macs <= most
    out = cli("verify", tmp_path / "less", "--against", place / "run").assert_fine().out
    assert "packed       difference" in out
    assert "in the network that it came from" in out
    report = json.loads(cli("evaluate", tmp_path / "less", "--split", "val", "--json").assert_fine().out)
    assert report["counted_macs"] == load_bundle(tmp_path / "less").card.counted_macs
    assert "speed" in report
    cost = json.loads(cli("cost", tmp_path / "less", "--json").assert_fine().out)
    assert cost["measured"]["macs"] == pytest.approx(report["counted_macs"])
    static = "--routed", "-o", tmp_path / "no"
    cli("extract", place / "small", *static).assert_refused("has no gates, it is a static network")
    assert not (tmp_path / "no").exists()


def test_cost_of_run_and_bundle(cli, place):
    small = json.loads(cli("cost", place / "small", "--json").assert_fine().out)
    assert small["macs"] == load_bundle(place / "small").card.macs
    whole = json.loads(cli("cost", place / "run", "--json").assert_fine().out)
    result = json.loads((place / "run" / "result.json").read_text())
    assert whole["params"] == result["params"]
    assert whole["measured"]["macs"] == pytest.approx(result["counted_macs"])
    used = json.loads(
        cli("cost", place / "run", "--usage", place / "run" / "usage.json", "--json").assert_fine().out
    )
    assert used["macs"] == pytest.approx(result["counted_macs"])


def test_fine_tuned_bundle_is_another_network(cli, place, tmp_path):
    cli(
        "train", "digits_tiny", *ONE_EPOCH, "--from", place / "small", "--out", tmp_path / "tuned", "--seed", 3
    ).assert_fine()
    cli("extract", tmp_path / "tuned", "-o", tmp_path / "again").assert_fine()
    again, before = load_bundle(tmp_path / "again"), load_bundle(place / "small")
    assert again.net.architecture == before.net.architecture
    assert [score.stage for score in again.card.scores] == ["before_extraction", "extracted", "fine_tuned"]
    assert again.card.scores[:2] == before.card.scores
    result = cli("verify", tmp_path / "again", "--against", place / "run")
    assert result.code == 1
    assert "NOT the same network" in result.out


def test_impossible_limit_names_the_least(cli, place, tmp_path):
    cli("extract", place / "run", "--macs", "1K", "-o", tmp_path / "no").assert_refused("macs", "least possible")
    assert not (tmp_path / "no").exists()
    cli("train", "digits_tiny", *TINY, "--set", "budget.macs=1K", "--out", tmp_path / "run").assert_refused(
        "budget.macs", "impossible"
    )
    assert not (tmp_path / "run").exists()


def test_options_that_exclude_each_other(cli, place, tmp_path):
    cli("extract", place / "run", "--macs", "2M", "--ratio", ".5", "-o", tmp_path / "no").assert_refused("--ratio")
    cli("extract", place / "run", "--ratio", "-1", "-o", tmp_path / "no").assert_refused("ratio")
    cli("extract", place / "run", "--method", "magic", "-o", tmp_path / "no").assert_refused("method", "milp")
    cli("evaluate", place / "run", "--split", "train").assert_refused("split", "test")


def test_bundles_that_are_not_whole(cli, place, tmp_path):
    for name in ("model.safetensors", "network.json", file_names.CARD):
        broken = tmp_path / f"broken-{name}"
        shutil.copytree(place / "small", broken)
        file = broken / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        for command in (["verify", broken, "--against", place / "run"], ["evaluate", broken]):
            cli(*command).assert_refused(name)
    cli("evaluate", tmp_path / "none").assert_refused("does not exist")


def test_bundle_of_another_grid(cli, place, tmp_path):
    grid = RoutingGrid(load_recipe("digits_tiny").grid)
    net = TaskNet.classifier(Architecture.staircase(grid))
    save_bundle(net, tmp_path / "other", Card.of(net))
    cli("verify", tmp_path / "other", "--against", place / "run").assert_refused("architecture")


def test_unfinished_run(cli, place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "net")
    (tmp_path / "half" / "result.json").unlink()
    cli("evaluate", tmp_path / "half").assert_refused("not finished", "--resume")


def test_outputs_that_cannot_be_written(cli, place, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for command in (
        ["build", "--preset", "dit_b0", "-o", file / "grid.json"],
        ["extract", place / "run", "-o", file],
        ["extract", place / "run", "-o", file / "small"],
        ["train", "digits_tiny", *ONE_EPOCH, "--out", file],
        ["train", "digits_tiny", *ONE_EPOCH, "--out", file / "run"],
        ["build", "--preset", "dit_b0", "-o", "/proc/grid.json"],
        ["extract", place / "run", "-o", "/proc/small"],
    ):
        cli(*command).assert_refused()
    assert file.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_full_disk(cli, tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    cli("build", "--preset", "dit_b0", "-o", tmp_path / "grid.json").assert_refused("grid.json", "No space left")
    assert list(tmp_path.iterdir()) == []


def test_existing_run_is_not_overwritten(cli, place):
    before = (place / "run" / "result.json").read_text()
    cli("train", "digits_tiny", *ONE_EPOCH, "--out", place / "run").assert_refused("finished run")
    assert (place / "run" / "result.json").read_text() == before
    cli("extract", place / "run", "-o", place / "small").assert_refused("small")


def test_corrupt_image_is_named(cli, pictures, tmp_path):
    args = ["train", "digits_tiny", "--data", pictures, "--set", "grid.num_classes=2"]
    args += ["--set", "train.batch_size=8", "--set", "train.warmup_epochs=0", "--set", "train.epochs=1"]
    cli(*args, "--set", "data.val_fraction=0.2", "--out", tmp_path / "run").assert_refused("03.png")
    cli(*args, "--data", tmp_path / "nowhere", "--out", tmp_path / "run2").assert_refused("nowhere")


def test_unknown_fields(cli, tmp_path):
    cli("train", "digits_tiny", "--set", "train.speed=9", "--out", tmp_path / "run").assert_refused("train.speed")
    cli("train", "digits_tiny", "--set", "train.epochs=many", "--out", tmp_path / "run").assert_refused(
        "train.epochs"
    )
    cli("train", "no_such_recipe", "--out", tmp_path / "run").assert_refused("no_such_recipe", "digits_tiny")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # test_train_run stops and goes on within one process
def test_interrupt_saves_and_resume_finishes(cli, tmp_path):
    """Ctrl-C in a real process: exit code 130, one line that says how to go on, and going on works."""
    out = tmp_path / "run"
    args = ["train", "digits_tiny", *TINY, "--set", "train.epochs=40", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "routespace.cli", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(1200):
        if (out / "metrics.jsonl").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    (line,) = err.strip().splitlines()
    assert f"routespace train {out} --resume" in line
    assert not (out / "result.json").exists()
    epochs = len((out / "metrics.jsonl").read_text().splitlines())
    assert 1 <= epochs < 40
    recipe = (out / "recipe.yaml").read_text()
    cli("train", out, "--resume", "--set", "train.epochs=41").assert_refused("another recipe")
    assert (out / "recipe.yaml").read_text() == recipe


def test_extract_and_fine_tune(cli, place, tmp_path):
    limit = ["extract", place / "run", "--ratio", "0.6"]
    text = cli(*limit, "--finetune", 1, "-o", tmp_path / "small").assert_fine().out
    assert f"teacher: {place / 'run'}" in text
    assert "fine-tuning" in text
    assert "after 1 epoch" in text
    card = json.loads((tmp_path / "small" / "card.json").read_text())
    assert [score["stage"] for score in card["scores"]] == ["before_extraction", "extracted", "fine_tuned"]
    still = ["--finetune", 1, "--lr-factor", 1e-9, "-o", tmp_path / "still"]  # which trains next to nothing
    cli(*limit, *still).assert_fine()
    scores = json.loads((tmp_path / "still" / "card.json").read_text())["scores"]
    assert scores[2]["value"] == scores[1]["value"]
    cli(*limit, "--teacher", place / "run", "-o", tmp_path / "no").assert_refused("--finetune")
    cli(*limit, "--finetune", 0, "-o", tmp_path / "no").assert_refused("finetune", "1 or more")
    cli(*limit, "--cut", 0.5, "-o", tmp_path / "no").assert_refused("cut", "--finetune")
    cli(*limit, "--lr-factor", 0.3, "-o", tmp_path / "no").assert_refused("lr-factor", "--finetune")
    slow = ["--finetune", 1, "--lr-factor", 0, "-o", tmp_path / "no"]
    cli(*limit, *slow).assert_refused("lr_factor: 0.0", "above 0")
    cli(*limit, "--finetune", 1, "--cut", 0, "-o", tmp_path / "no").assert_refused("cut: 0", "above 0")
    nosuch = tmp_path / "nosuch"
    cli(*limit, "--finetune", 1, "--teacher", nosuch, "-o", tmp_path / "no").assert_refused("nosuch", "not exist")
    assert not (tmp_path / "no").exists()


def test_extract_the_best_of_several_candidates(cli, place, tmp_path):
    limit = ["extract", place / "run", "--ratio", "0.6", "-o", tmp_path / "small"]
    text = cli(*limit, "--choose", "candidates").assert_fine().out
    assert "candidates on validation: " in text
    assert "best by origin: " in text
    assert "staircase" in text
    cli(*limit, "--overwrite", "--choose", "luck").assert_refused("choose", "usage", "candidates")


@pytest.mark.slow
def test_extract_in_steps(cli, place, tmp_path):
    steps = ["--finetune", 2, "--cut", 0.01, "--choose", "kl", "--teacher", "none", "-o", tmp_path / "small"]
    cli("extract", place / "run", "--ratio", "0.1", *steps).assert_refused("macs", "least possible")
    text = cli("extract", place / "run", "--ratio", "0.5", *steps).assert_fine().out
    assert "cut 1 of 2: " in text
    assert "epochs: 1" in text
    assert "after 1 epoch" in text
