"""The phases of a training: each is a plain recipe of its own stretch, and all of them share one clock.

recipe.phase(0)                        the recipe of the first phase; the last one is the recipe's own training
PhaseClock.of(recipe.train, 0)         how far the gates' schedules are in it
check_phases(train, gates, routing)    what of them fits together
"""

from __future__ import annotations

from typing import Any, NamedTuple

from routespace.grid.gate_spec import GateSpec
from routespace.train.recipe.data_kinds import LOCATIONS
from routespace.train.recipe.gating import NO_CHOICE
from routespace.train.recipe.parts import BudgetSpec, PhaseSpec, TrainSpec

ORDER = ("held", "taught", "free")
GATES_TEXT = {"held": "everything computed", "taught": "gates held open and taught", "free": "gates decide"}


class PhaseClock(NamedTuple):
    """What share of the training is done, as temperature, noise and budget count it: held phases do not.

    Attributes:
        gates: `held`, `taught` or `free`.
        counted_before: length of the earlier phases that count, in epochs, or in seconds by the clock.
        counted: length of all that count.
    """

    gates: str
    counted_before: float
    counted: float

    @classmethod
    def of(cls, train: TrainSpec, number: int) -> PhaseClock:
        """That of a phase, counted from 0; the last one is the recipe's own training."""
        counted = [phase.length * (phase.gates != "held") for phase in train.phases]
        gates = train.phases[number].gates if number < len(train.phases) else "free"
        return cls(gates, sum(counted[:number]), sum(counted) + train.length)

    @property
    def held(self) -> bool:
        """Whether the network is a plain one all through the phase."""
        return self.gates == "held"

    def progress(self, done: float, steps: int = 1) -> float:
        """Share of the training after `done` steps of the phase, whose epochs have `steps`, or so many seconds."""
        return 0.0 if self.held else (self.counted_before * steps + done) / (self.counted * steps or 1)


def check_phases(train: TrainSpec, gates: GateSpec, routing: str) -> None:
    """Raise ValueError, naming the field, for phases that do not fit together or the rest of a recipe."""
    kinds = [ORDER.index(phase.gates) for phase in train.phases]
    for number, phase in enumerate(train.phases):
        where = f"train.phases: number {number + 1}"
        if number and kinds[number] < kinds[number - 1]:
            raise ValueError(
                f"{where} has gates {phase.gates!r} after {train.phases[number - 1].gates!r}; what was let go is "
                f"not held again: order them held, taught, free"
            )
        if phase.gates == "taught" and gates.teach == "none" and routing not in NO_CHOICE:
            raise ValueError(
                f"{where} has gates 'taught', but gates.teach is 'none'; give teach 'dense', or 'held'"
            )
        if phase.gates != "held" and (phase.seconds is None) != (train.seconds is None) and train.epochs:
            raise ValueError(
                f"{where} goes by {_unit(phase)} and the training by {_unit(train)}; the gates' schedules count "
                f"both, give both the same"
            )
        for name in phase.data:
            if name == "kind" or name in LOCATIONS:
                raise ValueError(f"{where} has data.{name}; all phases have the same pictures, leave it out")


def phase_changes(train: TrainSpec, budget: BudgetSpec, number: int, *, base_macs: int) -> dict[str, Any]:
    """The dotted fields by which a phase's recipe differs from the whole one; see `Recipe.phase`."""
    clock = PhaseClock.of(train, number)
    taught = sum(phase.length for phase in train.phases if phase.gates == "taught")
    open_frac = max(budget.open_frac, taught / (clock.counted or 1))
    changes: dict[str, Any] = {"train.phases": [], "budget.open_frac": open_frac}
    if number == len(train.phases):
        return changes
    phase = train.phases[number]
    changes |= {f"data.{name}": value for name, value in phase.data.items()}
    changes |= {
        "train.epochs": phase.epochs if phase.epochs is not None else max(1, train.epochs),
        "train.seconds": phase.seconds,
        "train.lr": train.lr * phase.lr_factor,
        "train.gate_lr": None if train.gate_lr is None else train.gate_lr * phase.lr_factor,
        "train.weights": None,  # the first phase's network has them
        "train.start": train.start,
    }
    own = {"min_lr": phase.min_lr, "warmup_epochs": phase.warmup_epochs, "execution": phase.execution}
    changes |= {f"train.{name}": value for name, value in own.items() if value is not None}
    if phase.image_size is not None:
        changes["grid.image_size"] = phase.image_size
    if clock.held:
        changes |= {"budget.ratio": None, "budget.macs": None, "budget.control": 0.0}
    elif budget.macs is not None:  # images of another size get the same share of what they take
        changes |= {"budget.ratio": budget.macs / base_macs, "budget.macs": None}
    return changes


def phase_text(phase: PhaseSpec | None, train: TrainSpec, size: tuple[int, int], *, gated: bool) -> str:
    """A phase in words: length, image size, what the gates do where there are some; None for the recipe's own."""
    gates = f", {GATES_TEXT['free' if phase is None else phase.gates]}" if gated else ""
    return f"{length_text(train if phase is None else phase)} at {size[0]}x{size[1]} px{gates}"


def length_text(span: PhaseSpec | TrainSpec) -> str:
    """How long a phase or the recipe's own training is: 8 epochs, or 90 s."""
    if span.seconds is not None:
        return f"{span.seconds:g} s"
    return f"{span.epochs} epoch{'s' if span.epochs != 1 else ''}"


def check_clock(train: TrainSpec, workers: int) -> None:
    """Raise ValueError where the processor's clock would not see what makes the images."""
    if train.clock == "processor" and workers:
        raise ValueError(
            f"train.clock: 'processor' does not see what {workers} loader processes take; give wall, or set "
            f"data.workers to 0"
        )


def _unit(span: PhaseSpec | TrainSpec) -> str:
    return "epochs" if span.seconds is None else "seconds"
