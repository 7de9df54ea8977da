"""`routespace bench`: what it takes, what it prints, and what it refuses."""

import json

import pytest
from tiny_grid import TINY_GRID

from routespace import Architecture, GridSpec, RoutingGrid, TaskNet, save_bundle
from routespace.cli.bench import load
from routespace.deploy.bundle import Card
from routespace.nn.heads.detect import DetectHead

QUICK = ("--rounds", 1, "--no-compile")


@pytest.fixture
def grid_file(tmp_path):
    """A file with the bare fields of a tiny grid."""
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY_GRID))
    return file


def test_a_grid_in_each_mode(cli, grid_file):
    out = " ".join(cli("bench", grid_file, *QUICK, "--batch", 2, "--keep", "0.5").assert_fine().out.split())
    assert ", 1 thread, batch 2, float32" in out
    assert "fastest with everything computed: eager" in out
    assert "fastest at 0.5 of the tokens: " in out
    told = cli("bench", grid_file, *QUICK, "--keep", "1,0.5", "--image-size", "64x96", "--json").assert_fine().out
    data = json.loads(told)
    assert (data["batch"], data["threads"], data["image_size"], data["clock"]) == (1, 1, [64, 96], "wall")
    assert data["best"] == "eager"
    for keep, part in zip((1.0, 0.5), data["routed"], strict=True):
        assert part["keep"] == keep
        assert list(part["ms"]) == ["masked", "packed", "auto"]
        assert part["best"] == min(part["ms"], key=part["ms"].get)
        assert part["ratio"] == pytest.approx(part["ms"][part["best"]] / data["dense_ms"]["eager"])


def test_a_recipe_and_a_static_bundle(cli, tmp_path):
    data = json.loads(cli("bench", "digits_tiny", *QUICK, "--clock", "cpu", "--keep", "0.5", "--json").out)
    assert len(data["routed"]) == 1
    net = TaskNet.classifier(Architecture.staircase(RoutingGrid(GridSpec.parse(TINY_GRID))))
    save_bundle(net, tmp_path / "bundle", Card.of(net))
    out = cli("bench", tmp_path / "bundle", *QUICK).assert_fine().out
    assert "fastest with everything computed: eager" in out
    assert "of the tokens" not in out
    cli("bench", tmp_path / "bundle", *QUICK, "--keep", "0.5").assert_refused("keep", "static")
    cli("bench", "swin_v2_t", "--rounds", 1, "--compile").assert_refused("compile", "swin_v2")
    cli("evaluate", tmp_path / "bundle", "--recipe", "digits_tiny", "--speed").assert_refused("speed", "static")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--keep", "half"), "keep"),
        (("--keep", "0"), "keep"),
        (("--batch", 0), "batch"),
        (("--rounds", 0), "rounds"),
        (("--threads", 0), "threads"),
        (("--threads", 9999), "threads"),
        (("--dtype", "int8"), "dtype"),
        (("--clock", "sun"), "clock"),
        (("--image-size", "big"), "image_size"),
        (("--device", "tpu"), "device"),
    ],
)
def test_bad_options(cli, grid_file, options, named):
    cli("bench", grid_file, "--no-compile", *options).assert_refused(named)


def test_bad_sources(cli, tmp_path):
    cli("bench", "nosuch").assert_refused("nosuch", "preset")
    cli("bench", "nosuch.yaml").assert_refused("nosuch.yaml")
    cli("bench", tmp_path).assert_refused(str(tmp_path))


def test_a_recipe_is_timed_with_the_head_of_its_task():
    assert isinstance(load("digits_detect", "cpu").head, DetectHead)
