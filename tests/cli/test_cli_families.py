"""Families on the command line: allowed by --family-module, never imported because a file names them."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest

from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.recipes import load_recipe

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
ZEN = "The Zen of Python"  # what importing `this` prints


def assert_refused(ended, *words: str) -> None:
    assert ended.code == 2, (ended.out, ended.err)
    assert ZEN not in ended.out + ended.err
    assert ended.err.startswith("error: ")
    assert len(ended.err.strip().splitlines()) == 1
    assert all(word in ended.err for word in words), ended.err


def files_that_name(family: str, folder: Path) -> dict[str, Path]:
    """A file of each kind that the command line reads and that holds a grid, with the family's name in it."""
    spec = GridSpec(layers=4, size="b0", image_size=64, num_classes=10)
    grid = RoutingGrid(spec)
    fields = spec.model_dump(mode="json", exclude_none=True)
    text = load_recipe("digits_tiny").to_yaml().replace("family: pvt_v2", f"family: '{family}'")
    assert family in text
    architecture = {"format": "routespace.architecture/1", "spec": fields | {"family": family}, "edges": {}}
    contents = {
        "grid.json": json.dumps(grid.to_json() | {"spec": fields | {"family": family}}),
        "fields.json": json.dumps(fields | {"family": family}),
        "architecture.json": json.dumps(architecture),
        "recipe.yaml": text,
        "run/recipe.yaml": text,
        "run/net/network.json": json.dumps({"format": "routespace.network/2", "architecture": architecture}),
        "bundle/network.json": json.dumps({"format": "routespace.network/2", "architecture": architecture}),
        "table.json": json.dumps({"format": "routespace.latency/1", "grid": spec.hash,
                                  "spec": fields | {"family": family}}),
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return {name: folder / name for name in contents}


def test_no_file_imports_what_it_names(tmp_path, cli):
    files = files_that_name("this:s", tmp_path)
    commands = [
        ("cost", files["grid.json"]),
        ("cost", files["fields.json"]),
        ("cost", files["architecture.json"]),
        ("cost", "pvt_v2_b0", "--architecture", files["architecture.json"]),
        ("cost", tmp_path / "run"),
        ("cost", tmp_path / "bundle"),
        ("build", "--layers", 4, "--size", "b0", "--latency", files["table.json"]),
        ("build", "--layers", 4, "--family", "this:s"),
        ("build", "--layers", 4, "--set", "family=this:s"),
        ("train", files["recipe.yaml"], "--out", tmp_path / "out"),
        ("train", "digits_tiny", "--set", "grid.family=this:s", "--out", tmp_path / "out"),
        ("recipes", "show", tmp_path / "run"),
        ("evaluate", tmp_path / "run"),
    ]
    for command in commands:
        cli(*command).assert_refused("--family-module")
        assert "this" not in sys.modules, command
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["cost", pytest.param("evaluate", marks=pytest.mark.slow)])
def test_no_file_imports_in_a_process_of_its_own(tmp_path, command, alone):
    files = files_that_name("this:s", tmp_path)
    of = files["grid.json"] if command == "cost" else tmp_path / "run"
    assert_refused(alone(tmp_path, command, of), "--family-module")


def test_a_family_module_is_allowed(tmp_path, alone):
    run, out = partial(alone, tmp_path, modules=EXAMPLES), tmp_path / "grid.json"
    made = ("build", "--layers", 4, "--family", "vit", "--image-size", 64, "--num-classes", 10, "-o", out)
    assert_refused(run(*made), "family: 'vit' is not known", "--family-module")
    ended = run(*made, "--family-module", "vit_family:VIT")
    assert ended.code == 0, ended.err
    assert json.loads(out.read_text())["spec"]["family"] == "vit"
    assert_refused(run("cost", out), "family: 'vit' is not known")
    ended = run("cost", out, "--json", "--family-module", "vit_family:VIT")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise SystemExit(0)", "SystemExit"),
        ("1 / 0", "ZeroDivisionError"),
        ("import nothing_of_that_name", "nothing_of_that_name"),
        ("VIT = 3", "is a int, not a Family"),
    ],
)
def test_a_module_that_fails_is_one_line(tmp_path, source, reason, alone):
    (tmp_path / "broken.py").write_text(source)
    ended = alone(tmp_path, "build", "--layers", 4, "--family-module", "broken:VIT", modules=tmp_path)
    assert_refused(ended, "family-module", "broken", reason)


def test_every_command_that_reads_has_the_option(cli):
    for command in (
        "build",
        "train",
        "evaluate",
        "search",
        "extract",
        "verify",
        "cost",
        "profile",
        "bench",
        "export",
    ):
        assert "--family-module" in cli(command, "--help").assert_fine().out


def test_families_parameters_are_options(cli):
    for family, option in (("swin_v2", "--window"), ("pvt_v2", "--sr-ratios")):
        assert option in cli("build", "--help").out
        assert f"({family})." in cli("build", "--help").out

    def digits(*options: object) -> str:
        result = cli("build", "--layers", 4, "--json", "--image-size", 256, *options).assert_fine()
        return json.loads(result.out)["hash"]

    swin = ("--family", "swin_v2")
    of_four = GridSpec(layers=4, family="swin_v2", window=4, image_size=256).hash
    assert digits(*swin, "--window", 4) == digits(*swin, "--set", "window=4") == of_four
    assert digits("--sr-ratios", "4,4,2,1") == GridSpec(layers=4, sr_ratios=(4, 4, 2, 1), image_size=256).hash
    cli("build", "--layers", 4, "--set", "wimdow=4").assert_refused("wimdow: unknown field", "window", "sr_ratios")
    cli("build", "--layers", 4, "--set", "window").assert_refused("set", "field=value")
