import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_photos import photo_recipe, photos
from train_pixels import pixels
from train_tiny import tiny

from routespace.errors import SpecError
from routespace.nn.weights import load_net
from routespace.train.data.loaders import make_loaders
from routespace.train.evaluate import evaluate
from routespace.train.processes import check_processes
from routespace.train.run import train_recipe

SCRIPT = """
import sys
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import train_recipe
train_recipe(Recipe.from_yaml(open(sys.argv[1]).read()), sys.argv[2])
"""


def launch(folder: Path, recipe, out: Path, before: str = "") -> None:
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    (folder / "run.py").write_text(before + SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(folder / "run.py"), str(folder / "recipe.yaml"), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
    """Without gate noise, half the batch on each of two processes is the same step as the whole on one."""
    recipe = tiny(gates__kind="sigmoid", routing="depth", train__epochs=1, budget__ratio=None)
    one = train_recipe(recipe, tmp_path / "one")
    launch(tmp_path, recipe, tmp_path / "two")
    two = load_net(tmp_path / "two" / "net")
    for (name, a), b in zip(one.net.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0.05, msg=name)
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert result["processes"] == 2
    assert result["images"] == 32
    assert result["counted_macs"] == pytest.approx(one.metrics["counted_macs"], rel=0.02)


@pytest.mark.slow
def test_two_processes_keep_one_budget(tmp_path):
    """The distance that is squared is that of the whole batch, from which each process has the same slope."""
    budget = {"ratio": 0.5, "weight": 50.0, "warmup_frac": 0.0}
    recipe = tiny(gates__kind="sigmoid", routing="depth", train__epochs=3, train__gate_lr=0.3, budget=budget)
    one = train_recipe(recipe, tmp_path / "one")
    launch(tmp_path, recipe, tmp_path / "two")
    two = load_net(tmp_path / "two" / "net")
    for (name, a), b in zip(one.net.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0, msg=name)


@pytest.mark.slow
def test_two_processes_train_a_sandwich_like_one(tmp_path):
    """Each step is four passes, of which only the last makes the processes agree."""
    recipe = tiny(train__mode="sandwich", train__epochs=1)
    one = train_recipe(recipe, tmp_path / "one")
    launch(tmp_path, recipe, tmp_path / "two")
    two = load_net(tmp_path / "two" / "net")
    for (name, a), b in zip(one.net.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0.05, msg=name)


@pytest.mark.slow
def test_two_processes_go_through_phases_like_one(tmp_path):
    """One wrapper for all phases: gates have no part in a held one, and then they have."""
    phase = {"epochs": 1, "image_size": 32, "data": {"digit_px": [20, 32]}, "gates": "held"}
    recipe = tiny(gates__kind="sigmoid", routing="depth", train__epochs=1, budget__ratio=None)
    recipe = recipe.override({"grid.image_size": 48, "train.phases": [phase]})
    one = train_recipe(recipe, tmp_path / "one")
    launch(tmp_path, recipe, tmp_path / "two")
    two = load_net(tmp_path / "two" / "net")
    for (name, a), b in zip(one.net.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=3e-3, rtol=0.05, msg=name)


FAST_AND_SLOW = """
import itertools, os
from routespace.train import course
step = 1.0 + int(os.environ["RANK"])
course.CLOCKS["wall"] = itertools.count(0.0, step).__next__
"""


@pytest.mark.slow
def test_two_processes_go_by_one_clock_and_end_together(tmp_path):
    """One has a clock on which a step takes a second, the other two: a step takes one and a half to both."""
    recipe = tiny(train__seconds=9, train__warmup_epochs=0)
    launch(tmp_path, recipe, tmp_path / "run", before=FAST_AND_SLOW)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["steps"], result["epochs"], result["step_seconds"]) == (6, 1.5, 9.0)
    assert train_recipe(recipe, tmp_path / "run", resume=True).metrics == result


@pytest.mark.slow
def test_two_processes_are_taught_by_a_run(tmp_path):
    train_recipe(tiny(train__epochs=0, routing="static"), tmp_path / "big")
    recipe = tiny(routing="static", train__epochs=1, train__teacher=str(tmp_path / "big"))
    one = train_recipe(recipe, tmp_path / "one")
    launch(tmp_path, recipe, tmp_path / "two")
    two = load_net(tmp_path / "two" / "net")
    for (name, a), b in zip(one.net.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0.05, msg=name)


