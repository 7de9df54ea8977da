"""benchmarks/tasks.py: rivals of equal MACs and steps, the same tasks on stamps, and what is finished is read."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from routespace.errors import RoutespaceError
from routespace.grid.cost import architecture_cost
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet
from routespace.train.controls import scenes_with_objects
from routespace.train.data.source import make_source

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def stamps(tmp_path):
    for name in ("ant", "bee", "cat"):
        (tmp_path / "stamps" / "cutouts" / name).mkdir(parents=True)
    return tmp_path / "stamps"


def steps(recipe):
    return [
        (own.data.model_dump()["train_size"] // own.train.batch) * own.train.epochs
        for own in map(recipe.phase, range(len(recipe.train.phases) + 1))
    ]


@pytest.mark.parametrize(("task", "scenes"), [("detect", "crowded"), ("semantic", "recipe")])
def test_rivals_have_the_macs_and_the_steps_of_the_routed_network(task, scenes, tmp_path):
    from task_lines.lines import Setting, recipe_of

    setting = Setting(task, 3, tmp_path, scenes)
    routed = recipe_of(setting, "routed")
    wanted = routed.budget_macs()
    assert 0 < wanted < routed.base_macs() == recipe_of(setting, "dense").base_macs()
    for line, off in (("narrower", 0.02), ("shallower", 0.02), ("smaller", 0.1)):
        rival = recipe_of(setting, line)
        assert rival.seed == 3
        assert rival.routing == "static"
        assert architecture_cost(rival.architecture()).macs == pytest.approx(wanted, rel=off)
        assert steps(rival) == steps(routed)
        assert rival.train.clock == routed.train.clock == "processor"
    side = recipe_of(setting, "smaller").grid.image_size[0] / routed.grid.image_size[0]
    for small, large in zip(recipe_of(setting, "smaller").data.digit_px, routed.data.digit_px, strict=True):
        assert small / large == pytest.approx(side, rel=0.05)


def test_lines_with_a_plus_train_for_the_seconds_of_the_routed_one(tmp_path):
    from task_lines.lines import Setting, recipe_of

    setting = Setting("detect", 0, tmp_path)
    with pytest.raises(RoutespaceError, match="detect_routed_0 is not finished"):
        recipe_of(setting, "smaller+")
    run = setting.folder("routed")
    run.mkdir()
    (run / "recipe.yaml").write_text("")
    (run / "result.json").write_text(json.dumps({"phases": [{"seconds": 7.5}, {"seconds": 11.0}]}))
    for line in ("narrower", "shallower", "smaller"):
        longer, plain = recipe_of(setting, f"{line}+"), recipe_of(setting, line)
        assert [phase.seconds for phase in longer.train.phases] == [7.5]
        assert longer.train.seconds == 11
        assert longer.grid == plain.grid
        assert longer.task == plain.task


@pytest.mark.parametrize(("task", "background"), [("detect", 0), ("semantic", 1)])
def test_on_stamps_the_task_has_their_classes_and_larger_objects_in_both_phases(
    task, background, stamps, tmp_path
):
    from task_lines.lines import Setting, recipe_of

    digits, recipe = Setting(task, 0, tmp_path).recipe, Setting(task, 0, tmp_path, stamps=stamps).recipe
    assert recipe.task.classes == 3 + background
    assert recipe.data.kind == "scenes"
    assert recipe.data.objects_per_scene == digits.data.digits_per_scene
    for phase in (0, 1):
        own, theirs = recipe.phase(phase), digits.phase(phase).data.digit_px
        side = min(own.grid.image_size)
        assert own.data.object_px == tuple(min(side, round(1.25 * px)) for px in theirs)
    assert recipe_of(Setting(task, 0, tmp_path, stamps=stamps), "narrower").task.classes == 3 + background


def test_crowded_scenes_are_smaller_and_fuller_under_wider_networks_and_heavier_heads(tmp_path):
    from task_lines.lines import TASKS, Setting

    for task in TASKS:
        fuller, own = (Setting(task, 0, tmp_path, scenes).recipe for scenes in ("crowded", "recipe"))
        shares = [max(one.data.digit_px) / min(one.grid.image_size) for one in (fuller, own)]
        assert shares[0] > shares[1]
        assert fuller.grid.shape.widths > own.grid.shape.widths
        assert fuller.gates == own.gates
        assert fuller.num_classes == own.num_classes
        heads = (one.task.make(one.grid).head(one.grid).cost(one.grid).macs for one in (fuller, own))
        heavy, light = (head / one.base_macs() for head, one in zip(heads, (fuller, own), strict=True))
        assert heavy > 1
        assert light < 1 or task == "semantic"  # whose small scenes are about accuracy


def test_a_network_that_computes_everything_does_so_for_objects_of_all_sizes(tmp_path):
    from task_lines.lines import Setting
    from task_lines.looking import THIRDS, usage_by_size

    recipe = Setting("detect", 0, tmp_path).recipe
    torch.manual_seed(0)
    net = TaskNet(RouteNet(recipe.architecture(), recipe.gates), recipe.task.make(recipe.grid).head(recipe.grid))
    found = usage_by_size(net, list(scenes_with_objects(make_source(recipe), "val", 6)))
    assert found == {str(rate): dict.fromkeys((*THIRDS, "no object"), 1.0) for rate in (4, 8, 16, 32)}


def test_the_recipes_networks_are_timed_at_their_budget(tmp_path, monkeypatch):
    from task_lines import large
    from task_lines.lines import Setting

    monkeypatch.setattr(large, "ROUNDS", 1)
    recipe = Setting("semantic", 0, tmp_path).recipe
    found = large.light(recipe, images=2)
    assert found["macs"] == pytest.approx(recipe.budget.ratio, abs=0.03)
    assert min(found["network ms"], found["backbone ms"]) > 0


def test_what_was_written_is_read_and_nothing_is_trained(tmp_path):
    from task_lines.lines import Setting, one

    (tmp_path / "detect_routed_5.json").write_text(json.dumps({"score": 0.25}))
    assert one(Setting("detect", 5, tmp_path), "routed") == {"score": 0.25}
    assert [path.name for path in tmp_path.iterdir()] == ["detect_routed_5.json"]


@pytest.mark.slow
def test_the_rehearsal_runs_every_line(tmp_path):
    from task_lines.lines import LINES

    command = [sys.executable, str(BENCHMARKS / "tasks.py"), "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--tasks", "semantic"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "digits_recipe" / "rehearsal" / "tasks_cpu.json").read_text())
    assert [row["line"] for row in found["rows"]] == list(LINES)
    assert all(0 <= row["score"] <= 1 and row["time"] > 0 for row in found["rows"])
    assert "no object" in done.stdout


def test_on_a_gpu_there_are_as_many_steps_of_more_scenes(tmp_path):
    from task_lines.lines import TASKS, Setting

    for task in TASKS:
        there, here = (Setting(task, 0, tmp_path, device=device).recipe for device in ("cuda", "cpu"))
        assert steps(there) == steps(here)
        assert there.train.batch_size == (1 if task == "instance" else 2) * here.train.batch_size
        assert there.train.device == "cuda"


@pytest.mark.slow
def test_a_training_that_was_cut_short_counts_as_far_as_it_came(tmp_path, capsys):
    from task_lines.lines import Setting, one, so_far

    setting = Setting("semantic", 0, tmp_path, tiny=True)
    assert so_far(setting, "narrower") is None
    row = one(setting, "narrower")
    assert so_far(setting, "narrower") == row
    folder = setting.folder("narrower")
    folder.with_name(f"{folder.name}.json").unlink()
    (folder / "result.json").unlink()
    cut = so_far(setting, "narrower")
    assert cut["score"] == pytest.approx(row["score"], abs=1e-6)
    assert {**cut, **row} == row | {"score": row["score"]}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text(lines[0] + "\n")  # of the small canvas alone
    assert so_far(setting, "narrower") is None


@pytest.mark.slow
def test_lines_side_by_side_are_stopped_when_the_time_is_up(tmp_path):
    from task_lines.lines import Setting, so_far
    from tasks import side_by_side

    tiny, long = (Setting("semantic", seed, tmp_path, tiny=seed == 0) for seed in (0, 1))
    begun = time.monotonic()
    side_by_side([(tiny, "narrower"), (long, "narrower")], 2, 75, logs=tmp_path / "logs")
    assert time.monotonic() - begun < 120
    assert so_far(tiny, "narrower")["epochs"] == 2
    assert so_far(long, "narrower") is None
    assert (long.folder("narrower") / "recipe.yaml").exists()
