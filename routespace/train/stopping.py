"""Why a training ends before its last epoch: it diverged, another process ended it, or a signal came.

SIGTERM (a cluster's preemption) and SIGINT (Ctrl-C) end it cleanly.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from routespace.errors import RoutespaceError

if TYPE_CHECKING:
    from routespace.train.recipe.recipe import Recipe

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class TrainingStoppedError(RoutespaceError):
    """A signal ended the training; its checkpoint is saved.

    Attributes:
        by: the signal; SIGINT where another process had it.
    """

    def __init__(self, message: str, *, by: signal.Signals = signal.SIGINT) -> None:
        super().__init__(message)
        self.by = by


class DivergedError(RoutespaceError):
    """A network gives no finite numbers any more."""


class PeerError(RoutespaceError):
    """Another of several processes ended the training; that one has told why."""


def calmer(recipe: Recipe) -> list[str]:
    """The fields that calm a training that diverges when they are lowered, with what they are now."""
    train, gated = recipe.train, recipe.is_gated
    fields = {"train.lr": train.lr}
    if gated:
        fields["train.gate_lr"] = train.lr if train.gate_lr is None else train.gate_lr
    if gated and recipe.budget.wanted:
        fields["budget.weight"] = recipe.budget.weight
    if train.clip_grad is not None:
        fields["train.clip_grad"] = train.clip_grad
    found = [f"{name} (now {value:g})" for name, value in fields.items()]
    return found if train.clip_grad is not None else [*found, "or set train.clip_grad"]


def diverged(what: str, recipe: Recipe, *, epoch: int, step: int, steps: int) -> DivergedError:
    """An error that tells what became of a training, where, and what would calm it.

    Args:
        what: the network gives in place of numbers.
        recipe: of the training.
        epoch, step: from 0; as many steps as an epoch has mean its end.
        steps: of an epoch.
    """
    where = "after its last step" if step == steps else f"step {step + 1} of {steps}"
    lower = ", ".join(calmer(recipe))
    return DivergedError(f"train: {what} in epoch {epoch + 1}, {where}: the training diverged; lower {lower}")


def is_first_process() -> bool:
    """Whether this process speaks for all that train together; asked before torch is there."""
    return os.environ.get("RANK", "0") == "0"


class StopSignal:
    """While active, the first SIGTERM or SIGINT is only noted in `caught`; a second one acts as usual."""

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
