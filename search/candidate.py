"""A point of a space, decoded: what it means, what it will cost, and what makes it the same as another.

    candidate = RecipeCandidate.of(recipe, {"budget.ratio": 0.3})    # SpecError, GridError: no such recipe
    candidate.key, candidate.planned, candidate.violations           # nothing is trained for these

`Candidate` is all that a study asks of one. A `RecipeCandidate` is a training of its own; another kind, such as a
part of one trained supernet, needs these five attributes and an `Evaluator` (evaluator.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from routespace.checked import checked
from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.spec import content_hash
from routespace.search.latency import missing_table, planned_ms, planned_usage
from routespace.train.recipe.identity import without_elsewhere
from routespace.train.recipe.recipe import Recipe

if TYPE_CHECKING:
    from routespace.deploy.latency.table import LatencyTable


class Candidate(Protocol):
    """What a study knows of a point before it is evaluated."""

    @property
    def key(self) -> str:
        """Content hash of all that the outcome depends on: equal keys are evaluated once."""
        ...

    @property
    def architecture(self) -> Architecture:
        """The part of the grid that is evaluated."""
        ...

    @property
    def planned(self) -> Mapping[str, float]:
        """Resource → what one image will take, as far as it is known beforehand."""
        ...

    @property
    def violations(self) -> Mapping[str, float]:
        """Limit → by which share it is passed: 0.1 is ten per cent above, 0 and less within."""
        ...

    @property
    def feasible(self) -> bool:
        """Whether it keeps every hard limit."""
        ...


@dataclass(frozen=True)
class RecipeCandidate:
    """A point that is trained from its first weight on.

    Attributes:
        recipe: the trial's own recipe; it has no search of its own.
        architecture: the part of the grid that it trains.
        planned: resource → what one image will take, gates included: of `macs` the budget, where there is one;
            of the others what they are at these MACs if all gates let the same share through. `latency_ms` by a
            latency table only.
        key: content hash of all that the outcome depends on: equal keys are trained once.
        violations: limit's name → by which share it is passed: 0.1 is ten per cent above, 0 and less within.
    """

    recipe: Recipe
    architecture: Architecture
    planned: Mapping[str, float]
    key: str
    violations: Mapping[str, float]

    @classmethod
    @checked
    def of(cls, recipe: Recipe, changes: Mapping[str, Any], table: LatencyTable | None = None) -> RecipeCandidate:
        """Decode a point.

        Args:
            recipe: the study's recipe.
            changes: dotted field → value, as the space decodes them; they win over `search.overrides`.
            table: predicts times; a limit of latency needs one.

        Raises:
            RoutespaceError: the values do not fit together, or a limit of latency has no table of this grid.
        """
        from routespace.train.budget import check_budget  # torch: not needed to look at a study
        from routespace.train.shares import RowShares

        search = recipe.require_search()
        own = recipe.override({**search.overrides, **changes, "search": None})
        architecture = own.architecture()
        target = check_budget(own, architecture)
        RowShares.of(own, architecture, target)  # it refuses what gates that open a share cannot meet
        planned = _planned(own, architecture, target, limits=search.limits, table=table)
        found = cls(own, architecture, planned, _key(own, architecture), violations={})
        return replace(
            found, violations={name: excess(planned[name], limit) for name, limit in search.limits.items()}
        )

    @property
    def feasible(self) -> bool:
        """Whether it keeps every hard limit."""
        return all(share <= 0 for share in self.violations.values())


def _planned(
    recipe: Recipe,
    architecture: Architecture,
    target: int | None,
    *,
    limits: Mapping[str, float],
    table: LatencyTable | None,
) -> dict[str, float]:
    """Resource → amount for one image; raises SpecError for a limit of one that nothing tells beforehand."""
    planned: dict[str, float] = dict(architecture_cost(architecture, gates=recipe.gates).totals)
    if target is not None:
        usage = planned_usage(architecture, recipe.gates, macs=target)
        some = architecture_cost(architecture, gates=recipe.gates, usage=usage).totals
        planned = {**some, "macs": target, "params": planned["params"]}
    if table is not None:
        planned["latency_ms"] = planned_ms(table, recipe, architecture, macs=int(planned["macs"]))
    unknown = [name for name in limits if name not in planned]
    if "latency_ms" in unknown:
        raise missing_table(limits["latency_ms"])
    if unknown:
        raise SpecError(f"search.limits.{unknown[0]}: is known by measuring alone; limit {', '.join(planned)}")
    return planned


def excess(value: float, limit: float) -> float:
    """By which share `value` passes `limit`; shares of different limits can be added up."""
    return value / limit - 1


def _key(recipe: Recipe, architecture: Architecture) -> str:
    """Two recipes that train the same network the same way have one key, however they are written."""
    parts = ("data", "train", "task", "seed")
    data = without_elsewhere(recipe.model_dump(mode="json", include=set(parts)))
    data["architecture"] = architecture.hash
    target = recipe.budget_macs()
    if not architecture.is_static:
        data["gates"] = recipe.gates.model_dump(mode="json")
    if target is not None:
        budget = recipe.budget.model_dump(mode="json", exclude={"macs", "ratio", "of"})
        data["budget"] = budget | {"macs": target, "base_macs": recipe.base_macs()}
    return content_hash(data)
