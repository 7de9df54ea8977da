"""benchmarks/evidence.py and ranking.py: every line runs small, and what is done is not done again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from routespace.nn.task_net import TaskNet
from routespace.recipes import load_recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run(script, *arguments):
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_rehearsal_of_the_evidence_runs_every_line_and_goes_on_where_it_was(tmp_path):
    from evidence_lines.lines import LINES

    first = run("evidence.py", "--rehearse", "--out", tmp_path)
    found = json.loads((tmp_path / "evidence_rehearsal.json").read_text())
    assert [row["line"] for row in found["rows"]] == list(LINES)
    base = found["rows"][0]["macs"]
    for row in found["rows"]:
        assert row["line"] in first
        assert 0 <= row["accuracy"] <= 1
        assert 0 <= row["test"] <= 1
        assert row["speed"] > 0
        assert row["macs"] <= (1.0 if row["line"] == "dense" else 0.8) * base
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    again = json.loads((tmp_path / "rehearsal" / "longer_0.6_0.json").read_text())["again"]
    assert len(trained) == 7 + again  # the best plain one is trained again where the routed one took longer
    table = run("evidence.py", "--rehearse", "--out", tmp_path).split("seeds\n")[1]
    assert table == first.split("seeds\n")[1]
    assert trained == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}


@pytest.mark.slow
def test_the_rehearsal_of_the_ranking(tmp_path):
    assert "Kendall's tau over 5 subnets" in run("ranking.py", "--rehearse", "--out", tmp_path)
    found = json.loads((tmp_path / "ranking_cpu.json").read_text())
    macs = [row["macs"] for row in found["rows"]]
    assert macs == sorted(macs)
    assert len(set(macs)) == 5


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_rivals_have_the_macs_and_smaller_images_shrink_with_all_that_is_on_them(ratio, tmp_path):
    from evidence_lines.arenas import digits
    from evidence_lines.lines import PLAIN, Setting, smaller_recipe

    setting = Setting(digits(), 0, ratio, tmp_path)
    assert setting.plain == setting.recipe.override(PLAIN)
    smaller = smaller_recipe(setting)
    assert smaller.base_macs() == pytest.approx(setting.macs, rel=0.15)
    side = smaller.grid.image_size[0]
    assert side < 96
    for phase, canvas, largest in ((0, 64, 56), (1, 96, 44)):
        own = smaller.phase(phase)
        assert own.grid.image_size[0] / canvas == pytest.approx(side / 96, rel=0.1)
        assert own.data.digit_px[1] / largest == pytest.approx(side / 96, rel=0.1)
    assert smaller.train.epochs == setting.recipe.train.epochs


@pytest.mark.parametrize("name", ["digits", "crops", "stamp_crops", "sparse", "digits_gpu"])
def test_every_arena_has_a_start_for_the_oracle_and_a_supernet(name, tmp_path):
    from evidence import ARENAS
    from evidence_lines.lines import Setting, start_recipe, supernet_recipe

    setting = Setting(ARENAS[name](None), 0, 0.5, tmp_path)
    start, plain = start_recipe(setting), setting.plain
    assert start.routing == "static"
    numbers = range(len(plain.train.phases))
    for number in numbers:  # the same phases, at the same rates, but for the last
        own, whole = start.phase(number), plain.phase(number)
        assert (own.grid, own.data) == (whole.grid, whole.data)
        assert (own.train.seconds, own.train.epochs) == (whole.train.seconds, whole.train.epochs)
        assert own.train.lr == pytest.approx(whole.train.lr)
    assert len(start.train.phases) == len(numbers) - 1
    assert supernet_recipe(setting).train.mode == "sandwich"


def test_by_the_clock_everybody_has_the_same_time_and_the_same_crops(tmp_path):
    from evidence_lines.arenas import crops
    from evidence_lines.lines import RIVALS, Setting, trained_recipe

    setting = Setting(crops(), 0, 0.5, tmp_path)
    for line in ("dense", "routed", *RIVALS):
        recipe = trained_recipe(setting, line)
        first, second = recipe.train.phases
        assert (first.seconds, second.seconds, recipe.train.seconds) == crops().seconds
        assert recipe.train.clock == "processor"
        assert (first.image_size, first.data["digit_px"]) == (32, [10, 32])
    assert trained_recipe(setting, "smaller").data.digit_px == (8, 15)


def test_subnets_to_rank_are_of_different_blocks():
    from ranking import alike, subnets
    from sandwich import SUPERNET

    space = load_recipe("digits_tiny").override(SUPERNET).architecture()
    drawn = subnets(space, 20, (0.3, 1.0), seed=0)
    assert len({alike(part) for parts in drawn for part in parts}) == len(drawn) == 20
    assert max(len(parts) for parts in drawn) > 1
    for parts in drawn:
        fresh = []
        for part in parts:
            torch.manual_seed(0)
            fresh.append(TaskNet.classifier(part).state_dict().values())
        assert all(all(map(torch.equal, values, fresh[0])) for values in fresh)


def test_pairs_of_nearly_equal_macs_are_ranked_apart():
    from ranking import near_tau

    macs = np.array([100, 105, 200, 210])
    first, second = np.array([1, 2, 3, 4]), np.array([2, 1, 5, 6])
    assert near_tau(macs, first, second) == (0.0, 2)
    assert np.isnan(near_tau(macs[::2], first[::2], second[::2])[0])


def test_gpu_arenas_of_stamps_are_recipes_that_can_be_read():
    from evidence_lines.arenas import stamps_gpu

    for size, px in (("b0", 192), ("b1", 224)):
        recipe = stamps_gpu(None, size).recipe(0)
        assert recipe.grid.image_size == (px, px)
        assert recipe.phase(0).grid.image_size[0] < px
        assert recipe.train.device == "cuda"
