"""Deciding: what a forward pass needs to know to decide and to compute what was decided, as one value.

    net.deciding                                       # what is in force
    net.decide(execution="packed")                     # from now on
    with net.deciding_as(execution="auto"): ...        # for a while

Nothing else about a network changes how its gates decide, but their weights and whether they are training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypedDict, Unpack, get_args

from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import SHAPING, GateSpec

Execution = Literal["dense", "packed", "auto"]
# Fields that a gate's modules are made by.
BUILT = (*SHAPING, "window", "capacity")


class Changes(TypedDict, total=False):
    """The fields of Deciding, each of which may be left out."""

    gates: GateSpec
    temperature: float
    noise: float
    held: Architecture | None
    execution: Execution
    shares: Mapping[str, float] | None


@dataclass(frozen=True)
class Deciding:
    """How a network decides.

    Attributes:
        gates: the gates' spec.
        temperature: of their relaxation while training.
        noise: factor of their Gumbel noise while training; at 0 the decisions are those of inference.
        held: an architecture that decides instead of the gates: gates of its edges are open, all others shut. None
            lets the gates decide.
        execution: `dense` computes everything and masks (the reference); `packed` computes the kept tokens alone;
            `auto` chooses per edge by the share that is kept in the batch.
        shares: transformer edge → share of a batch's tokens that its gate opens while training, for gates whose
            `opening` is `share`; None at inference and wherever their own thresholds are to hold.

    Raises:
        SpecError: a value that is not allowed.
    """

    gates: GateSpec
    temperature: float
    noise: float
    held: Architecture | None = None
    execution: Execution = "dense"
    shares: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.gates, GateSpec):
            raise SpecError(f"gates: a {type(self.gates).__name__} was given; give a GateSpec")
        if self.execution not in get_args(Execution):
            raise SpecError(
                f"execution: {self.execution!r} is not allowed; give one of {', '.join(get_args(Execution))}"
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise SpecError(f"temperature: {self.temperature!r} is not allowed; give a number above 0")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise SpecError(f"noise: {self.noise!r} is not allowed; give 0 or a number above it")

    @classmethod
    def at_start(cls, gates: GateSpec, execution: Execution = "dense") -> Deciding:
        """As a network begins: with the temperature and the noise that its gates' training begins with."""
        return cls(gates, gates.temperature, gates.noise, execution=execution)

    def changed(self, **changes: Unpack[Changes]) -> Deciding:
        """The same with other values.

        Raises:
            SpecError: a value that is not allowed, or gates that need other modules than those that are there.
        """
        changed = replace(self, **changes)
        for field in BUILT:
            given, made = getattr(changed.gates, field), getattr(self.gates, field)
            if given != made:
                raise SpecError(
                    f"gates.{field.removesuffix('_side')}: {given!r} does not fit; this network's gates were made "
                    f"with {made!r}, make a network with the other gates"
                )
        return changed