@pytest.mark.slow
def test_two_processes_route_calibrate_and_resume(tmp_path):
    recipe = tiny(train__execution="packed")
    launch(tmp_path, recipe, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["calibration"]["met"]
    assert train_recipe(recipe, tmp_path / "run", resume=True).metrics == result


@pytest.mark.slow
def test_two_processes_agree_on_one_map(tmp_path):
    """Labels, cuts and gradients of a taught map; the budget holds on a whole batch, to what halves tell."""
    gates = {"source": "map", "opening": "share", "teach": "dense", "noise": 0.0}
    budget = {"ratio": 0.6, "open_frac": 0.5, "settle_frac": 0.5}
    recipe = tiny(routing="depth", gates=gates, budget=budget, train__execution="packed")
    launch(tmp_path, recipe, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["counted_macs"] == pytest.approx(result["target_macs"], rel=0.05)
    assert train_recipe(recipe, tmp_path / "run", resume=True).metrics == result


def command(recipe, out: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """`routespace train` by two processes."""
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    started += ["-m", "routespace.cli", "train", str(folder / "recipe.yaml"), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(started, capture_output=True, text=True, timeout=300, env=environment)


def lines_of(done: subprocess.CompletedProcess[str], start: str) -> list[str]:
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(start)]


def test_a_processes_part_of_a_batch_is_checked_before_anything_is_written(tmp_path):
    check_processes(tiny(train__batch_size=6, train__mixup=0.2), 1)
    with pytest.raises(SpecError, match=r"6 over 2 processes gives each 3; .* give a multiple of 4"):
        check_processes(tiny(train__batch_size=6, train__mixup=0.2), 2)


@pytest.mark.slow
def test_a_process_without_images_takes_part_with_nothing(tmp_path):
    """One validation image, so that one of two has none, in evaluation and in calibration alike."""
    done = command(tiny(train__epochs=1, data__train_size=32, data__val_size=1), tmp_path / "run", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["images"] == 1
    assert result["calibration"] is not None
    assert len(lines_of(done, "epoch 1/1")) == 1
    assert "strides" not in done.stderr


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_and_is_told_once(tmp_path):
    """A picture that cannot be decoded, which one of the two is given."""
    photos(tmp_path / "photos", count=12)
    bad = tmp_path / "photos" / "train" / "cat" / "5.png"
    bad.write_bytes(bad.read_bytes()[:700])
    recipe = photo_recipe(tmp_path / "photos", train__epochs=1, train__batch_size=8)
    done = command(recipe, tmp_path / "run", tmp_path)
    assert done.returncode != 0
    (line,) = lines_of(done, "error: ")
    assert "5.png" in line
    assert not (tmp_path / "run").exists()
    assert "routespace/train/" not in done.stderr  # the traceback that is there is the launcher's


@pytest.mark.slow
def test_two_processes_agree_on_a_batch_and_an_early_error_is_told_once(tmp_path):
    done = command(tiny(train__batch_size="auto", train__epochs=1), tmp_path / "run", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["batch_size"] == 8  # of 64 images, 4 in each
    assert len(lines_of(done, "memory: ")) == len(lines_of(done, "train.batch_size: 8")) == 1
    again = command(tiny(), tmp_path / "run", tmp_path)
    assert again.returncode != 0
    (line,) = lines_of(again, "error: ")
    assert "is a finished run" in line


@pytest.mark.slow
def test_two_processes_count_pixels_exactly(tmp_path):
    """Seven validation images: one of the two processes has more than the other, and both say what one would."""
    recipe = pixels(train__epochs=1, data__val_size=7)
    launch(tmp_path, recipe, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    alone = evaluate(load_net(tmp_path / "run" / "net"), make_loaders(recipe).val)
    assert result["images"] == 7
    assert result["miou"] == pytest.approx(alone["miou"], rel=1e-3)
    assert result["loss"] == pytest.approx(alone["loss"], rel=1e-5)
