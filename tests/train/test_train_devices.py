"""Training on each device: routed, in half precision, stopped and resumed, and as one of several processes."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from devices import DEVICES, SLOW_ON_A_CPU
from train_tiny import tiny

from routespace import TaskNet, budget_loss, evaluate, load_run, measure_usage
from routespace.train.data.loaders import make_loaders
from routespace.train.data.scenes.on_device import on_device
from routespace.train.progress import Progress
from routespace.train.run import train_recipe
from routespace.train.run_folder import RunFolder
from routespace.train.stopping import TrainingStoppedError

SMALL = {"data__train_size": 48, "data__val_size": 24, "train__batch_size": 16}
PROCESS = """
import sys
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import train_recipe
train_recipe(Recipe.from_yaml(open(sys.argv[1]).read()), sys.argv[2])
"""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train__precision": "bf16", "train__execution": "packed", "train__grad_checkpointing": True},
        {"train__execution": "auto", "train__ema_decay": 0.9, "train__mixup": 0.5, "gates__columns": "token"},
    ],
    ids=["dense", "packed", "auto"],
)
def test_a_routed_network_is_trained_calibrated_and_measured(changes, device, tmp_path):
    """By batches that a thread makes beside the training."""
    recipe = tiny(train__device=device.type, **SMALL, **changes)
    result = train_recipe(recipe, tmp_path / "run")
    assert torch.device(result.metrics["device"]).type == device.type
    assert result.metrics["calibration"]["met"]
    assert 0 < result.metrics["loss"] < 10
    assert len(RunFolder(result.folder).read_metrics()) == 2
    assert next(result.net.parameters()).device.type == "cpu"
    loaded = load_run(result.folder, device=device.type)
    assert next(loaded.net.parameters()).device.type == device.type
    again = evaluate(loaded.net, make_loaders(recipe).val)
    assert again["counted_macs"] == pytest.approx(result.metrics["counted_macs"], rel=0.02)
    assert again["loss"] == pytest.approx(result.metrics["loss"], rel=0.02)


@pytest.mark.parametrize("device", SLOW_ON_A_CPU, indirect=True)
def test_compiled_training(device, tmp_path):
    recipe = tiny(train__device=device.type, train__compile=True, train__execution="packed", **SMALL)
    result = train_recipe(recipe, tmp_path / "run")
    assert 0 < result.metrics["loss"] < 10
    assert not result.net.compiled


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("routing", ["static", "depth"])
def test_a_training_step_does_not_wait_for_the_gpu(routing, tmp_path):
    """Scenes composed there, a map of gates taught and let go, everything computed and masked."""
    gates = {"source": "map", "opening": "share", "teach": "dense", "noise": 0.0}
    changes = {
        "data": {"kind": "scenes", "train_size": 160, "val_size": 32, "object_px": [12, 30]},
        "routing": routing,
        "gates": gates if routing == "depth" else {},
        "budget": {"ratio": 0.8 if routing == "depth" else None, "open_frac": 0.4, "settle_frac": 0.6},
        "train.device": "cuda",
    }

    def watch(news: Progress) -> None:
        inside = news.stage == "train" and 1 < news.step < news.steps - 1
        torch.cuda.set_sync_debug_mode("error" if inside else "default")

    try:
        train_recipe(tiny().override(changes), tmp_path / "run", progress=watch, loaders=on_device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_stopped_run_goes_on_where_it_was(device, tmp_path):
    """Sums on a GPU are of no fixed order, so the two may differ by roundings, but not by a step or a draw."""
    recipe = tiny(train__device=device.type, **SMALL)
    whole = train_recipe(recipe, tmp_path / "whole")
    steps = 0

    def stop(progress: Progress) -> None:
        nonlocal steps
        steps += progress.stage == "train"
        if steps == 4 and progress.stage == "train":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingStoppedError):
        train_recipe(recipe, tmp_path / "run", progress=stop)
    resumed = train_recipe(recipe, tmp_path / "run", resume=True)
    for name in ("loss", "expected_macs"):
        assert resumed.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-2)
    losses = [[line["loss"] for line in RunFolder(run.folder).read_metrics()] for run in (whole, resumed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_a_loop_of_ones_own(device):
    recipe = tiny(train__device=device.type)
    net = TaskNet.classifier(recipe.architecture(), recipe.gates).to(device).train()
    images, labels = torch.randn(8, 3, 32, 32, device=device), torch.arange(8, device=device)
    out = net(images)
    loss = torch.nn.functional.cross_entropy(out.logits, labels)
    loss = loss + budget_loss(net, out.routes, macs=0.5 * recipe.base_macs())
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in net.gates.parameters() if p.grad is not None)
    assert set(measure_usage(net.eval(), [images.cpu()])) <= set(net.architecture.edges)


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), DEVICES[1]], indirect=True)
def test_one_process_of_a_distributed_training(device, tmp_path):
    """As a launcher starts it: nccl between GPUs, gloo between CPUs, gradients averaged over one process."""
    recipe = tiny(train__device=device.type, train__execution="packed", train__epochs=1, **SMALL)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    told |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": str(device.type == "cpu").lower()}
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "recipe.yaml"), str(tmp_path / "run")]
    done = subprocess.run(command, env=os.environ | told, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = RunFolder(tmp_path / "run").read_result()
    assert result["processes"] == 1
    assert torch.device(result["device"]).type == device.type
    assert result["calibration"]["met"]
