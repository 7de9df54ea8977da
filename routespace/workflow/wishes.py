"""What is wished of an extraction, which wishes have an effect, and who hears of its steps.

wishes = Wishes({"macs": 12_000_000}, by="candidates", image_size=[96, 128])
extract_as_wished(load_artifact("runs/first"), "small", wishes)         in extraction.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from routespace.deploy.latency.table import LatencyTable
from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.train.progress import Progress
from routespace.workflow.artifacts import Artifact
from routespace.workflow.choosing import WAYS, Choice
from routespace.workflow.fine_tuning import FineTuning
from routespace.workflow.sizing import Size, SizeChoice

USUAL_METHOD = "milp"


@dataclass(frozen=True)
class Wishes:
    """How a part is chosen, and what becomes of it.

    Attributes:
        limits: resource → the most allowed; without any it is the recipe's own budget, and a static network is
            taken whole.
        table, method, by, every_rate, evaluated, overwrite, tuning, image_size: as in `extract_bundle`.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    table: LatencyTable | None = None
    method: str = USUAL_METHOD
    by: str | None = None
    every_rate: bool = True
    evaluated: bool = True
    overwrite: bool = False
    tuning: FineTuning | None = None
    image_size: Size | Sequence[Size] | None = None

    def limits_of(self, artifact: Artifact) -> Mapping[str, float]:
        """The limits, or the network's own; raises SpecError for a gated network whose recipe has no budget."""
        own = None if self.limits else own_limit(artifact)
        return self.limits if own is None else {"macs": own}

    def way(self, artifact: Artifact) -> str:
        """By what a part is chosen: where nobody says, by candidates after a sandwich training, else by usage."""
        recipe = artifact.recipe
        usual = "candidates" if recipe is not None and recipe.train.mode == "sandwich" else "usage"
        return self.by or usual

    def require_effect(self, artifact: Artifact, limits: Mapping[str, float]) -> None:
        """Raise SpecError for a wish that is not known or would have no effect under these limits."""
        if self.by not in (None, *WAYS):
            raise SpecError(f"by: {self.by!r:.40} is not known; give {' or '.join(WAYS)}")
        wishes = {
            "choose": self.by is not None,
            "method": self.method != USUAL_METHOD,
            "drop_rates": not self.every_rate,
        }
        wish = next((name for name, asked in wishes.items() if asked), None)
        if wish is not None and not limits:
            raise SpecError(
                f"{wish}: a static network is taken whole where nothing limits it; give a limit such as "
                f"--ratio 0.5 (macs=…), or leave it out"
            )
        way = self.way(artifact)
        if self.method != USUAL_METHOD and way != "usage":
            raise SpecError(
                f"method: {self.method!r} derives a part from usage, not from {way}; leave one of them out"
            )


def own_limit(artifact: Artifact) -> int | None:
    """The most MACs by the recipe's own budget; None for a static network, which is taken whole.

    Raises:
        SpecError: a gated network whose recipe has no budget.
    """
    if artifact.net.architecture.is_static:
        return None
    limit = artifact.require_recipe().budget_macs()
    if limit is None:
        raise SpecError("macs: the recipe has no budget; say how much may be kept with --macs 12M or --ratio 0.5")
    return limit


class Listener(NamedTuple):
    """Who hears of a training; None where nobody does."""

    progress: Callable[[Progress], None] | None = None
    tell: Callable[[str], None] | None = None


class ExtractionWatch:
    """Hears what an extraction does, step by step; this one keeps it to itself."""

    def member(self, name: str, limits: Mapping[str, float]) -> None:
        """The next network of a series begins."""

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """A block of work without progress."""
        yield

    @contextmanager
    def training(self, what: str = "") -> Iterator[Listener]:
        """A block in which parts are fine-tuned, and who hears of that.

        Args:
            what: is compared with others, such as an image size; empty for the part that is taken.
        """
        yield Listener()

    def sized(self, choice: SizeChoice) -> None:
        """The image size is chosen."""

    def picked(self, choice: Choice) -> None:
        """The best of several candidates is found."""

    def chosen(self, part: Architecture) -> None:
        """The part is chosen, and will be taken out."""
