"""train(recipe, out): from a recipe to a run folder.

recipe.yaml          the recipe, every field
preprocess.json      how images go in, and the class names in the order of the outputs
data.json            names of the images that it began with, where they are not rendered
architecture.json    what is trained: the recipe's architecture, or that of the network it started from
metrics.jsonl        a line per epoch
checkpoint/state.pt  for --resume: weights, optimiser, generators; whole or not there
net/                 the final network: model.safetensors and network.json, threshold calibrated
usage.json           share of each edge that ran on the validation images
result.json          final numbers; a folder that has it is a finished run
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, set_seed

from routespace.errors import BundleError, SpecError
from routespace.files import json_text, read_json, undone, write_text
from routespace.grid.architecture import Architecture
from routespace.grid.families.lookup import allow_families
from routespace.nn.route_net import RouteNet
from routespace.nn.routing.gates import Gate, initial_bias
from routespace.nn.task_net import TaskNet
from routespace.nn.weights import load_net
from routespace.train.budget import check_budget
from routespace.train.calibrate import Calibration, calibrate_threshold
from routespace.train.checkpoint import load_checkpoint, save_checkpoint
from routespace.train.data.kept import keep, look_at
from routespace.train.data.loaders import Part, make_loaders
from routespace.train.data.source import located
from routespace.train.evaluate import evaluate
from routespace.train.loop import Trainer
from routespace.train.progress import Progress
from routespace.train.recipe.recipe import Recipe
from routespace.train.run_folder import (
    FORMAT,
    RESULT,
    checkpoint_path,
    refuse_existing,
    resumable,
    save_final,
    start_folder,
    with_init,
)
from routespace.train.stopping import StopSignal, TrainingStoppedError
from routespace.train.tasks.base import Task

__all__ = ["Progress", "RunResult", "TrainingStoppedError", "evaluate", "train"]

Report = Callable[[Progress], None]


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: where it lies.
        metrics: the content of result.json.
        net: the final network, on the CPU, in eval mode.
    """

    folder: Path
    metrics: dict[str, Any]
    net: TaskNet


def train(
    recipe: Recipe,
    out: Path | str,
    *,
    init: TaskNet | None = None,
    resume: bool = False,
    progress: Report | None = None,
    tell: Callable[[str], None] | None = None,
) -> RunResult:
    """Train a recipe into a run folder.

    Args:
        recipe: what to train.
        out: the folder; it must be empty or not exist, unless `resume`.
        init: a network whose weights start the training; its grid, architecture and gates take the place of the
            recipe's (fine-tuning).
        resume: go on with the run in `out`, exactly where its checkpoint stands; a finished run is returned as
            it is.
        progress: called with a Progress after each step.
        tell: called with a line on what is about to be trained on: classes and images.

    Raises:
        BundleError: `out` holds something else, cannot be written, or is a run of another recipe.
        BudgetError: a budget below the least possible.
        DataError, SpecError, GridError: the recipe's data, device or architecture.
        TrainingStoppedError: SIGTERM or SIGINT came; the checkpoint is saved.
    """
    out = Path(out)
    recipe, architecture = with_init(located(recipe), init)
    if resume:
        with allow_families(recipe.grid.family):
            recipe, architecture = resumable(out, recipe, architecture, from_init=init is not None)
        if (out / RESULT).exists():
            result = read_json(out / RESULT, wanted="the folder of a run")
            return RunResult(out, result, load_net(out / "net", families=[recipe.grid.family]).eval())
    target = check_budget(recipe, architecture)
    accelerator = _accelerator(recipe, architecture)
    first = accelerator.is_main_process
    if first and not resume:
        refuse_existing(out)
    loaders = make_loaders(recipe, Part(accelerator.process_index, accelerator.num_processes))
    if first:
        look_at(loaders.source, out, tell or (lambda _: None))
    task = recipe.task.make(recipe.grid, recipe.train)
    net = _make_net(recipe, architecture, task, init).to(accelerator.device)
    begins = first and not resume
    with undone(out, unless=checkpoint_path(out)) if begins else contextlib.nullcontext():
        if first:
            start_folder(out, recipe, architecture, given=init is not None, anew=begins)
            keep(loaders.source, out)
        accelerator.wait_for_everyone()  # nobody reads the folder before it is there
        report: Report = progress if progress is not None else lambda _: None
        options: dict[str, Any] = {"accelerator": accelerator, "target_macs": target, "report": report}
        trainer = Trainer(recipe, net, loaders, task=task, **options)
        set_seed((recipe.seed * 1009 + 1 + accelerator.process_index) % 2**32)  # noise: each process its own
        _fit(trainer, out, resume=resume)
    return _finish(trainer, out, target)


def _accelerator(recipe: Recipe, architecture: Architecture) -> Accelerator:
    wanted, cuda = recipe.train.device, torch.cuda.is_available()
    if wanted == "cuda" and not cuda:
        raise SpecError("train.device: 'cuda' is not there on this machine; give 'auto' or 'cpu'")
    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run of this process may have had others
    unused = DistributedDataParallelKwargs(find_unused_parameters=not architecture.is_static)
    return Accelerator(
        cpu=wanted == "cpu" or not cuda, mixed_precision=recipe.train.precision, kwargs_handlers=[unused]
    )


