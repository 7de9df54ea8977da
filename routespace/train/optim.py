"""How weights move: AdamW over three kinds of parameters (matrices, norms and biases, gates), timm's schedules.

Where rates of learning fall from the head to the stem (`train.layer_decay`), each kind has a group for each layer.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.multistep_lr import MultiStepLRScheduler
from timm.scheduler.poly_lr import PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from routespace.grid.graph import Edge
from routespace.nn.task_net import TaskNet
from routespace.train.recipe.parts import TrainSpec

BETAS = (0.9, 0.999)
POLY_POWER = 0.9  # of mmsegmentation and the papers that train with it
DECAY_RATE = 0.1
STEM, EDGES, GATES, SKIPS = "backbone.stem.", "backbone.edges.", "backbone.gates.", "backbone.skips."
KINDS = ("matrices", "vectors", "gates")


class Stepper:
    """The optimiser steps of a phase, on gradients that are there.

    Args:
        net: whose weights are moved.
        spec: rates of learning, their schedule, and clipping.
        accelerator: that scales and clips the gradients of all processes.
        steps: updates of the rates in an epoch.
    """

    def __init__(self, net: TaskNet, spec: TrainSpec, accelerator: Accelerator, steps: float) -> None:
        self._accelerator, self._most_norm = accelerator, spec.clip_grad
        # Not prepared by accelerate, which would keep it, and its moments, when the next phase has one of its own;
        # it has nothing to add where gradients are neither scaled nor accumulated.
        self._optimizer = make_optimizer(net, spec)
        self._clipped = clipped_together(self._optimizer)
        self._schedule = make_schedule(self._optimizer, spec, steps)

    def turn_to(self, update: int) -> None:
        """Learn at the rates of the schedule's update of that number, from 0."""
        self._schedule.step_update(update)

    def step(self) -> None:
        """Clip the gradients, move the weights by them, and forget them."""
        if self._most_norm is not None:
            for parameters in self._clipped:
                self._accelerator.clip_grad_norm_(parameters, self._most_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()

    @property
    def lr(self) -> float:
        """The rate of the first group."""
        rate: float = self._optimizer.param_groups[0]["lr"]
        return rate

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return self._optimizer.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._optimizer.load_state_dict(state)


def make_optimizer(net: TaskNet, spec: TrainSpec) -> torch.optim.AdamW:
    """Fused AdamW; gates learn at `gate_lr` without weight decay, norms and biases without weight decay.

    A parameter that is `height` layers below the head learns at lr·layer_decay^height; gates are left out of that.
    Each group tells its kind; what is frozen is in none.
    """
    groups: dict[tuple[str, int], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        kind = "gates" if name.startswith(GATES) else "matrices" if parameter.ndim > 1 else "vectors"
        height = 0 if kind == "gates" or spec.layer_decay == 1 else _height(name, net)
        groups.setdefault((kind, height), []).append(parameter)
    gate_lr = spec.gate_lr if spec.gate_lr is not None else spec.lr
    settings = {
        "matrices": {"lr": spec.lr, "weight_decay": spec.weight_decay},
        "vectors": {"lr": spec.lr, "weight_decay": 0.0},
        "gates": {"lr": gate_lr, "weight_decay": 0.0},
    }
    made = [
        {"params": groups[kind, height], "kind": kind, "lr_scale": spec.layer_decay**height, **settings[kind]}
        for kind, height in sorted(groups, key=lambda group: (KINDS.index(group[0]), group[1]))
    ]
    return torch.optim.AdamW(made, lr=spec.lr, betas=BETAS, fused=True)


def _height(name: str, net: TaskNet) -> int:
    """Layers between a parameter and the head, which has 0 as the outputs' norms have; the stem has most."""
    layers = net.spec.layers
    if name.startswith(STEM):
        return layers + 1
    for part in (EDGES, SKIPS):
        if name.startswith(part):
            return layers - Edge.parse(name.removeprefix(part).partition(".")[0]).layer
    return 0


def clipped_together(optimizer: torch.optim.Optimizer) -> list[list[nn.Parameter]]:
    """Parameters of each kind: a far budget must not shrink the task's gradient."""
    found: dict[str, list[nn.Parameter]] = {}
    for group in optimizer.param_groups:
        found.setdefault(group["kind"], []).extend(group["params"])
    return list(found.values())


def make_schedule(optimizer: torch.optim.Optimizer, spec: TrainSpec, steps: float) -> Scheduler:
    """Linear warm-up, then `train.schedule`, per step; `steps` of one epoch. A pure function of the step."""
    total = max(1, round(spec.epochs * steps))
    warmup = min(round(spec.warmup_epochs * steps), total - 1)
    warming: dict[str, Any] = {
        "warmup_t": warmup,
        "warmup_lr_init": spec.min_lr if warmup else 0.0,
        "warmup_prefix": True,
        "t_in_epochs": False,
    }
    left = total - warmup
    if spec.schedule == "cosine":
        return CosineLRScheduler(optimizer, t_initial=left, lr_min=spec.min_lr, **warming)
    if spec.schedule == "poly":
        return PolyLRScheduler(optimizer, t_initial=left, power=POLY_POWER, lr_min=spec.min_lr, **warming)
    # timm takes a milestone for the last step before the rate falls, and counts from the end of the warm-up.
    falls = [max(1, round(share * total) + 1 - warmup) for share in spec.decay_fracs]
    return MultiStepLRScheduler(optimizer, falls, decay_rate=DECAY_RATE, **warming)
