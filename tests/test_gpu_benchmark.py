"""benchmarks/gpu.py: every line runs on the CPU, a run that fails stops no other, and work is counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from routespace import Architecture, GridSpec, RoutingGrid, TaskNet, architecture_cost

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def setting(**fields):
    from gpu_lines.line import Setting

    return Setting(torch.device("cpu"), **{"rehearse": True, "compiled": False, "rounds": 1} | fields)


@pytest.mark.slow
def test_the_rehearsal_runs_every_line(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--rehearse", "--no-compile", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    from gpu_lines.lines import LINES

    found = json.loads((tmp_path / "gpu_rehearsal.json").read_text())
    assert list(found["lines"]) == list(LINES)
    for name, line in found["lines"].items():
        assert line["rows"], name
        for row in line["rows"]:
            assert row["ms"] > 0, row
            assert f"  {row['name']} " in done.stdout
    assert found["ceilings"].keys() == {"bytes_per_s", "flops_per_s"}


def test_a_run_that_fails_is_told_of_and_the_others_go_on(capsys):
    from gpu_lines.clock import measure

    def broken() -> None:
        raise RuntimeError("no such kernel\nand a page of others")

    found = measure({"one": lambda: None, "broken": broken, "two": lambda: None}, setting())
    assert list(found) == ["one", "broken", "two"]
    assert found["broken"].error == "RuntimeError: no such kernel"
    assert found["one"].ms is not None
    assert "and a page of others" in capsys.readouterr().err


def test_work_is_what_the_cost_model_counts_and_what_products_move():
    from gpu_lines.nets import inference_work

    grid = RoutingGrid(GridSpec.preset("pvt_v2_b0", image_size=64))
    net = TaskNet.classifier(Architecture.staircase(grid)).eval().bfloat16()
    here = setting()
    none, two, four = (inference_work(net, here, batch) for batch in (0, 2, 4))
    assert two.flops == 4 * architecture_cost(net.architecture).macs
    assert four.bytes - two.bytes == two.bytes - none.bytes > 0
    # What is left of nothing: the weights of all that multiplies, each read once.
    norms = [p for m in net.modules() if isinstance(m, torch.nn.LayerNorm) for p in m.parameters()]
    assert none.bytes == sum(p.nbytes for p in net.parameters()) - sum(p.nbytes for p in norms)
