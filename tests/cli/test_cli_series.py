"""`routespace extract` with several budgets: a bundle for each, one table, and what is refused."""

import json
from pathlib import Path

import pytest
from train_tiny import tiny

from routespace import extract_series, load_bundle, train_recipe
from routespace.errors import SpecError
from routespace.train.stopping import TrainingStoppedError
from routespace.workflow import taking


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run of a plain network of three blocks on images of 32 px."""
    run = tmp_path_factory.mktemp("series") / "run"
    train_recipe(tiny(grid__layers=3, train__epochs=1, routing="static"), run)
    return run


def test_several_budgets_give_a_bundle_each_and_a_table(cli, run, tmp_path):
    out = tmp_path / "all"
    wishes = ("--finetune", 1, "--teacher", "none", "--image-size", "24,32", "-o", out)
    text = cli("extract", run, "--ratio", ".6, 1.2", *wishes).assert_fine().out  # .6 would be a hidden folder
    table = json.loads((out / "series.json").read_text())["networks"]
    assert [row["name"] for row in table] == ["1.2", "0.6"]
    assert [row["epochs"] for row in table] == [0, 1]  # the first is the network itself
    assert sorted(path.name for path in out.iterdir()) == ["0.6", "1.2", "series.json"]
    head, first, second = (
        line.split() for line in text.splitlines() if line.startswith(("network ", "1.2 ", "0.6 "))
    )
    assert (head[0], first[0], second[0]) == ("network", "1.2", "0.6")
    assert load_bundle(out / "0.6").card.params == table[1]["params"]
    assert "on validation at " in text
    assert f"routespace predict {out / '1.2'} IMAGE_OR_FOLDER" in text
    cli("evaluate", out).assert_refused("is a series of networks", str(out / "0.6"))
    cli("predict", out, tmp_path).assert_refused("is a series of networks")
    cli("extract", run, "--macs", "2M,1M", "-o", out).assert_refused("holds a series already", "--overwrite")
    cli("extract", run, "-o", out).assert_refused("exists and is no bundle")


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (["--ratio", "0.5,0.5"], ["ratio", "0.5 twice"]),
        (["--ratio", "0.5,half"], ["ratio: 'half'", "above 0"]),
        (["--ratio", "0.5,0"], ["ratio: '0'", "above 0"]),
        (["--macs", "2M,"], ["macs", "''"]),
        (["--macs", "2M,2000K"], ["macs", "2000K twice"]),
        (["--macs", "2M,1M", "--ratio", "0.5"], ["--macs and --ratio"]),
        (["--macs", "2M,1M", "--limit", "macs=2M"], ["macs", "twice"]),
        (["--macs", "2M,1K"], ["macs", "least possible"]),
        (["--macs", "2M,1K", "--finetune", "1"], ["macs", "least possible"]),
        (["--ratio", "1.2,0.5", "--method", "threshold"], ["threshold"]),
        (["--ratio", "1.2,0.5", "--teacher", "none"], ["--finetune"]),
    ],
)
def test_what_makes_no_series_is_refused_before_anything_is_written(cli, run, tmp_path, wish, words):
    cli("extract", run, *wish, "-o", tmp_path / "all").assert_refused(*words)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(cli, run, tmp_path, monkeypatch):
    def stopped(*args, **options):
        raise TrainingStoppedError("a signal came")

    monkeypatch.setattr(taking, "fine_tune", stopped)
    ended = cli("extract", run, "--ratio", "1.2,0.5", "--finetune", 1, "--no-evaluate", "-o", tmp_path / "all")
    assert ended.code != 0
    assert list(tmp_path.iterdir()) == []


def test_no_bundle_of_a_series_is_hidden(run, tmp_path):
    with pytest.raises(SpecError, match=r"'\.6' is no name of a folder that is seen"):
        extract_series(run, tmp_path / "all", macs={".6": 1e6, "1": 2e6})
