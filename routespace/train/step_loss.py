"""What a pass of a training step minimises: the task's loss, a teacher's and the budget's.

The images of a step may have several sizes; each group of one size runs by itself, unpadded, and counts by its
images. MACs are told as those of images of the grid's size, so that one budget holds for all.

Shape legend: B images of one process and step · C channels · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from routespace.nn.task_net import TaskNet
from routespace.train.budget import BudgetLoss
from routespace.train.data.skipping import Group
from routespace.train.macs import expected_macs
from routespace.train.processes import mean_of_all
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
    """What a pass gave: its losses, and the outputs of each group without gradients, to teach another pass."""

    losses: Losses
    outputs: list[Any]


class _GroupLoss(NamedTuple):
    """Of the images of one size; 0-d tensors, means over its images."""

    task_loss: Tensor
    soft_loss: Tensor
    score: Tensor
    macs: Tensor


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
        batch: Sequence[Group],
        progress: float,
        *,
        taught: Sequence[Any] | None = None,
        part: TaskNet | None = None,
        budgeted: bool = True,
    ) -> Outcome:
        """A batch → losses and outputs.

        Args:
            batch: groups of images (B, C, H, W) and their targets.
            progress: share of the training that is done.
            taught: what a teacher says of each group's images; None where none does.
            part: of the network, over its weights, to run in place of the whole.
            budgeted: whether the pass has to keep the budget.
        """
        net = self.net if part is None else part
        ran = [self._group(net, group, None if taught is None else taught[n]) for n, group in enumerate(batch)]
        found = _mean([losses for losses, _ in ran], [len(group.images) for group in batch])
        budget_loss = torch.zeros_like(found.task_loss)
        if self.budget is not None and budgeted:
            budget_loss = self.budget(mean_of_all(found.macs), progress)
        loss = found.task_loss
        if taught is not None:
            loss = torch.lerp(found.task_loss, found.soft_loss, self.spec.teacher_weight)
        losses = Losses(
            loss + budget_loss,
            found.task_loss.detach(),
            found.soft_loss.detach(),
            budget_loss.detach(),
            found.score.detach(),
            found.macs.detach(),
        )
        return Outcome(losses, [outputs for _, outputs in ran])

    def _group(self, net: TaskNet, group: Group, taught: Any) -> tuple[_GroupLoss, Any]:
        """Losses of the images of one size, and the outputs without their gradients."""
        output = net(group.images)
        task_loss = self.task.loss(output.outputs, group.targets)
        score = self.task.score(output.outputs, group.targets)
        macs = expected_macs(net, output.routes, image_size=(group.images.shape[-2], group.images.shape[-1]))
        soft_loss = torch.zeros_like(task_loss)
        if taught is not None:
            soft_loss = self.task.soft_loss(output.outputs, taught, self.spec.teacher_temperature)
        score = torch.full_like(task_loss, torch.nan) if score is None else score
        losses = _GroupLoss(task_loss, soft_loss, score, macs)
        return losses, tree_map_only(Tensor, torch.detach, output.outputs)


def _mean(groups: Sequence[_GroupLoss], images: Sequence[int]) -> _GroupLoss:
    """The mean over all images; that of one group untouched."""
    if len(groups) == 1:
        return groups[0]
    shares = [count / sum(images) for count in images]
    parts = zip(*groups, strict=True)
    return _GroupLoss(*(sum(x * share for x, share in zip(part, shares, strict=True)) for part in parts))
