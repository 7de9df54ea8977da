"""Where a training stands on its way through its phases: in steps of epochs, or by the clock.

    course = Course(phases)
    clock = StepClock(recipe.train.clock)
    clock.start()                       # before a stretch of steps
    course.spend(clock.lap())           # after each, with
    course.stepped()
    course.progress()                   # the share that gates and budget go by

A phase ends with its last epoch; one with `train.seconds` ends with the step in which its time is spent, and its
last epoch then is a part of one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from routespace.train.phases import Phase

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}  # in seconds
SCHEDULE_PARTS = 1_000_000  # of a phase's time, which its rates of learning follow step by step


class StepClock:
    """Measures what training steps take.

    Args:
        kind: `wall` or `processor`.
    """

    def __init__(self, kind: str) -> None:
        self._now = CLOCKS[kind]
        self.start()

    def start(self) -> None:
        """Leave out what was before."""
        self._last = self._now()

    def lap(self) -> float:
        """Seconds since the last call, or the start."""
        before, self._last = self._last, self._now()
        return self._last - before


@dataclass
class Tally:
    """What was done of a phase.

    Attributes:
        steps: optimiser steps.
        spent_s: what they took by the training's clock.
        last_s: the same before the last of them.
        epoch_s: before the first of the epoch under way.
    """

    steps: int = 0
    spent_s: float = 0.0
    last_s: float = 0.0
    epoch_s: float = 0.0


class Course:
    """Where a training stands on its way through the phases.

    Args:
        phases: one after the other.

    Attributes:
        number, epoch, step: phases done, epochs done in this one, steps done in the next epoch.
        epochs_before: epochs done in the phases before.
        tallies: what was done of each phase.
    """

    def __init__(self, phases: Sequence[Phase]) -> None:
        self.phases = tuple(phases)
        self.number = self.epoch = self.step = self.epochs_before = 0
        self.tallies = [Tally() for _ in self.phases]

    def turn_to(self, number: int) -> None:
        """The beginning of a phase."""
        self.epochs_before += self.epoch
        self.number, self.epoch, self.step = number, 0, 0

    def spend(self, seconds: float) -> None:
        """A step took so long."""
        self.tally.last_s, self.tally.spent_s = self.tally.spent_s, self.tally.spent_s + seconds

    def stepped(self) -> None:
        """A step was done."""
        self.step, self.tally.steps = self.step + 1, self.tally.steps + 1

    def end_epoch(self) -> None:
        """An epoch was done, or the part of one that the time was for."""
        self.epoch, self.step = self.epoch + 1, 0
        self.tally.epoch_s = self.tally.spent_s

    @property
    def phase(self) -> Phase:
        """The one under way."""
        return self.phases[self.number]

    @property
    def tally(self) -> Tally:
        """What was done of the phase under way."""
        return self.tallies[self.number]

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch of this phase."""
        return self.phase.loaders.steps

    @property
    def done(self) -> int:
        """Steps of this phase, were all epochs before this one whole."""
        return self.epoch * self.steps + self.step

    @property
    def epochs(self) -> int | None:
        """Of all phases together; None where the clock decides."""
        spans = [phase.recipe.train for phase in self.phases]
        return sum(span.epochs for span in spans) if all(span.seconds is None for span in spans) else None

    @property
    def epochs_done(self) -> int:
        """Of all phases together, a part of one counted as a whole."""
        return self.epochs_before + self.epoch

    @property
    def phase_ends(self) -> bool:
        """Whether no epoch of this phase is left, or no time."""
        span = self.phase.recipe.train
        return self.epoch >= span.epochs if span.seconds is None else self.time_is_up

    @property
    def time_is_up(self) -> bool:
        """Whether the phase goes by the clock, and its time is spent."""
        seconds = self.phase.recipe.train.seconds
        return seconds is not None and self.tally.spent_s >= seconds

    @property
    def ends(self) -> bool:
        """Whether nothing is left at all."""
        return self.phase_ends and self.number + 1 == len(self.phases)

    def progress(self) -> float:
        """Share of the training, as the gates' schedules count it, now."""
        return self._progress(self.done, self.tally.spent_s)

    def progress_before_last(self) -> float:
        """The same before the last step."""
        return self._progress(max(0, self.done - 1), self.tally.last_s)

    def progress_at_epoch(self) -> float:
        """The same before the first step of the epoch under way."""
        return self._progress(self.epoch * self.steps, self.tally.epoch_s)

    def judged(self) -> float:
        """The same after the epoch under way, for remarks: while gates are held, the share of this phase."""
        span, done = self.phase.recipe.train, (self.epoch + 1) * self.steps
        if not self.phase.clock.held:
            return self._progress(done, self.tally.spent_s)
        if span.seconds is not None:
            return self.tally.spent_s / span.seconds
        return done / max(1, span.epochs * self.steps)

    def _progress(self, done: int, spent_s: float) -> float:
        clock = self.phase.clock
        timed = self.phase.recipe.train.seconds is not None
        return clock.progress(spent_s) if timed else clock.progress(done, self.steps)

    @property
    def schedule_steps(self) -> float:
        """Updates of the rates of learning that make up an epoch, as the recipe counts them."""
        span = self.phase.recipe.train
        return self.steps if span.seconds is None else SCHEDULE_PARTS / span.epochs

    @property
    def schedule_at(self) -> int:
        """At which of them the phase stands."""
        seconds = self.phase.recipe.train.seconds
        if seconds is None:
            return self.done
        return min(SCHEDULE_PARTS - 1, int(SCHEDULE_PARTS * self.tally.spent_s / seconds))

    def eta_s(self, images_per_s: float) -> float | None:
        """Seconds of training that are left; None where the pace of images is needed and not known (0).

        Images of later phases count by their area, as images of this one.
        """
        here = math.prod(self.phase.recipe.grid.image_size)
        seconds, images = 0.0, 0.0
        for number, phase in enumerate(self.phases[self.number :], self.number):
            span, tally = phase.recipe.train, self.tallies[number]
            if span.seconds is not None:
                seconds += max(0.0, span.seconds - tally.spent_s)
            else:
                left = span.epochs * phase.loaders.steps - (self.done if number == self.number else 0)
                images += math.prod(phase.recipe.grid.image_size) / here * left * self.phase.recipe.train.batch
        if not images:
            return seconds
        return seconds + images / images_per_s if images_per_s else None

    @property
    def told(self) -> list[dict[str, Any]]:
        """What result.json tells of each phase: epochs and steps that were done, and what the steps took."""
        return [
            {
                "epochs": _epochs_done(phase, tally),
                "steps": tally.steps,
                "seconds": round(tally.spent_s, 2),
                "image_size": list(phase.recipe.grid.image_size),
                "gates": phase.clock.gates,
                "execution": phase.recipe.train.execution,
            }
            for phase, tally in zip(self.phases, self.tallies, strict=True)
        ]

    def where(self) -> str:
        """Where it stands, in words."""
        epochs, seconds = self.epochs, self.phase.recipe.train.seconds
        told = f"epoch {self.epochs_done + 1}{'' if epochs is None else f' of {epochs}'}"
        if seconds is not None:
            return f"{told} after {self.tally.spent_s:.1f} of {seconds:g} s"
        return f"{told} after step {self.step} of {self.steps}"

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "phase": self.number,
            "epoch": self.epoch,
            "step": self.step,
            "epochs_before": self.epochs_before,
            "tallies": [asdict(tally) for tally in self.tallies],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave; a checkpoint of before there were clocks tells no tallies."""
        self.number, self.epoch, self.step = state.get("phase", 0), state["epoch"], state["step"]
        before = sum(phase.recipe.train.epochs for phase in self.phases[: self.number])
        self.epochs_before = state.get("epochs_before", before)
        if "tallies" in state:
            self.tallies = [Tally(**tally) for tally in state["tallies"]]


def _epochs_done(phase: Phase, tally: Tally) -> float:
    """Whole epochs, or by the clock whatever the time was for."""
    span = phase.recipe.train
    return span.epochs if span.seconds is None else round(tally.steps / phase.loaders.steps, 2)
