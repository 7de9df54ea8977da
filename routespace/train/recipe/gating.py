"""What of a recipe's gates fits together: where they start and what moves them, against routing and kind."""

from __future__ import annotations

from collections.abc import Sequence

from routespace.grid.gate_spec import GateSpec
from routespace.train.recipe.parts import BudgetSpec, TrainSpec

NO_CHOICE = ("static", "none")  # routings without gates


def check_gating(
    train: TrainSpec, gates: GateSpec, budget: BudgetSpec, *, routing: str, split: Sequence[int] | None
) -> None:
    """Raise ValueError, naming the field, for a split, a start or a budget's control that has no meaning here."""
    if split is not None and routing != "static":
        raise ValueError(f"split: it needs routing 'static' (given: {routing!r})")
    if train.start == "staircase" and not gates.can_start_shut:
        raise ValueError("train.start: 'staircase' needs gates that can be nearly closed; kind 'tanh' cannot")
    if budget.control and not gates.has_threshold:
        raise ValueError(
            f"budget.control: {budget.control} moves a threshold; gates of kind 'tanh', with capacity or "
            f"without a learned selection have none, leave control at 0"
        )
    if budget.control and gates.opening == "share":
        raise ValueError("budget.control: gates that open a share meet the budget by it; leave control at 0")
    if train.start == "staircase" and gates.source == "map" and routing not in ("depth", "static"):
        raise ValueError(
            "train.start: 'staircase' shuts rows by their biases, but with gates.source 'map' one row's "
            "weights decide for all; set train.start to open"
        )
