import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_tiny import tiny

from routespace.nn.weights import load_net
from routespace.train.run import train_recipe

SCRIPT = """
import sys
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import train_recipe
train_recipe(Recipe.from_yaml(open(sys.argv[1]).read()), sys.argv[2])
"""


def launch(folder: Path, recipe, out: Path) -> None:
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    (folder / "run.py").write_text(SCRIPT)
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
def test_two_processes_route_calibrate_and_resume(tmp_path):
    recipe = tiny(train__execution="packed")
    launch(tmp_path, recipe, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["calibration"]["met"]
    assert train_recipe(recipe, tmp_path / "run", resume=True).metrics == result
