"""The image size to extract at: for each the best part within the limits, then the best of these on validation.

    found = choose_size(artifact, [96, 112], {"macs": 3_600_000}, way="usage")
    found.artifact, found.part, found.tried

A smaller image is often the cheapest way to save MACs, and a trained network carries over to it. So a limit may be
met by smaller images with all blocks as well as by fewer blocks on large ones. Where the part is to be trained on,
`first_epochs.py` goes on with the rivals that are named here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

from routespace.deploy.extract import resized_spec
from routespace.deploy.latency.table import LatencyTable, require_grid
from routespace.errors import BudgetError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import grid_of
from routespace.train.evaluate import evaluate
from routespace.train.macs import counted_macs
from routespace.train.tasks.kinds import task_of_head
from routespace.workflow.artifacts import Artifact
from routespace.workflow.choosing import choose_best, choose_part

Size = int | tuple[int, int]
PAIR = 2
NEARLY_FRAC = 0.9  # of the MACs: a part that has so many of a better one's may still learn to be better (measured)


@dataclass(frozen=True)
class TriedSize:
    """What came of one image size.

    Attributes:
        image_size: (H, W) in pixels.
        macs: of the best part there; None where nothing fits.
        score: its metric on validation images of that size.
        why_not: what does not fit.
        epochs: that it was fine-tuned for, to be compared.
        tuned: its metric after them; None of a size that was out of the race before.
    """

    image_size: tuple[int, int]
    macs: float | None = None
    score: float | None = None
    why_not: str | None = None
    epochs: int = 0
    tuned: float | None = None

    @property
    def text(self) -> str:
        """The size as people write it: 96x96 px."""
        return f"{self.image_size[0]}x{self.image_size[1]} px"

    def row(self) -> dict[str, Any]:
        """What `series.json` tells of it, as JSON data."""
        return {**asdict(self), "image_size": list(self.image_size)}


class SizedPart(NamedTuple):
    """The best part at one image size.

    Attributes:
        artifact: moved to it.
        part: the best there.
        macs: of the part.
        score: its metric on validation images of that size.
    """

    artifact: Artifact
    part: Architecture
    macs: float
    score: float


@dataclass(frozen=True)
class SizeChoice:
    """The image size to extract at.

    Attributes:
        artifact: moved to it.
        part: the best there; None of a single size, for which nothing was evaluated.
        tried: the sizes that were compared.
        rivals: the parts that may be the best one after a training: every other has both a worse metric and
            clearly fewer MACs than one of them. The chosen one is the first.
    """

    artifact: Artifact
    part: Architecture | None = None
    tried: tuple[TriedSize, ...] = ()
    rivals: tuple[SizedPart, ...] = ()


def choose_size(
    artifact: Artifact,
    sizes: Size | Sequence[Size],
    limits: Mapping[str, float],
    *,
    way: str,
    table: LatencyTable | None = None,
    method: str = "milp",
    every_rate: bool = True,
) -> SizeChoice:
    """The size at which the best part within the limits is best on validation; of equals that of the fewest MACs.

    Args:
        artifact: a run or bundle.
        sizes: the side of a square or (H, W), in pixels, or a list of several; a pair in a tuple is one size.
        limits: resource → the most allowed for an image of each size; without any the network is taken whole.
        way: by what parts are chosen, one of `choosing.WAYS`.
        table, method, every_rate: as in `extract_bundle`.

    Raises:
        BudgetError: nothing fits at any of several sizes.
        GridError: the table was measured at another size.
        SpecError: a size that the grid or the data does not take.
        BundleError: there is no recipe of images to compare sizes by.
    """
    wanted = listed_sizes(artifact, sizes)
    if table is not None:
        for size in wanted:
            require_grid(table, grid_of(resized_spec(artifact.net.spec, size)))
    moved = [artifact.resized(size) for size in wanted]  # it tells what is not allowed before the work
    if len(moved) == 1:
        return SizeChoice(moved[0])
    tried, found = list[TriedSize](), list[SizedPart]()
    for size, there in zip(wanted, moved, strict=True):
        try:
            part, score = _best_at(there, limits, way, table=table, method=method, every_rate=every_rate)
        except BudgetError as error:
            tried.append(TriedSize(size, why_not=str(error)))
            continue
        found.append(SizedPart(there, part, counted_macs(there.net.restrict(part), {}), score))
        tried.append(TriedSize(size, found[-1].macs, score))
    if not found:
        least = min(tried, key=lambda each: each.image_size[0] * each.image_size[1])
        raise BudgetError(
            f"image_size: nothing fits at any of {len(tried)} sizes; at {least.text}: {least.why_not}"
        )
    rivals = _rivals(found, sign_of(artifact))
    return SizeChoice(rivals[0].artifact, rivals[0].part, tuple(tried), tuple(rivals))


def sign_of(artifact: Artifact) -> int:
    """By what a metric is multiplied to be the larger the better."""
    return 1 if task_of_head(artifact.net.head, artifact.net.spec).metric.direction == "maximise" else -1


def _rivals(found: Iterable[SizedPart], sign: int) -> list[SizedPart]:
    """The best on validation first, of equals that of the fewest MACs; behind it what has about as many MACs."""
    rivals = list[SizedPart]()
    for each in sorted(found, key=lambda each: (-sign * each.score, each.macs)):
        if all(each.macs >= NEARLY_FRAC * better.macs for better in rivals):
            rivals.append(each)
    return rivals


def _best_at(
    artifact: Artifact,
    limits: Mapping[str, float],
    way: str,
    *,
    table: LatencyTable | None,
    method: str,
    every_rate: bool,
) -> tuple[Architecture, float]:
    """The best part at an artifact's image size, and its metric on validation."""
    if way == "candidates" and limits:
        best = choose_best(artifact, limits, table=table, every_rate=every_rate)
        return best.architecture, best.score
    part = choose_part(artifact, limits, way, table=table, method=method, every_rate=every_rate)
    net, metric = artifact.net.restrict(part), task_of_head(artifact.net.head, artifact.net.spec).metric
    return part, evaluate(net, artifact.held_out().val, expected=False)[metric.name]


def listed_sizes(artifact: Artifact, sizes: Size | Sequence[Size]) -> list[tuple[int, int]]:
    """(H, W) of each size, once; raises SpecError for what is none."""
    pair = isinstance(sizes, tuple) and len(sizes) == PAIR and all(isinstance(side, int) for side in sizes)
    several = isinstance(sizes, Sequence) and not pair and not isinstance(sizes, str)
    listed = cast(list[Size], list(cast(Sequence[Size], sizes)) if several else [sizes])
    if not listed:
        raise SpecError("image_size: none was given; give a side in pixels, (H, W), or a list of several")
    return list(dict.fromkeys(artifact.net.spec.at(size).image_size for size in listed))
