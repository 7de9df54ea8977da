"""search, export, profile, help, start-up and the errors that any command may meet."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from tiny_grid import TINY_GRID
from typer.testing import CliRunner

import routespace
from routespace import RoutingGrid, TaskNet, load_recipe, save_bundle
from routespace.cli.app import app, one_line, telling_once, told
from routespace.cli.watch import clock, epoch_line, watching
from routespace.deploy.bundle import Card
from routespace.deploy.latency.profiling import profile
from routespace.deploy.latency.table import save_table
from routespace.errors import RoutespaceWarning
from routespace.train.data.digits import DigitsDataset
from routespace.train.progress import Progress

COMMANDS = [command.name for command in app.registered_commands]
OVERRIDES = "{train.epochs: 1, data.train_size: 64, train.batch_size: 32, train.warmup_epochs: 0}"
FEW = {"data.train_size": 64, "data.val_size": 32, "data.workers": 1, "train.batch_size": 32}
SEARCH = [
    *("search", "digits_tiny", "--trials", "2", "--seed", "1"),
    *("--set", "data.val_size=32", "--set", f"search.overrides={OVERRIDES}"),
    *("--set", "search.space={budget.ratio: [0.5, 0.9]}"),
    *("--set", "grid.layers=2", "--set", "grid.embed_layers=all"),
]


@pytest.fixture
def grid_file(tmp_path) -> Path:
    """A file with the bare fields of a tiny grid."""
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY_GRID))
    return file


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A study of two short trials."""
    out = tmp_path_factory.mktemp("search") / "study"
    args = [*SEARCH, "--out", str(out)]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "Pareto front" in result.output
    return out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(cli, command):
    out = cli(command, "--help").assert_fine().out
    assert f"Example:  routespace {command}" in out
    assert "Usage" in out


def test_help_imports_nothing_heavy():
    code = """
import sys
import warnings
from routespace.cli.app import app
try:
    app(["build", "--help"])
except SystemExit:
    pass
print([name for name in ("torch", "timm", "optuna", "matplotlib", "networkx", "numpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_commands_without_networks_import_no_torch():
    code = """
import sys
import warnings
from routespace.cli.app import app
for words in ["build", "--preset", "dit_b2"], ["cost", "dit_b2"], ["recipes"]:
    try:
        app(words)
    except SystemExit as end:
        assert not end.code
