"""What a pass of a training step minimises: the task's loss, a teacher's and the budget's.

Shape legend: B images of one process and step · C channels · H, W pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from routespace.nn.task_net import TaskNet
from routespace.train.budget import BudgetLoss
from routespace.train.macs import expected_macs
from routespace.train.recipe.parts import TrainSpec
from routespace.train.tasks.base import Task


class Losses(NamedTuple):
    """Of one step; 0-d tensors. The score is the task's metric on the batch, NaN where it has none."""

    loss: Tensor
    task_loss: Tensor
    soft_loss: Tensor
    budget_loss: Tensor
    score: Tensor
    macs: Tensor


class Outcome(NamedTuple):
    """What a pass gave: its losses, and the network's outputs without their gradients, to teach another pass."""

    losses: Losses
    outputs: Any


class StepLoss(nn.Module):
    """Network and losses as one module, so that a distributed wrapper sees every gradient's way.

    Args:
        net: the network.
        task: what is learned.
        budget: the budget's loss, or None.
        spec: weight and temperature of a teacher's labels.
    """

    def __init__(self, net: TaskNet, task: Task, budget: BudgetLoss | None, spec: TrainSpec) -> None:
        super().__init__()
        self.net, self.task, self.budget, self.spec = net, task, budget, spec

    def forward(
        self,
        images: Tensor,
        targets: Any,
        progress: float,
        *,
        taught: Any = None,
        part: TaskNet | None = None,
        budgeted: bool = True,
    ) -> Outcome:
        """Images (B, C, H, W) and their targets → losses and outputs.

        Args:
            images, targets: of the batch.
            progress: share of the training that is done.
            taught: what a teacher says of the images; None where none does.
            part: of the network, over its weights, to run in place of the whole.
            budgeted: whether the pass has to keep the budget.
        """
        net = self.net if part is None else part
        output = net(images)
        task_loss = self.task.loss(output.outputs, targets)
        score = self.task.score(output.outputs, targets)
        macs = expected_macs(net, output.routes, image_size=(images.shape[-2], images.shape[-1]))
        budget_loss = self.budget(macs, progress) if self.budget and budgeted else torch.zeros_like(task_loss)
        loss, soft_loss = task_loss, torch.zeros_like(task_loss)
        if taught is not None:
            soft_loss = self.task.soft_loss(output.outputs, taught, self.spec.teacher_temperature)
            loss = torch.lerp(task_loss, soft_loss, self.spec.teacher_weight)
        losses = Losses(
            loss + budget_loss,
            task_loss.detach(),
            soft_loss.detach(),
            budget_loss.detach(),
            score.detach() if score is not None else torch.full_like(task_loss, torch.nan),
            macs.detach(),
        )
        return Outcome(losses, tree_map_only(Tensor, torch.detach, output.outputs))
