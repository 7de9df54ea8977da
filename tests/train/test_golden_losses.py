"""Golden losses: a short routed training gives the losses that it gave before, to 1e-4.

Whoever changes what training computes changes these numbers, on purpose or not. On purpose: print the new ones
with `PYTHONPATH=.:tests python tests/train/test_golden_losses.py`, and say in the commit why they moved.

Images, noise and weights come from torch's generators on a CPU, which give the same numbers everywhere. Weights
are drawn anew here: `trunc_normal_` differs between versions. The seeds are such that no gate decides by a
hair, so that another processor's rounding flips no decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pytest
import torch
from accelerate import Accelerator
from tiny_grid import TINY_GRID

from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet
from routespace.train.data.skipping import Group
from routespace.train.loop import Trainer
from routespace.train.phases import Phase
from routespace.train.progress import Progress
from routespace.train.recipe.phases import PhaseClock
from routespace.train.recipe.recipe import Recipe
from routespace.train.stopping import StopSignal

SEEDS = {"pvt_v2": 3, "swin_v2": 6, "sandwich": 3}
STEPS, BATCH = 4, 8
SWIN = {name: value for name, value in TINY_GRID.items() if name != "sr_ratios"} | {
    "family": "swin_v2",
    "window": 4,
}
GRIDS = {"pvt_v2": TINY_GRID, "swin_v2": SWIN, "sandwich": TINY_GRID}
# The gates are held open in the first half of the first epoch; then noise, temperature, budget and control are on.
RECIPE = {
    "name": "golden",
    "gates": {"temperature": 2.0, "final_temperature": 1.0, "openness": 0.7, "columns": "token"},
    "budget": {"ratio": 0.8, "weight": 3.0, "open_frac": 0.25, "warmup_frac": 0.25, "control": 0.5},
    "data": {"digit_px": [16, 30]},  # not read: see Batches
    "train": {
        "epochs": 2,
        "batch_size": BATCH,
        "lr": 1e-3,
        "gate_lr": 1e-2,
        "warmup_epochs": 0,
        "drop_path": 0.1,
        "ema_decay": 0.9,
        "device": "cpu",
    },
}


@dataclass
class Batches:
    """Fixed batches in place of a recipe's data: random images, and the class of each by its brightest colour."""

    seed: int
    classes: int = 10
    steps: int = STEPS

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Every epoch is the same."""

    @cached_property
    def train(self) -> list[tuple[Group, ...]]:
        generator = torch.Generator().manual_seed(self.seed)
        images = [torch.randn(BATCH, 3, 32, 32, generator=generator) for _ in range(STEPS)]
        return [(Group(batch, batch.mean((2, 3)).argmax(1)),) for batch in images]

    @property
    def val(self) -> list[Group]:
        return [group for (group,) in self.train[:2]]


def run(family: str) -> dict[str, list[float]]:
    """Losses and MACs, as means since the epoch's beginning at each step, and what validation found."""
    recipe = Recipe.parse(RECIPE | {"grid": GRIDS[family]})
    if family == "sandwich":
        recipe = recipe.override({"train.mode": "sandwich", "budget.ratio": None, "budget.control": 0.0})
    task = recipe.task.make(recipe.grid, recipe.train)
    seed = SEEDS[family]
    torch.manual_seed(seed)
    backbone = RouteNet(recipe.architecture(), recipe.gates, drop_path=recipe.train.drop_path)
    net = TaskNet(backbone, task.head(recipe.grid))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.02 * torch.randn_like(parameter))
    for gate in net.gates.values():
        gate.update_ema(0.0)
    if family == "swin_v2":  # its branches start at zero: nothing of a block would be in a loss
        with torch.no_grad():
            for name, parameter in net.backbone.edges.named_parameters():
                if "norm" in name:
                    parameter += 0.3 * torch.randn_like(parameter)
    found: dict[str, list[float]] = {"loss": [], "macs": []}

    def note(progress: Progress) -> None:
        if progress.stage == "train":
            found["loss"].append(progress.loss)
            found["macs"].append(progress.macs_ratio)

    accelerator = Accelerator(cpu=True)
    target = int(0.8 * recipe.base_macs())
    budget = None if family == "sandwich" else target
    clock = PhaseClock.of(recipe.train, 0)
    phase = Phase(recipe, clock, net.architecture, Batches(seed), task, target_macs=budget)
    trainer = Trainer(recipe, net, [phase], accelerator=accelerator, report=note)
    torch.manual_seed(seed + 1)
    with StopSignal() as stop:
        trainer.fit(stop, lambda: None)
    for name in ("val_loss", "expected_ratio", "counted_ratio"):
        found[name] = [record[name] for record in trainer.records]
    return found


GOLDEN = {
    "pvt_v2": {
        "loss": [2.308024, 2.305851, 2.708951, 2.809235, 2.795437, 2.627878, 2.530336, 2.47285],
        "macs": [1.728462, 1.728462, 1.63015, 1.553192, 1.222689, 1.136352, 1.05951, 0.9794272],
        "val_loss": [2.294544, 2.292016],
        "expected_ratio": [1.199536, 0.8108039],
        "counted_ratio": [1.720257, 0.562265],
    },
    "swin_v2": {
        "loss": [2.314939, 2.279407, 3.254498, 3.583607, 3.71188, 2.98335, 2.741603, 2.827576],
        "macs": [1.957463, 1.957463, 1.904139, 1.850045, 1.513567, 1.223254, 1.040381, 0.845538],
        "val_loss": [2.304184, 2.243187],
        "expected_ratio": [1.591189, 0.8497268],
        "counted_ratio": [0.8487491, 0.1196828],
    },
    "sandwich": {
        "loss": [5.768334, 5.763367, 5.76526, 5.757653, 5.636519, 5.655953, 5.674568, 5.679018],
        "macs": [4.088932, 3.618113, 4.057545, 4.160863, 4.703613, 4.540134, 4.358346, 4.372732],
        "val_loss": [2.294603, 2.27804],
        "expected_ratio": [1.728462, 1.728462],
        "counted_ratio": [1.728462, 1.728462],
    },
}


@pytest.mark.parametrize("family", list(GRIDS))
def test_losses_are_what_they_were(family):
    found = run(family)
    for name, golden in GOLDEN[family].items():
        assert found[name] == pytest.approx(golden, rel=1e-4), name


if __name__ == "__main__":
    for chosen in GRIDS:
        print(f'"{chosen}":', {name: [float(f"{x:.7g}") for x in values] for name, values in run(chosen).items()})
