"""Passes of a training step as CUDA graphs: called kernel by kernel a few times, recorded, and then replayed.

    recorder = Recorder(losses, gate_teacher, CudaTape(device))
    outcome = recorder(make, batch, progress)       # as make(batch, progress), gradients too

A GPU runs the kernels of a small network's step in a tenth of the time in which Python calls them, one by one.
A graph calls all of them at once. What it reads are the tensors that it was recorded with, so a batch is copied to
where the first one was; what it gives lies in the same place each time.

Everything else of a pass is in its kernels for good: temperature, noise, shares, threshold, the budget's target.
A pass of which these numbers move from step to step is made as ever. As soon as they have been the same for
`SAME` passes, as they are in a plain network and after a budget has settled, the pass is recorded; when they move
again, what was recorded is dropped. A pass that asks the device before it goes on (packed tokens) is never
recorded.

Shape legend: B images of one process and step · C channels · H, W pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.nn.routing.deciding import Execution
from routespace.nn.tape import SAME, CudaTape, Tape
from routespace.nn.task_net import TaskNet
from routespace.train.data.skipping import Group
from routespace.train.recipe.recipe import Recipe
from routespace.train.step_loss import Outcome, StepLoss
from routespace.train.teaching import DensePass, GateTeacher

MOST_KNOWN = 64  # kinds of passes that are watched, such as the parts of a sandwich
MOST_RECORDED = 8  # each keeps its gradients, and they share the memory of their passes


@dataclass(frozen=True)
class Recording:
    """One recorded pass.

    Attributes:
        inputs: tensors that it reads.
        outcome: what it gives.
        gradients: each parameter that it reaches, and the gradient that it gives it.
        passes: what it shows to whoever teaches gates.
        replay: runs it.
    """

    inputs: list[Tensor]
    outcome: Outcome
    gradients: list[tuple[nn.Parameter, Tensor]]
    passes: dict[str, list[DensePass]]
    replay: Callable[[], None]


class Recorder:
    """Makes passes, recorded ones where they can be.

    Args:
        losses: network and losses.
        teacher: of gates, who watches dense passes.
        tape: that records.
    """

    def __init__(self, losses: StepLoss, teacher: GateTeacher, tape: Tape) -> None:
        self._losses, self._teacher, self._tape = losses, teacher, tape
        self._same: OrderedDict[Hashable, tuple[Hashable, int]] = OrderedDict()
        self._recorded: OrderedDict[Hashable, Recording] = OrderedDict()

    def __call__(
        self,
        make: Callable[..., Outcome],
        batch: Sequence[Group],
        progress: float,
        *,
        taught: Sequence[Any] | None = None,
        part: TaskNet | None = None,
        budgeted: bool = True,
    ) -> Outcome:
        """The outcome of `make` with the same arguments, which are those of `StepLoss`; gradients are added.

        Raises:
            SpecError: a pass that torch cannot record.
        """
        net = self._losses.net if part is None else part
        alone = taught is None
        leaves, shape = tree_flatten((list(batch), [] if taught is None else list(taught)))

        def call(given: list[Any]) -> Outcome:
            groups, labels = tree_unflatten(given, shape)
            return make(groups, progress, taught=None if alone else labels, part=part, budgeted=budgeted)

        if not (asks_nothing(net) and all(isinstance(leaf, Tensor) for leaf in leaves)):
            return self._tape.live(lambda: call(leaves))
        places = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        kind = net.architecture, net.deciding.held, budgeted, alone, self._teacher.is_watching, places, str(shape)
        numbers = self._numbers(net, progress, budgeted=budgeted)
        if self._settled(kind, numbers):
            if kind not in self._recorded:
                self._recorded[kind] = self._record(call, leaves)
            self._recorded.move_to_end(kind)
            if len(self._recorded) > MOST_RECORDED:
                self._recorded.popitem(last=False)
            return self._replay(self._recorded[kind], leaves)
        self._recorded.pop(kind, None)  # its memory is needed for what comes
        return self._tape.live(lambda: call(leaves))

    def _numbers(self, net: TaskNet, progress: float, *, budgeted: bool) -> Hashable:
        """All numbers that a pass is made with and that may move from one to the next."""
        deciding, budget = net.deciding, self._losses.budget
        wanted = budget.numbers(progress) if budget is not None and budgeted else None
        if net.architecture.is_static or deciding.held is not None:
            return wanted  # no gate decides
        shares = None if deciding.shares is None else tuple(deciding.shares.items())
        return deciding.gates, deciding.temperature, deciding.noise, shares, wanted

    def _settled(self, kind: Hashable, numbers: Hashable) -> bool:
        """Whether as many passes of a kind as are enough had these numbers."""
        before, count = self._same.pop(kind, (None, 0))
        count = count + 1 if before == numbers else 1
        self._same[kind] = numbers, count
        if len(self._same) > MOST_KNOWN:
            self._same.popitem(last=False)
        return count > SAME

    def _record(self, call: Callable[[list[Any]], Outcome], leaves: list[Any]) -> Recording:
        inputs = [leaf.clone() for leaf in leaves]
        parameters = list(self._losses.net.parameters())
        before = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None  # so that a replay gives gradients, and adds none to those of the step before
        try:
            with self._teacher.apart() as passes:
                outcome, replay = self._tape.record(lambda: _bare(call(inputs)))
        except RuntimeError as error:
            raise SpecError(
                f"train.cuda_graphs: this network's training step cannot be recorded as a CUDA graph "
                f"({str(error).partition(chr(10))[0]}); set train.cuda_graphs=false"
            ) from error
        gradients = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
        seen = {name: [one.bare() for one in several] for name, several in passes.items()}
        return Recording(inputs, outcome, gradients, seen, replay)

    def _replay(self, recording: Recording, leaves: list[Any]) -> Outcome:
        torch._foreach_copy_(recording.inputs, leaves)
        recording.replay()
        for parameter, gradient in recording.gradients:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self._teacher.add(recording.passes)
        return recording.outcome


def recorder_for(
    recipe: Recipe, losses: StepLoss, teacher: GateTeacher, accelerator: Accelerator
) -> Recorder | None:
    """What makes the passes of a phase; None where torch makes each.

    That is so on other devices than a GPU, with several processes, compiled blocks or checkpointing, and for tasks
    whose losses ask the device.
    """
    spec, alone = recipe.train, accelerator.distributed_type is DistributedType.NO
    plain = not (spec.compile or spec.grad_checkpointing)
    if not (spec.cuda_graphs and plain and alone and recipe.task.recordable and accelerator.device.type == "cuda"):
        return None
    return Recorder(losses, teacher, CudaTape(accelerator.device))


def execution_with(recorder: Recorder | None, net: TaskNet, wanted: Execution) -> Execution:
    """How a phase computes a network.

    With a recorder `auto` masks, which takes less time than to call what packing saves; soft gates need neither.
    """
    masks = wanted == "auto" and recorder is not None and not shuts_nothing(net)
    return "dense" if masks else wanted


def waiting_line(recipe: Recipe, architecture: Architecture, device: torch.device) -> str | None:
    """What to say of a training on a GPU that will not be recorded though it could be; None where nothing is."""
    packs = not architecture.is_static and recipe.train.execution == "packed"
    if not (packs and recipe.train.cuda_graphs and recipe.task.recordable and device.type == "cuda"):
        return None
    return (
        "train.execution: 'packed' asks the GPU in each step how many tokens were kept; 'auto' masks the others, "
        "and its steps are recorded as CUDA graphs, with which small networks train several times as fast"
    )


def shuts_nothing(net: TaskNet) -> bool:
    """Whether a network in training computes everything whatever its gates say: it has none, or soft ones."""
    gates = net.gate_spec
    soft = gates.relaxation == "soft" and gates.kind != "tanh" and gates.selection == "learned"
    return net.architecture.is_static or (soft and net.deciding.held is None)


def asks_nothing(net: TaskNet) -> bool:
    """Whether a network in training calls the same kernels whatever it sees: what gates shut is masked at most."""
    return shuts_nothing(net) or net.deciding.execution == "dense"


def _bare(outcome: Outcome) -> Outcome:
    """The same without the way back, which is recorded."""
    found: Outcome = tree_map_only(Tensor, torch.detach, outcome)
    return found
