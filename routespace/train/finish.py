"""The end of a training: gates settled, threshold calibrated, the network measured and saved."""

from __future__ import annotations

import datetime
import time
from dataclasses import asdict
from typing import Any

import torch

from routespace.files import replaced_folder, write_json
from routespace.grid.usage import EdgeUsage, usage_to_json
from routespace.nn.routing.gates import Gate
from routespace.nn.task_net import TaskNet
from routespace.nn.weights import save_net
from routespace.train.calibrate import Calibration, calibrate_threshold
from routespace.train.evaluate import evaluate, further
from routespace.train.loop import Trainer
from routespace.train.processes import together
from routespace.train.run_folder import FORMAT, RunFolder
from routespace.versions import versions_of


def finish(trainer: Trainer, run: RunFolder) -> tuple[dict[str, Any], TaskNet]:
    """Calibrate, measure and save the final network.

    Args:
        trainer: after its last epoch.
        run: its folder, which is finished afterwards.

    Returns:
        The content of result.json, and the network on the CPU.
    """
    recipe, loaders, target = trainer.recipe, trainer.loaders, trainer.target_macs
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
    result = _result(trainer, measured, found, seconds)
    with together():
        if trainer.accelerator.is_main_process:
            _save_final(run, net, measured, result)
    return result, net.compile_blocks(False).cpu()


def _save_final(run: RunFolder, net: TaskNet, measured: dict[str, Any], result: dict[str, Any]) -> None:
    """net/, usage.json and, last, result.json: the folder is finished when that is there."""
    with replaced_folder(run.net_path) as partial:
        save_net(net, partial)
    used = {name: EdgeUsage(**shares) for name, shares in measured["usage"].items()}
    write_json(run.usage_path, usage_to_json(used, net.architecture.grid, measured["sizes"]))
    write_json(run.result_path, result)


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
    seconds: float,
) -> dict[str, Any]:
    recipe, net, base, last = trainer.recipe, trainer.final_net, trainer.base_macs, trainer.course.phase
    target = trainer.target_macs
    metric, phases = trainer.task.metric.name, trainer.course.told
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
        **further(measured, metric),
        "loss": measured["loss"],
        "images": measured["images"],
        "expected_macs": measured["expected_macs"],
        "counted_macs": measured["counted_macs"],
        "target_macs": target,
        "base_macs": base,
        "expected_ratio": measured["expected_macs"] / base,
        "counted_ratio": measured["counted_macs"] / base,
        "target_ratio": target / base if target is not None else None,
        "teacher": recipe.train.teacher,
        "teacher_macs": last.teacher.macs if last.teacher is not None else None,
        "params": sum(parameter.numel() for parameter in net.parameters()),
        "calibration": asdict(found) if found is not None else None,
        "remarks": trainer.remarks(measured, trainer.last_task_loss, 1.0),
        "epochs": round(sum(phase["epochs"] for phase in phases), 2),
        "steps": sum(phase["steps"] for phase in phases),
        "step_seconds": round(sum(phase["seconds"] for phase in phases), 2),
        "clock": recipe.train.clock,
        "phases": phases,
        "batch_size": recipe.train.batch,
        "images_per_s": round(sum(rates) / len(rates), 1) if rates else None,
        "eval_images_per_s": round(measured["images_per_s"], 1),
        "seconds": round(seconds, 2),
        "device": str(trainer.accelerator.device),
        "processes": trainer.accelerator.num_processes,
        "versions": versions_of("routespace", "torch", "timm"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