def _make_net(recipe: Recipe, architecture: Architecture, task: Task, init: TaskNet | None) -> TaskNet:
    torch.manual_seed(recipe.seed)
    train = recipe.train
    backbone = RouteNet(architecture, recipe.gates, execution=train.execution, drop_path=train.drop_path)
    net = TaskNet(backbone, task.head(recipe.grid))
    if init is not None:
        net.load_state_dict(init.state_dict())
    elif recipe.train.start == "staircase":
        open_staircase(net, Architecture.staircase(architecture.grid))
    net.set_grad_checkpointing(recipe.train.grad_checkpointing)
    return net.compile_blocks(recipe.train.compile)


@torch.no_grad()
def open_staircase(net: TaskNet, path: Architecture) -> None:
    """Set the gates' biases: edges of `path` open with the spec's openness, all others with 1 − openness."""
    spec = net.gate_spec
    closed = initial_bias(spec.model_copy(update={"openness": 1 - spec.openness}))
    for name, module in net.gates.items():
        assert isinstance(module, Gate)
        if module.learned and name not in path.edges:
            module.bias.copy_(closed)
            module.update_ema(0.0)


def _fit(trainer: Trainer, out: Path, *, resume: bool) -> None:
    """Train, with checkpoints and metrics in `out`."""
    path = checkpoint_path(out)
    if resume and path.exists():
        state = load_checkpoint(path)
        if state.get("recipe") != trainer.recipe.hash:
            raise BundleError(f"{path}: is of another recipe; choose another --out")
        trainer.load_state(state)

    def save() -> None:
        state = trainer.state()
        if trainer.accelerator.is_main_process:
            save_checkpoint(path, state)
            lines = [json_text(record, indent=None) + "\n" for record in trainer.records]
            write_text(out / "metrics.jsonl", "".join(lines))
        trainer.accelerator.wait_for_everyone()

    with StopSignal() as stop:
        trainer.fit(stop, save)


def _finish(trainer: Trainer, out: Path, target: int | None) -> RunResult:
    """Calibrate, measure and save the final network."""
    recipe, loaders = trainer.recipe, trainer.loaders
    net = trainer.final_net.eval()
    settle_gates(net)
    start = time.perf_counter()
    found = None
    if target is not None and recipe.budget.calibrate:
        trainer.report(trainer.progress("calibrate"))
        found = calibrate_threshold(net, loaders.calibration, target)
    trainer.report(trainer.progress("evaluate"))
    measured = evaluate(net, loaders.val, task=trainer.task)
    seconds = trainer.seconds + time.perf_counter() - start
    result = _result(trainer, measured, found, target, seconds)
    if trainer.accelerator.is_main_process:
        save_final(out, net, measured["usage"], result)
    trainer.accelerator.wait_for_everyone()
    return RunResult(out, result, net.compile_blocks(False).cpu())


@torch.no_grad()
def settle_gates(net: TaskNet) -> None:
    """Let the averaged gate weights take the place of the live ones: training then decides as inference does."""
    for module in net.gates.values():
        assert isinstance(module, Gate)
        if module.learned:
            module.bias.copy_(module.ema_bias)
            if module.weight is not None and module.ema_weight is not None:
                module.weight.copy_(module.ema_weight)


def _result(
    trainer: Trainer,
    measured: dict[str, Any],
    found: Calibration | None,
    target: int | None,
    seconds: float,
) -> dict[str, Any]:
    recipe, net, base = trainer.recipe, trainer.final_net, trainer.base_macs
    metric = trainer.task.metric.name
    rates = [record["images_per_s"] for record in trainer.records]
    return {
        "format": FORMAT,
        "name": recipe.name,
        "recipe": recipe.hash,
        "architecture": net.architecture.hash,
        "seed": recipe.seed,
        "task": trainer.task.name,
        "metric": metric,
        metric: measured[metric],
        "loss": measured["loss"],
        "images": measured["images"],
        "expected_macs": measured["expected_macs"],
        "counted_macs": measured["counted_macs"],
        "target_macs": target,
        "base_macs": base,
        "expected_ratio": measured["expected_macs"] / base,
        "counted_ratio": measured["counted_macs"] / base,
        "target_ratio": target / base if target is not None else None,
        "params": sum(parameter.numel() for parameter in net.parameters()),
        "calibration": asdict(found) if found is not None else None,
        "epochs": trainer.epoch,
        "images_per_s": round(sum(rates) / len(rates), 1) if rates else None,
        "eval_images_per_s": round(measured["images_per_s"], 1),
        "seconds": round(seconds, 2),
        "device": str(trainer.accelerator.device),
        "processes": trainer.accelerator.num_processes,
        "versions": {name: version(name) for name in ("routespace", "torch", "timm")},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
