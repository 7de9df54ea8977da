"""What happens in one step between a batch and its gradients: which passes are made, and who teaches whom.

    losses = passes(batch, progress, step)      # afterwards every parameter has its gradient

A batch is a sequence of groups: images of one size, and their targets as the task has prepared them.

`OnePass` is the ordinary step, with a teacher or without. `SelfTaught` makes two passes: everything computed, then
routed. `Sandwich`, in sandwich.py, trains several parts of a supernet at once.

Shape legend: B images of one process and step · C channels · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor, nn

from routespace.errors import SpecError
from routespace.nn.task_net import TaskNet
from routespace.train.data.skipping import Group
from routespace.train.own_images import OwnImages
from routespace.train.processes import together
from routespace.train.recording import Recorder
from routespace.train.step_loss import Losses, Outcome
from routespace.train.teacher import Teacher


class Passes(Protocol):
    """Forward and backward passes of one step."""

    @property
    def teaches(self) -> bool:
        """Whether there are soft labels."""
        ...

    def __call__(self, batch: Sequence[Group], progress: float, step: int) -> Losses:
        """A batch → losses; gradients stay behind.

        Args:
            batch: its groups.
            progress: share of the training that is done.
            step: optimiser steps that are done.
        """
        ...


@dataclass(frozen=True)
class Runner:
    """One pass forward and back through network and losses.

    Attributes:
        step_loss: a `StepLoss`, in whatever wrapper makes several processes agree.
        accelerator: scales and synchronises.
        teacher: outside the network, or None.
        own_images: what it sees in place of a step's images; None for these.
        recorder: makes passes that may be recorded; None makes each as ever.
    """

    step_loss: Callable[..., Outcome]
    accelerator: Accelerator
    teacher: Teacher | None = None
    own_images: OwnImages | None = None
    recorder: Recorder | None = None

    def __call__(self, batch: Sequence[Group], progress: float, *, last: bool = True, **options: Any) -> Outcome:
        """The pass; gradients are added to those that are there, and shared by all processes at the `last` one."""
        if self.recorder is not None:
            return self.recorder(self._pass, batch, progress, **options)
        with nullcontext() if last else self._alone():
            return self._pass(batch, progress, **options)

    def _pass(self, batch: Sequence[Group], progress: float, **options: Any) -> Outcome:
        outcome = self.step_loss(batch, progress, **options)
        self.accelerator.backward(outcome.losses.loss)
        return outcome

    def told(self, batch: Sequence[Group]) -> list[Tensor] | None:
        """What the teacher says of each group's images, to be asked once a step; None without one."""
        if self.teacher is None:
            return None
        seen = [group.images for group in batch]
        if self.own_images is not None:
            with together():
                seen = self.own_images.take(self.accelerator.device)
        with self.accelerator.autocast():
            return [self.teacher(images) for images in seen]

    def _alone(self) -> AbstractContextManager[Any]:
        wrapped = self.step_loss
        return self.accelerator.no_sync(wrapped) if isinstance(wrapped, nn.Module) else nullcontext()


class OnePass:
    """The network as it decides; the teacher's labels beside the data's where there is one."""

    def __init__(self, run: Runner) -> None:
        self.run, self.teaches = run, run.teacher is not None

    def __call__(self, batch: Sequence[Group], progress: float, step: int) -> Losses:
        """See Passes."""
        return self.run(batch, progress, taught=self.run.told(batch)).losses


class SelfTaught:
    """First everything computed, taught by the data; then routed, taught by the data and by the first pass.

    While the gates are held there is nothing routed to teach, and the step is an ordinary one.

    Raises:
        SpecError: a network without gates.
    """

    def __init__(self, run: Runner, net: TaskNet) -> None:
        if net.architecture.is_static:
            raise SpecError("train.teacher: 'self' needs gates, and this network has none; leave it out")
        self.run, self.net, self.teaches = run, net, True
        self.whole = net.architecture.opened()

    def __call__(self, batch: Sequence[Group], progress: float, step: int) -> Losses:
        """See Passes; the losses are those of the routed pass, `loss` the sum of both."""
        if self.net.deciding.held is not None:
            return self.run(batch, progress).losses
        with self.net.deciding_as(held=self.whole):
            dense = self.run(batch, progress, last=False, budgeted=False)
        routed = self.run(batch, progress, taught=dense.outputs).losses
        return routed._replace(loss=routed.loss.detach() + dense.losses.loss.detach())
