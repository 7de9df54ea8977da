"""What a training step minimises: the task's loss and the budget's.

Shape legend: B images of one process and step · C channels · H, W pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from routespace.nn.task_net import TaskNet
from routespace.train.budget import BudgetLoss
from routespace.train.macs import expected_macs
from routespace.train.tasks.base import Task


class Losses(NamedTuple):
    """Of one step; 0-d tensors. The score is the task's metric on the batch, NaN where it has none."""

    loss: Tensor
    task_loss: Tensor
    budget_loss: Tensor
    score: Tensor
    macs: Tensor


class StepLoss(nn.Module):
    """Network and losses as one module, so that a distributed wrapper sees every gradient's way."""

    def __init__(self, net: TaskNet, task: Task, budget: BudgetLoss | None) -> None:
        super().__init__()
        self.net, self.task, self.budget = net, task, budget

    def forward(self, images: Tensor, targets: Any, progress: float) -> Losses:
        """Images (B, C, H, W) and their targets → losses."""
        output = self.net(images)
        task_loss = self.task.loss(output.outputs, targets)
        score = self.task.score(output.outputs, targets)
        macs = expected_macs(self.net, output.routes, image_size=(images.shape[-2], images.shape[-1]))
        budget_loss = self.budget(macs, progress) if self.budget else torch.zeros_like(task_loss)
        return Losses(
            task_loss + budget_loss,
            task_loss.detach(),
            budget_loss.detach(),
            score.detach() if score is not None else torch.full_like(task_loss, torch.nan),
            macs.detach(),
        )
