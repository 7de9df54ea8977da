"""What the demo does, and how it announces its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from routespace.train.recipe.recipe import Recipe

STEPS = 6


@dataclass(frozen=True)
class Journey:
    """What the demo does, and where.

    Attributes:
        out: folder of everything.
        recipe: of the routed supernet.
        search: changes of the recipe for the search's trials.
        fine_tuning: changes of the recipe of what is extracted.
        trials: of the search.
        best_plain: whether splits, widths and image sizes of the plain network are tried first.
    """

    out: Path
    recipe: Recipe
    search: Mapping[str, Any]
    fine_tuning: Mapping[str, Any]
    trials: int
    best_plain: bool = False

    @property
    def macs(self) -> int:
        """The budget: the most MACs of an image."""
        macs = self.recipe.budget_macs()
        assert macs is not None  # the demo's recipe has one
        return macs


def heading(number: int, text: str) -> None:
    """Announce a step."""
    print(f"\n── {number}/{STEPS} {text} ──\n", flush=True)
