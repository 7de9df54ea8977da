"""Resources: what is limited or minimised, each told in one line of one table.

    RESOURCES["macs"].terms(edge, gate)            what an edge with its gate takes, by what has to run for it
    RESOURCES["macs"].used(usage, edge, gate)      the same at a measured usage

Limits, `select`, `derive`, cards and the `cost` command go by this table, so a new resource is one more line here:

    "energy_uj": Resource("energy", "µJ", lambda edge, gate: Terms(
        0, 4.6e-6 * edge.fixed_macs, 4.6e-6 * edge.routed_macs, 4.6e-6 * gate.macs))

A resource follows from the price of an edge and its gate, or it is measured: then whoever limits it brings
`MeasuredPrices`, as a latency table does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from routespace.errors import SpecError
from routespace.grid.families.base import EdgeCost
from routespace.grid.usage import EdgeUsage


class Number(Protocol):
    """An int or a float; an array or a tensor for many edges at once."""

    def __add__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...


N = TypeVar("N", bound=Number)


class GateCost(NamedTuple):
    """What one gate costs for one image.

    Attributes:
        params: learned numbers, with those of the path that skipped tokens take.
        macs, bytes: when every decision is evaluated.
        skipped_macs, skipped_bytes: of that path, when every token is skipped; see `grid/skipped.py`.
    """

    params: int
    macs: int
    bytes: int
    skipped_macs: int = 0
    skipped_bytes: int = 0


NO_EDGE = EdgeCost(0, 0, 0, 0, 0)
NO_GATE = GateCost(0, 0, 0)


class Terms(NamedTuple, Generic[N]):
    """What an edge with its gate takes of one resource, for one image, by what has to run for it.

    Attributes:
        always: taken whether it runs or not.
        images: taken as soon as one token of the image is computed.
        tokens: of all tokens together; a share k of computed tokens takes k times this.
        asked: of all decisions of the gate together.
        skipped: of all tokens together where they are skipped; nothing where everything is computed.
    """

    always: N
    images: N
    tokens: N
    asked: N
    skipped: N | Literal[0] = 0

    @property
    def whole(self) -> Any:
        """With everything computed, so that nothing is skipped."""
        return self.always + self.images + self.tokens + self.asked

    def used(self, usage: EdgeUsage) -> Any:
        """always + images·(share of images) + tokens·(share of tokens) + asked·(share of decisions) + skipped·(…).

        Works on numbers, arrays and tensors; integers give an integer.
        """
        spent = self.always + _part(self.images, usage.images)
        spent = spent + _part(self.tokens, usage.tokens) + _part(self.asked, usage.asked)
        return spent + _part(self.skipped, usage.skipped)


def _part(amount: Number | int, share: Any) -> Any:
    """amount·share; of nothing it is the whole number 0, so that a count does not become a float."""
    return 0 if isinstance(amount, int) and not amount else amount * share


@dataclass(frozen=True)
class Resource:
    """Something that is limited or minimised.

    Attributes:
        label: what a column of it is called.
        unit: of one image's amount.
        terms: how it follows from an edge and its gate; None where it is measured.
        direction: which way is better.
    """

    label: str
    unit: str
    terms: Callable[[EdgeCost, GateCost], Terms[float]] | None
    direction: Literal["minimize", "maximize"] = "minimize"

    def terms_of(self, edge: EdgeCost = NO_EDGE, gate: GateCost = NO_GATE) -> Terms[float]:
        """What an edge and its gate take, by what has to run for it; for resources that follow from prices."""
        assert self.terms is not None, f"{self.label} is measured, it does not follow from prices"
        return self.terms(edge, gate)

    def used(self, usage: EdgeUsage, edge: EdgeCost = NO_EDGE, gate: GateCost = NO_GATE) -> Any:
        """What an edge and its gate take at a measured usage."""
        return self.terms_of(edge, gate).used(usage)

    def whole(self, edge: EdgeCost = NO_EDGE, gate: GateCost = NO_GATE) -> Any:
        """What an edge and its gate take with everything computed."""
        return self.terms_of(edge, gate).whole


RESOURCES: Mapping[str, Resource] = {
    "params": Resource("params", "parameters", lambda edge, gate: Terms(edge.params + gate.params, 0, 0, 0)),
    "macs": Resource(
        "MACs",
        "MACs",
        lambda edge, gate: Terms(0, edge.fixed_macs, edge.routed_macs, gate.macs, gate.skipped_macs),
    ),
    "bytes": Resource(
        "moved",
        "bytes",
        lambda edge, gate: Terms(0, edge.fixed_bytes, edge.routed_bytes, gate.bytes, gate.skipped_bytes),
    ),
    "latency_ms": Resource("latency", "ms", None),
}


class MeasuredPrices(NamedTuple):
    """What the edges of a grid take of a measured resource.

    Attributes:
        edges: edge name → amount, 0 or more; identities may be left out.
        constant: what stem, outputs and head take together.
    """

    edges: Mapping[str, float]
    constant: float = 0.0


def analytic() -> list[str]:
    """Names of the resources that follow from prices, in the table's order."""
    return [name for name, resource in RESOURCES.items() if resource.terms is not None]


def require_analytic(name: str) -> Resource:
    """The resource of that name; raises SpecError unless it follows from prices."""
    if name not in analytic():
        raise SpecError(f"what: {name!r:.60} is not known; allowed: {', '.join(analytic())}")
    return RESOURCES[name]


def joined_limits(limits: Mapping[str, float] | None, macs: float | None) -> dict[str, float]:
    """Limits by resource, and the one on MACs that has an argument of its own.

    Raises:
        SpecError: a limit on something that is no resource, or that is no number; or two limits on MACs.
    """
    if macs is not None and "macs" in (limits or {}):
        raise SpecError("macs: it is limited twice, by macs and by limits['macs']; give one of them")
    joined = dict(limits or {}) | ({} if macs is None else {"macs": macs})
    for name, most in joined.items():
        if name not in RESOURCES:
            raise SpecError(f"limits.{name!s:.60}: no such resource; allowed: {', '.join(RESOURCES)}")
        if isinstance(most, bool) or not isinstance(most, Real) or most != most:
            raise SpecError(f"{name}: {most!r:.60} is not a number; give the most {RESOURCES[name].unit} allowed")
    return joined