print([name for name in ("torch", "timm", "optuna", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_module_and_version():
    command = [sys.executable, "-m", "routespace.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"routespace {routespace.__version__}"


def test_unknown_command(cli):
    cli("bild").assert_refused("bild", "build")


def test_errors_end_a_real_process_with_2():
    command = [sys.executable, "-m", "routespace.cli", "build", "--layers", "4", "--max-down", "24"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: max_down: 24")


def test_a_warning_is_told_once(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = telling_once()
        for word in ("some\nare left out", "some\nare left out", "others"):
            with warnings.catch_warnings():  # makes Python forget what it has told
                pass
            warnings.warn(word, RoutespaceWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: some are left out\nwarning: others\n"


def test_a_reader_that_leaves_is_no_error():
    command = f"{sys.executable} -m routespace build --preset dit_b0 | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("1/4 ")
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(28, "No space left on device", "/x/y"), "/x/y: no space left on device"),
        (
            OSError("Caught in worker:\nOriginal Traceback\n  cannot identify image 'a.png'"),
            "cannot identify image",
        ),
        (MemoryError(), "not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee"), "not enough memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. \nSee"), "data.workers"),
        (routespace.SpecError("field: wrong\n  in two lines"), "field: wrong in two lines"),
    ],
)
def test_any_error_is_one_line(error, text):
    line = one_line(error)
    assert text in line
    assert "\n" not in line


def test_memory_that_torch_does_not_get_is_bad_input_and_any_other_error_of_its_a_bug():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15, dtype=torch.uint8)
    assert told(caught.value).exit_code == 2
    assert told(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_a_loader_process_that_is_lost_is_told_in_one_line(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(DigitsDataset, "__getitems__", lambda *_: os._exit(1))
    small = [word for name, value in FEW.items() for word in ("--set", f"{name}={value}")]
    train = ("train", "digits_tiny", *small, "-o", tmp_path / "run")
    cli(*train).assert_refused("data.workers")


def test_search_is_resumed(cli, study):
    assert "2 finished" in cli(*SEARCH, "--out", study).assert_fine().out
    assert (study / "front.png").stat().st_size > 1000


def test_extract_from_a_study(cli, study, tmp_path):
    cli("extract", study, "-o", tmp_path / "no").assert_refused("--trial")
    cli("extract", study, "--trial", 7, "-o", tmp_path / "no").assert_refused("7", "0 to 1")
    out = cli("extract", study, "--trial", 0, "--ratio", "0.9", "--no-evaluate", "-o", tmp_path / "small")
    assert "verified" in out.assert_fine().out
    cli("extract", tmp_path, "--trial", 0, "-o", tmp_path / "no").assert_refused("study")


def test_search_of_what_cannot_be_searched(cli, tmp_path):
    cli("search", "dit_b2_imagenet", "--out", tmp_path / "s").assert_refused("search.space")
    cli("search", "digits_tiny", "--trials", 0, "--out", tmp_path / "s").assert_refused("trials")
    space = "search.space={train.speed: [1, 2]}"
    cli("search", "digits_tiny", "--set", space, "--out", tmp_path / "s").assert_refused("train.speed")
    (tmp_path / "file").write_text("")
    cli("search", "digits_tiny", "--out", tmp_path / "file").assert_refused("file")


def test_search_under_a_latency_limit(cli, tmp_path):
    grid = RoutingGrid(routespace.GridSpec.parse(TINY_GRID))
    recipe = {"name": "tiny", "grid": TINY_GRID, "data": {"digit_px": [8, 24]}}
    recipe["search"] = {"space": {"budget.ratio": [0.5, 0.9]}, "limits": {"latency_ms": 1e-6}}
    (tmp_path / "tiny.yaml").write_text(json.dumps(recipe))  # YAML takes JSON
    search = ("search", tmp_path / "tiny.yaml", "--trials", 2, "--out", tmp_path / "s")
    cli(*search).assert_refused("search.limits.latency_ms", "profile", "--latency")
    table = tmp_path / "table.json"
    save_table(profile(grid, gates=routespace.GateSpec(), rounds=3, subnets=0, clock="cpu"), table)
    cli(*search, "--latency", table, "--set", "search.limits.latency_ms=no").assert_refused("latency_ms", "no")
    out = cli(*search, "--latency", table).assert_fine().out
    assert "latency_ms: " in out
    assert "is above the limit 1e-06" in out
    assert "2 pruned" in out
    assert "no front: no trial keeps the limits" in " ".join(out.split())


def test_bad_exports(cli, tmp_path):
    grid = RoutingGrid(routespace.GridSpec.parse(TINY_GRID))
    net = TaskNet.classifier(routespace.Architecture.staircase(grid))
    save_bundle(net, tmp_path / "bundle", Card.of(net))
    cli("export", tmp_path / "bundle", "-o", tmp_path / "out", "--format", "tflite").assert_refused(
        "format", "onnx"
    )
    cli("export", tmp_path / "bundle", "-o", tmp_path / "bundle" / "card.json").assert_refused("card.json")
    assert not (tmp_path / "out").exists()
    cli("evaluate", tmp_path / "bundle").assert_refused("recipe.yaml", "--recipe")


def test_profile_gives_build_its_latencies(cli, grid_file, tmp_path):
    table = tmp_path / "table.json"
    out = cli("profile", grid_file, "--rounds", 3, "--subnets", 0, "-o", table).assert_fine().out
    assert "transformer" in out
    assert ", 1 thread, batch 1, float32" in " ".join(out.split())
    fields = {key: ",".join(map(str, v)) if isinstance(v, list) else v for key, v in TINY_GRID.items()}
    options = [part for key, value in fields.items() for part in (f"--{key.replace('_', '-')}", value)]
    data = json.loads(cli("build", *options, "--latency", table, "--json").assert_fine().out)
    times = data["latency_ms"]
    assert 0 < times["min"] <= times["staircase"] < times["full"]
    cli("build", *options, "--latency", table, "--ms", times["full"]).assert_fine()
    cli("build", *options, "--latency", table, "--ms", times["min"] / 2).assert_refused("ms", "fastest")
    cli("build", *options, "--ms", 3).assert_refused("ms", "--latency")
    cli("build", "--preset", "dit_b0", "--latency", table).assert_refused("grid")
    spoiled = json.loads(table.read_text())
    spoiled["parts"][0]["ms"] = -1
    table.write_text(json.dumps(spoiled))
    cli("build", *options, "--latency", table).assert_refused("ms")
    routed = ("--rounds", 3, "--subnets", 0, "--routed", "--keeps", "0.5", "-o", table)
    assert "column_gate" in cli("profile", grid_file, *routed).assert_fine().out
    assert json.loads(table.read_text())["gates"]["rows"] == "token"
    cli("profile", grid_file, "--routed", "--keeps", "half", "-o", table).assert_refused("keeps", "half")
    cli("profile", grid_file, "--dtype", "int8", "-o", table).assert_refused("dtype", "float32")
    cli("profile", grid_file, "--clock", "sun", "-o", table).assert_refused("clock", "wall")


def test_watching_prints_one_line_an_epoch(capsys):
    record = {
        "epoch": 1,
        "loss": 1.5,
        "accuracy": 0.5,
        "train_accuracy": 0.25,
        "counted_ratio": 0.7,
        "expected_ratio": 0.7049,
        "target_ratio": 0.6,
        "images_per_s": 100.0,
    }
    with watching("net: ") as report:
        for step in range(3):
            report(Progress(stage="train", epoch=1, epochs=2, step=step, steps=3))
        for step in range(3):
            report(Progress(stage="train", epoch=2, epochs=2, step=step, steps=3, eta_s=65, metrics=record))
    (line,) = capsys.readouterr().out.splitlines()
    news = Progress(stage="train", epoch=2, epochs=2, eta_s=65, metrics=record)
    assert line == "net: " + epoch_line(news)
    assert "accuracy 50.0 %" in line
    assert "MACs 0.700× (expected 0.705×, target 0.600×)" in line
    del record["expected_ratio"]
    assert "MACs 0.700× (target 0.600×)" in epoch_line(news)
    assert clock(65) == "1:05"


@pytest.mark.slow
def test_quick_demo_looks_for_the_best_plain_network(cli, tmp_path):
    out = cli("demo", "--quick", "--best-plain", "--out", tmp_path / "demo").assert_fine().out
    assert "1 + 1 + 1 + 1 blocks, 96x96 px: " in out
    assert "0 + 1 + 1 + 1 blocks, 128x128 px: " in out
    assert ", chosen" in out
    rows = {row["name"]: row for row in json.loads((tmp_path / "demo" / "demo.json").read_text())["rows"]}
    budget = load_recipe(tmp_path / "demo" / "supernet").budget_macs()  # which so short a training may miss
    assert rows["plain PVTv2"]["macs"] == pytest.approx(budget, rel=0.1)


@pytest.mark.slow
def test_quick_demo(cli, tmp_path):
    out = cli("demo", "--quick", "--out", tmp_path / "demo").assert_fine().out
    for name in ("supernet, routed", "extracted, fine-tuned", "plain PVTv2", "plain PVTv2, fine-tuned"):
        assert name in out
    made = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {"grid.json", "supernet", "search", "extracted", "finetuned", "plain", "demo.json"} <= made
    assert {"supernet.png", "extracted.png", "front.png", "model.onnx"} <= made
    rows = {row["name"]: row for row in json.loads((tmp_path / "demo" / "demo.json").read_text())["rows"]}
    budget = load_recipe(tmp_path / "demo" / "supernet").budget_macs()  # which so short a training may miss
    assert rows["plain PVTv2"]["macs"] == pytest.approx(budget, rel=0.1)
    plain, routed = (load_recipe(tmp_path / "demo" / name).train for name in ("plain", "supernet"))
    assert [phase.model_dump() | {"gates": None} for phase in plain.phases] == [
        phase.model_dump() | {"gates": None} for phase in routed.phases
    ]
    assert (plain.seconds, plain.epochs, plain.clock) == (routed.seconds, routed.epochs, routed.clock)
    ours, theirs = (load_recipe(tmp_path / "demo" / name).train for name in ("finetuned", "plain_finetuned"))
    assert ours.phases == theirs.phases
    assert (ours.seconds, ours.epochs, ours.lr) == (theirs.seconds, theirs.epochs, theirs.lr)
    again = cli("demo", "--quick", "--out", tmp_path / "demo").assert_fine().out
    assert "plain PVTv2" in again
