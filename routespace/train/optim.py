"""AdamW over three groups (matrices, norms and biases, gates), and timm's cosine schedule with warm-up."""

from __future__ import annotations

import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

from routespace.nn.task_net import TaskNet
from routespace.train.recipe.parts import TrainSpec

BETAS = (0.9, 0.999)
GATES = "backbone.gates."


def make_optimizer(net: TaskNet, spec: TrainSpec) -> torch.optim.AdamW:
    """Fused AdamW; gates learn at `gate_lr` without weight decay, norms and biases without weight decay."""
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "vectors": [], "gates": []}
    for name, parameter in net.named_parameters():
        kind = "gates" if name.startswith(GATES) else "matrices" if parameter.ndim > 1 else "vectors"
        groups[kind].append(parameter)
    gate_lr = spec.gate_lr if spec.gate_lr is not None else spec.lr
    settings = {
        "matrices": {"lr": spec.lr, "weight_decay": spec.weight_decay},
        "vectors": {"lr": spec.lr, "weight_decay": 0.0},
        "gates": {"lr": gate_lr, "weight_decay": 0.0},
    }
    made = [{"params": groups[kind], **settings[kind]} for kind in groups if groups[kind]]
    return torch.optim.AdamW(made, lr=spec.lr, betas=BETAS, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, spec: TrainSpec, steps: int) -> CosineLRScheduler:
    """Linear warm-up, then a cosine to `min_lr`, per step; `steps` of one epoch. A pure function of the step."""
    total = max(1, spec.epochs * steps)
    warmup = min(round(spec.warmup_epochs * steps), total - 1)
    return CosineLRScheduler(
        optimizer,
        t_initial=total - warmup,
        lr_min=spec.min_lr,
        warmup_t=warmup,
        warmup_lr_init=spec.min_lr if warmup else 0.0,
        warmup_prefix=True,
        t_in_epochs=False,
    )
