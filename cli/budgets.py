"""What `--macs` and `--ratio` say: one budget, or several with commas between them. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from routespace.cli.arguments import parse_macs
from routespace.errors import SpecError

if TYPE_CHECKING:
    from routespace.workflow.artifacts import Artifact

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Budgets:
    """The most MACs of one network, or of each of several.

    Attributes:
        macs: as it was typed, such as 12M → the most MACs.
        ratios: as it was typed, such as 0.5 → the share of the recipe's base. Of both, 0.5 where .5 was typed.
    """

    macs: dict[str, int] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, macs: str | None, ratio: str | None) -> Budgets:
        """From `--macs` and `--ratio`; raises SpecError."""
        return cls(_each("macs", macs, parse_macs), _each("ratio", ratio, _share))

    @property
    def several(self) -> bool:
        """Whether they ask for a series."""
        return max(len(self.macs), len(self.ratios)) > 1

    def of(self, found: Artifact) -> dict[str, float]:
        """As typed → the most MACs; nothing where none was given."""
        if not self.ratios:
            return dict(self.macs)
        base = found.require_recipe().base_macs()
        return {text: round(share * base) for text, share in self.ratios.items()}


def _each(name: str, given: str | None, read: Callable[[str], Number]) -> dict[str, Number]:
    """As typed → its number; raises SpecError for one that is there twice."""
    found: dict[str, Number] = {}
    for text in [] if given is None else given.split(","):
        number = read(text)
        if number in found.values():
            raise SpecError(f"{name}: {given!r:.60} says {text.strip()} twice; give each budget once")
        found[_visible(text.strip())] = number
    return found


def _visible(text: str) -> str:
    """A number as typed, fit for the name of its bundle: one that begins with a dot would be hidden."""
    return f"0{text}" if text.startswith(".") else text


def _share(text: str) -> float:
    """A share above 0; raises SpecError."""
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < math.inf:
        raise SpecError(f"ratio: {text!r:.40} is not allowed; give a share above 0, such as 0.5")
    return share
