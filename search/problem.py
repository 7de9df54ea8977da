"""Problem: what a study's loop works on, whatever kind of candidate it is about.

    problem = recipe_problem(recipe)          # every candidate is a training of its own
    candidate = problem.decode({"budget.ratio": 0.5})
    problem.evaluate(candidate, workplace)    # {"accuracy": …, "macs": …}

The loop, the sampler and the records know no more of a search than this value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from routespace.search.candidate import Candidate, RecipeCandidate
from routespace.search.evaluator import Evaluator, train_candidate
from routespace.search.objectives import objectives_of
from routespace.search.space import Space
from routespace.train.recipe.recipe import Recipe

if TYPE_CHECKING:
    from routespace.deploy.latency.table import LatencyTable

C = TypeVar("C", bound=Candidate)


@dataclass(frozen=True)
class Problem(Generic[C]):
    """A search, as its loop sees it.

    Attributes:
        space: the points.
        decode: dotted field → value, as the space decodes them → the candidate; raises RoutespaceError for a point
            that means none.
        evaluate: candidate → metrics.
        objectives: names of the metrics that count, in order.
        limits: resource → the most of it; what a candidate plans to pass is not evaluated.
    """

    space: Space
    decode: Callable[[Mapping[str, Any]], C]
    evaluate: Evaluator[C]
    objectives: tuple[str, ...]
    limits: Mapping[str, float]


def recipe_problem(
    recipe: Recipe,
    table: LatencyTable | None = None,
    evaluator: Evaluator[RecipeCandidate] | None = None,
) -> Problem[RecipeCandidate]:
    """The problem that a recipe's `search` section poses.

    Args:
        recipe: with a search.
        table: predicts times.
        evaluator: evaluates a recipe; None trains it.

    Raises:
        SpecError: nothing to search, or a field or objective that is not allowed.
    """
    search, space, objectives = recipe.require_search(), Space.of(recipe), objectives_of(recipe)
    chosen = evaluator or partial(train_candidate, objectives=objectives, table=table)
    return Problem(
        space=space,
        decode=lambda changes: RecipeCandidate.of(recipe, changes, table),
        evaluate=chosen,
        objectives=objectives,
        limits=search.limits,
    )
