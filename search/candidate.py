"""A point of the space, decoded: the recipe it means, what it will cost, and what makes it the same as another.

candidate = Candidate.of(recipe, {"budget.ratio": 0.3})     # SpecError, GridError: no such recipe
candidate.key, candidate.macs, candidate.violations         # nothing is trained for these
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.spec import content_hash
from routespace.search.latency import missing_table, planned_ms
from routespace.search.space import require_search
from routespace.train.recipe.recipe import Recipe

if TYPE_CHECKING:
    from routespace.deploy.latency.table import LatencyTable

# Where a run happens, in how much memory, and how often it is saved is no part of what it finds.
ELSEWHERE = {"data": {"root", "workers"}, "train": {"device", "checkpoint_epochs", "grad_checkpointing"}}


@dataclass(frozen=True)
class Candidate:
    """What a trial will train.

    Attributes:
        recipe: the trial's own recipe; it has no search of its own.
        architecture: the part of the grid that it trains.
        macs: MACs of one image it aims at: the budget, or the whole architecture where there is none.
        params: parameters of the trained network, gates included.
        latency_ms: milliseconds of one image that a latency table predicts for that; None without a table.
        key: content hash of all that the outcome depends on: equal keys are trained once.
        violations: limit's name → by which share it is passed: .1 is ten per cent above, 0 and less within.
    """

    recipe: Recipe
    architecture: Architecture
    macs: int
    params: int
    latency_ms: float | None
    key: str
    violations: Mapping[str, float]

    @classmethod
    def of(cls, recipe: Recipe, changes: Mapping[str, Any], table: LatencyTable | None = None) -> Candidate:
        """Decode a point.

        Args:
            recipe: the study's recipe.
            changes: dotted field → value, as the space decodes them; they win over `search.overrides`.
            table: predicts times; a limit of latency needs one.

        Raises:
            RoutespaceError: the values do not fit together, or a limit of latency has no table of this grid.
        """
        from routespace.train.budget import check_budget  # torch: not needed to look at a study

        search = require_search(recipe)
        own = recipe.override({**search.overrides, **changes, "search": None})
        architecture = own.architecture()
        cost = architecture_cost(architecture, gates=own.gates)
        target = check_budget(own, architecture)
        macs = int(cost.macs) if target is None else target
        if table is None and search.limits.latency_ms is not None:
            raise missing_table(search.limits.latency_ms)
        found = cls(
            recipe=own,
            architecture=architecture,
            macs=macs,
            params=int(cost.params),
            latency_ms=None if table is None else planned_ms(table, own, architecture, macs=macs),
            key=_key(own, architecture),
            violations={},
        )
        over = {name: excess(found.planned[name], limit) for name, limit in search.limits.given.items()}
        return replace(found, violations=over)

    @property
    def planned(self) -> dict[str, float]:
        """What is known before training: macs, params and, by a table, latency_ms."""
        known: dict[str, float] = {"macs": self.macs, "params": self.params}
        return known if self.latency_ms is None else known | {"latency_ms": self.latency_ms}

    @property
    def feasible(self) -> bool:
        """Whether it keeps every hard limit."""
        return all(share <= 0 for share in self.violations.values())


def excess(value: float, limit: float) -> float:
    """By which share `value` passes `limit`; shares of different limits can be added up."""
    return value / limit - 1


def _key(recipe: Recipe, architecture: Architecture) -> str:
    """Two recipes that train the same network the same way have one key, however they are written."""
    parts = ("data", "train", "task", "seed")
    data = recipe.model_dump(mode="json", include=set(parts))
    for section, names in ELSEWHERE.items():
        data[section] = {name: value for name, value in data[section].items() if name not in names}
    data["architecture"] = architecture.hash
    target = recipe.budget_macs()
    if not architecture.is_static:
        data["gates"] = recipe.gates.model_dump(mode="json")
    if target is not None:
        budget = recipe.budget.model_dump(mode="json", exclude={"macs", "ratio", "of"})
        data["budget"] = budget | {"macs": target, "base_macs": recipe.base_macs()}
    return content_hash(data)


def signature(recipe: Recipe) -> dict[str, Any]:
    """What two workers of one study must agree on: dotted field → value."""
    data = recipe.to_data()
    del data["name"]
    for section, names in ELSEWHERE.items():
        data[section] = {name: value for name, value in data[section].items() if name not in names}
    data["search"] = {key: data["search"][key] for key in ("space", "objectives", "limits", "overrides")}
    flat: dict[str, Any] = {}
    for section, value in data.items():
        nested = value if isinstance(value, dict) else {"": value}
        flat |= {f"{section}.{name}".rstrip("."): entry for name, entry in nested.items()}
    return flat
