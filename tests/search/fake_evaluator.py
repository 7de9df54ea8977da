"""A study whose evaluations take no time, for the tests of what a study does whatever a training does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_grid import TINY_GRID

from routespace.search.candidate import RecipeCandidate
from routespace.search.evaluator import Workplace
from routespace.train.recipe.recipe import Recipe

SPACE = {"budget.ratio": {"low": 0.5, "high": 1.3, "step": 0.1}, "grid.depths": [1, [1, 2], [2, 1]]}


def recipe(space: dict[str, Any] | None = None, **search: Any) -> Recipe:
    search = {"trials": 4, "space": space or SPACE, **search}
    return Recipe.parse({"name": "tiny", "grid": TINY_GRID, "data": {"digit_px": [8, 24]}, "search": search})


class FakeEvaluator:
    """Measures without training; remembers every call."""

    def __init__(self, before: Callable[[Recipe, Path], None] | None = None) -> None:
        self.calls: list[tuple[Recipe, Path, bool]] = []
        self.before = before

    def __call__(self, candidate: RecipeCandidate, place: Workplace) -> dict[str, float]:
        recipe, folder = candidate.recipe, place.folder
        self.calls.append((recipe, folder, place.resume))
        if self.before:
            self.before(recipe, folder)
        place.report("one step")
        macs = recipe.budget_macs()
        assert macs is not None
        return {"accuracy": 1 - 1 / macs, "macs": macs, "params": 12.0}

    @property
    def keys(self) -> list[str]:
        plain = {"search": {"space": SPACE}}
        return [RecipeCandidate.of(recipe.override(plain), {}).key for recipe, _, _ in self.calls]


def fresh(folder: Path, *, resume: bool = False, report: Callable[[Any], None] = lambda news: None) -> Workplace:
    """Where a trial is evaluated, outside of any study."""
    folder.mkdir(parents=True, exist_ok=True)
    return Workplace(folder, resume, report)
