"""The training loop: one `Trainer`, whose whole state fits into a checkpoint.

A step is a pure function of the state before it: batches depend on (seed, epoch, step), every generator's state
is saved, so a run that was stopped and resumed gives the same weights, bit for bit on a CPU.

Shape legend: B images of one process and step.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.utils.model_ema import ModelEmaV3

from routespace.nn.task_net import TaskNet
from routespace.train.checkpoint import random_state, set_random_state
from routespace.train.course import Course, StepClock
from routespace.train.data.skipping import Group
from routespace.train.evaluate import Sampling, evaluate
from routespace.train.holding import Holding
from routespace.train.modes import make_passes
from routespace.train.optim import Stepper
from routespace.train.passes import Runner
from routespace.train.phases import Phase
from routespace.train.processes import any_process, matching_layouts, together
from routespace.train.progress import Progress
from routespace.train.readings import Reading, StepReadings
from routespace.train.recipe.recipe import Recipe
from routespace.train.recording import execution_with, recorder_for
from routespace.train.remarks import ACCURACY, Validation, remarks_on
from routespace.train.spending import Spending
from routespace.train.step_loss import StepLoss
from routespace.train.stopping import DivergedError, StopSignal, TrainingStoppedError, diverged
from routespace.train.sums import EpochSums
from routespace.train.teaching import GateTeacher
from routespace.train.telling import epoch_line, progress_of

AGREE_STEPS = 16  # steps between two votes of several processes on whether one of them was told to stop


class Trainer:
    """Trains a network by a recipe, phase by phase.

    Args:
        recipe: the whole one, whose end the last phase is.
        net: trained in place.
        phases: what is trained with, one after the other.
        accelerator: device, precision and processes.
        report: called with a Progress after every step.

    Attributes:
        course: where training stands: phase, epoch and step.
        records: one dict per finished epoch, the lines of metrics.jsonl.
        seconds: of training, validation included.
    """

    def __init__(
        self,
        recipe: Recipe,
        net: TaskNet,
        phases: Sequence[Phase],
        *,
        accelerator: Accelerator,
        report: Callable[[Progress], None],
    ) -> None:
        self.recipe, self.net, self.course = recipe, net, Course(phases)
        self.accelerator, self.report = accelerator, report
        self.clock = StepClock(recipe.train.clock)
        self.gate_teacher, self.holding = GateTeacher(net), Holding(net)
        self.ema = ModelEmaV3(net, decay=recipe.train.ema_decay) if recipe.train.ema_decay else None
        net.backbone.stem.requires_grad_(not recipe.train.freeze_stem)  # before a wrapper counts what learns
        self._losses = StepLoss(net, self.course.phase.task, None, recipe.train)
        self.step_loss = accelerator.prepare(self._losses)
        self.records: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._begin(0)

    def _begin(self, number: int, former: Spending | None = None) -> None:
        """Turn to a phase, before its first step: weights and what the budget has moved stay, rates begin anew."""
        self.course.turn_to(number)
        phase = self.course.phase
        self.spec, self.task, self.loaders = phase.recipe.train, phase.task, phase.loaders
        self.spending = Spending(
            phase.recipe,
            phase.architecture,
            phase.target_macs,
            base_macs=self.recipe.base_macs(),
            held=phase.clock.held,
        )
        if former is not None:
            self.spending.follow(self._nets, former)
        self._losses.task, self._losses.budget, self._losses.spec = phase.task, self.spending.loss, self.spec
        self.stepper = Stepper(self.net, self.spec, self.accelerator, self.course.schedule_steps)
        recorder = recorder_for(phase.recipe, self._losses, self.gate_teacher, self.accelerator)
        for net in self._nets:
            net.decide(execution=execution_with(recorder, net, self.spec.execution))
        runner = Runner(self.step_loss, self.accelerator, phase.teacher, phase.own_images, recorder)
        self.passes = make_passes(runner, self.net, phase.recipe, self.loaders.steps)
        self.sums = EpochSums(self.task.metric.name)
        needed = self.spending.loss is not None or self.spec.seconds is not None
        self.readings = StepReadings(self.accelerator, needed=needed)

    @property
    def base_macs(self) -> int:
        """MACs that the phase's ratios are shares of."""
        return self.spending.base_macs

    @property
    def target_macs(self) -> int | None:
        """The phase's budget."""
        return self.course.phase.target_macs

    @property
    def _nets(self) -> list[TaskNet]:
        """The network that trains, and the moving average of its weights, where there is one."""
        return [self.net, *([self.ema.module] if self.ema is not None else [])]

    @property
    def final_net(self) -> TaskNet:
        """The network to validate and save: the moving average, where there is one."""
        return self.ema.module if self.ema is not None else self.net

    @property
    def last_task_loss(self) -> float | None:
        """The task's loss on the training images of the last epoch; None before one."""
        return self.records[-1]["task_loss"] if self.records else None

    def fit(self, stop: StopSignal, save: Callable[[], None]) -> None:
        """Train until the end of the last phase; `save` is called at checkpoints.

        Raises:
            TrainingStoppedError: a signal came; the checkpoint is saved.
            DivergedError: the loss is no number any more.
        """
        self._fit_phase(stop, save)
        while not self.course.ends:
            self._begin(self.course.number + 1, self.spending)
            self._fit_phase(stop, save)

    def _fit_phase(self, stop: StopSignal, save: Callable[[], None]) -> None:
        course = self.course
        while not course.phase_ends:
            with matching_layouts(self.net):
                self._train_epoch(stop, save)
            self.records.append(self._record())
            course.end_epoch()
            self.sums.clear()
            if course.epochs_done % self.spec.checkpoint_epochs == 0 or course.phase_ends:
                save()
            if self._told_to_stop(stop) and not course.ends:
                self._stop(stop, save)

    def _train_epoch(self, stop: StopSignal, save: Callable[[], None]) -> None:
        course = self.course
        course.phase.set_epoch(course.epochs_done, course.step)
        self.step_loss.train()
        start, first = time.perf_counter(), course.step
        self.clock.start()
        for batch in self._batches():
            self._step([self._prepared(group) for group in batch])
            course.stepped()
            if self.readings.are_many or course.step == course.steps:
                self._read()
            self.sums.images_per_s = (course.step - first) * self.spec.batch / (time.perf_counter() - start)
            self.report(self.progress())
            if course.time_is_up:
                break
            if self._told_to_stop(stop):
                self._read()
                self.seconds += time.perf_counter() - start
                self._stop(stop, save)
        self.seconds += time.perf_counter() - start

    def _batches(self) -> Iterator[Any]:
        """This process's batches of the epoch; where one process cannot read its own, all stop."""
        batches = iter(self.loaders.train)
        while True:
            with together():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _prepared(self, group: Group) -> Group:
        return Group(*self.task.prepare(group, self.accelerator.device, training=True))

    def _step(self, batch: Sequence[Group]) -> None:
        """One optimiser step; its numbers are read at once where the next step needs them, or later."""
        course, progress = self.course, self.course.progress()
        self.net.decide(**Sampling.at(self.recipe.gates, progress)._asdict())
        self.stepper.turn_to(course.schedule_at)
        held, shares = self.holding.at(course.phase, progress), self.spending.opened(progress)
        taught = held is not None and not course.phase.clock.held
        with self.net.deciding_as(held=held, shares=shares), self.gate_teacher.watching(batch, on=taught):
            losses = self.passes(batch, progress, course.epochs_done * course.steps + course.step)
        if not course.phase.clock.held:
            self.gate_teacher.teach(self.accelerator)
        self.stepper.step()
        self.net.update_gate_ema()
        if self.ema is not None:
            self.ema.update(self.net)
        self.spending.agree(self._nets, self.accelerator)
        self.readings.add(losses, self._lap())
        if self.readings.each_step:
            self.spending.update(self._nets, self._read(step=course.step)[-1].losses[-1], progress)

    def _lap(self) -> float:
        """Seconds since the step before; where steps are not waited for, up to the last of an epoch."""
        waits = self.spec.seconds is not None or self.course.step + 1 == self.course.steps
        if waits and self.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.accelerator.device)
        return self.clock.lap()

    def _read(self, step: int | None = None) -> list[Reading]:
        """Add up the numbers of the steps since the last reading, and give them.

        Args:
            step: of the epoch, from 0, the last one that is read; None for the one before the course's.
        """
        last, found = self.course.step - 1 if step is None else step, self.readings.take()
        with together():  # all of them see it; one tells
            for number, reading in enumerate(found, last - len(found) + 1):
                if not math.isfinite(reading.losses[0]):
                    raise self._diverged(f"the loss became {reading.losses[0]}", number)
        for reading in found:
            self.sums.add(reading.losses)
            self.course.spend(reading.seconds)
        return found

    def _diverged(self, what: str, step: int) -> DivergedError:
        return diverged(what, self.recipe, epoch=self.course.epochs_done, step=step, steps=self.course.steps)

    def _stop(self, stop: StopSignal, save: Callable[[], None]) -> None:
        save()
        name = "a signal" if stop.caught is None else stop.caught.name
        raise TrainingStoppedError(
            f"{name}: stopped in {self.course.where()}; the checkpoint is saved, go on with --resume",
            by=stop.caught or signal.SIGINT,
        )

    def _told_to_stop(self, stop: StopSignal) -> bool:
        """Whether any process was told to; several ask each other now and then."""
        if self.accelerator.num_processes == 1:
            return stop.caught is not None
        return self.course.step % AGREE_STEPS == 0 and any_process(stop.caught is not None, self.accelerator)

    def _record(self) -> dict[str, Any]:
        """Validate, and sum the epoch up: expected and counted MACs of the same validation images."""
        self.report(self.progress("validate"))
        start = time.perf_counter()
        course = self.course
        last = Sampling.at(self.recipe.gates, course.progress_before_last())
        if self.spec.mode == "sandwich":  # gates that nobody trains are open, and sampling them tells nothing
            last = last._replace(noise=0.0)
        try:
            found = evaluate(self._validated, self.loaders.val, task=self.task, sampling=last)
        except DivergedError as error:
            raise self._diverged("the validation loss is not finite", course.steps) from error
        self.seconds += time.perf_counter() - start
        line = epoch_line(
            course,
            self.sums,
            self.spending,
            found=found,
            sampling=last,
            teaches=self.passes.teaches,
            lr=self.stepper.lr,
            seconds=self.seconds,
        )
        means = self.sums.means
        self.spending.correct(means["macs"], found["counted_macs"], course.progress_at_epoch())
        return line | {"remarks": self.remarks(found, means["task_loss"], course.judged())}

    def remarks(self, found: Mapping[str, Any], task_loss: float | None, progress: float) -> list[str]:
        """What looks wrong in a validation; arguments as in `remarks_on`."""
        shares = self.spending.shares.final if self.spending.shares is not None else None
        seen = Validation(found["usage"], found["counted_macs"], task_loss, progress, found.get(ACCURACY))
        validated = self._validated.architecture
        return remarks_on(seen, self.course.phase.recipe, validated, shares=shares, target=self.target_macs)

    @property
    def _validated(self) -> TaskNet:
        return self.holding.as_meant(self.final_net, self.course.phase)

    def progress(self, stage: str = "train") -> Progress:
        """How far training is."""
        return progress_of(self.course, self.sums, self.spending, stage=stage, lines=self.records)

    def state(self) -> dict[str, Any]:
        """Everything that a checkpoint holds; every process must call it."""
        return {
            "net": self.net.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "optimizer": self.stepper.state(),
            **self.spending.state(),
            **self.course.state(),
            "sums": self.sums.values,
            "records": self.records,
            "seconds": self.seconds,
            "random": gather_object([random_state()]),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._begin(state.get("phase", 0))
        self.net.load_state_dict(state["net"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.stepper.load_state(state["optimizer"])
        self.spending.load_state(self._nets, state)
        self.course.load_state(state)
        self.sums.load(state["sums"], state["step"])
        self.records, self.seconds = list(state["records"]), state["seconds"]
        if self.course.done:  # as the last step left it
            last = Sampling.at(self.recipe.gates, self.course.progress_before_last())
            self.net.decide(**last._asdict())
        rank = self.accelerator.process_index
        if rank < len(state["random"]):
            set_random_state(state["random"][rank])
