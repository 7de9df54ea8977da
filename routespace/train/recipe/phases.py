"""The phases of a training: each is a plain recipe of its own stretch, and all of them share one clock.

recipe.phase(0)                        the recipe of the first phase; the last one is the recipe's own training
PhaseClock.of(recipe.train, 0)         how far the gates' schedules are in it
check_phases(train, gates, routing)    what of them fits together
"""

from __future__ import annotations

from typing import Any, NamedTuple

from routespace.grid.gate_spec import GateSpec
from routespace.train.recipe.data_kinds import LOCATIONS
from routespace.train.recipe.parts import BudgetSpec, PhaseSpec, TrainSpec
from routespace.train.recipe.teaching import NO_CHOICE

ORDER = ("held", "taught", "free")
GATES_TEXT = {"held": "everything computed", "taught": "gates held open and taught", "free": "gates decide"}


class PhaseClock(NamedTuple):
    """What share of the training is done, as temperature, noise and budget count it: held phases do not.

    Attributes:
        gates: `held`, `taught` or `free`.
        epochs_before: of the earlier phases, held ones too.
        counted_before: of those, the ones that count.
        counted: epochs of all phases that count.
    """

    gates: str
    epochs_before: int
    counted_before: int
    counted: int

    @classmethod
    def of(cls, train: TrainSpec, number: int) -> PhaseClock:
        """That of a phase, counted from 0; the last one is the recipe's own training."""
        epochs = [phase.epochs for phase in train.phases]
        counted = [phase.epochs * (phase.gates != "held") for phase in train.phases]
        gates = train.phases[number].gates if number < len(train.phases) else "free"
        return cls(gates, sum(epochs[:number]), sum(counted[:number]), sum(counted) + train.epochs)

    @property
    def held(self) -> bool:
        """Whether the network is a plain one all through the phase."""
        return self.gates == "held"

    def progress(self, done: int, steps: int) -> float:
        """Share of the training after `done` steps of the phase, whose epochs have `steps`."""
        return 0.0 if self.held else (self.counted_before * steps + done) / max(1, self.counted * steps)


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
        for name in phase.data:
            if name == "kind" or name in LOCATIONS:
                raise ValueError(f"{where} has data.{name}; all phases have the same pictures, leave it out")


def phase_changes(train: TrainSpec, budget: BudgetSpec, number: int, *, base_macs: int) -> dict[str, Any]:
    """The dotted fields by which a phase's recipe differs from the whole one; see `Recipe.phase`."""
    clock = PhaseClock.of(train, number)
    taught = sum(phase.epochs for phase in train.phases if phase.gates == "taught")
    open_frac = max(budget.open_frac, taught / max(1, clock.counted))
    changes: dict[str, Any] = {"train.phases": [], "budget.open_frac": open_frac}
    if number == len(train.phases):
        return changes
    phase = train.phases[number]
    changes |= {f"data.{name}": value for name, value in phase.data.items()}
    changes |= {
        "train.epochs": phase.epochs,
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
    """A phase in words: epochs, image size, what the gates do where there are some; None for the recipe's own."""
    epochs = train.epochs if phase is None else phase.epochs
    gates = f", {GATES_TEXT['free' if phase is None else phase.gates]}" if gated else ""
    return f"{epochs} epoch{'s' if epochs != 1 else ''} at {size[0]}x{size[1]} px{gates}"
