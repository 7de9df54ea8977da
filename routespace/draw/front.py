"""What networks score against what they cost: every candidate, and the Pareto front with its points named.

draw_front([Point("trial 3", 12e6, .71), …], path="front.png")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from routespace.draw.canvas import save_figure
from routespace.errors import SpecError

FRONT, OTHER, REFERENCE = "#1b3a6b", "#b8c4d6", "#c8553d"
GIGA, MEGA = 1e9, 1e6
LABELLED = 24  # more names than this hide the points
COUNTED = ("MACs", "parameters", "bytes")  # units that take G and M before them


class Axis(NamedTuple):
    """What is drawn along a side.

    Attributes:
        name: of the quantity.
        unit: `%` for a share 0…1, MACs, parameters or bytes for counts, else what follows the number.
    """

    name: str
    unit: str


class Point(NamedTuple):
    """One network.

    Attributes:
        label: its name in the picture.
        cost: in the unit of the lower side: MACs for one image, if nothing else is said.
        score: in the unit of the left side: the share of images that are right, 0…1, if nothing else is said.
    """

    label: str
    cost: float
    score: float


MACS, ACCURACY = Axis("MACs", "MACs"), Axis("accuracy", "%")


def front_points(points: Sequence[Point]) -> list[Point]:
    """The points that no other point beats in both cost and score, by rising cost; of equals the first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.score)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return front


def draw_front(
    points: Sequence[Point],
    *,
    path: Path | str,
    references: Sequence[Point] = (),
    title: str = "Accuracy against cost",
    cost: Axis = MACS,
    score: Axis = ACCURACY,
) -> Path:
    """Draw networks by what they cost and how good they are.

    Args:
        points: the candidates; those on the front are joined and named.
        path: where to; the ending chooses the format.
        references: networks to compare with; not part of the front, always named.
        title: above the picture.
        cost, score: what the two numbers of a point are; less cost is better, and more score.

    Returns:
        The path.

    Raises:
        SpecError: no points, or one whose numbers are not finite; a path with an unknown ending.
        BundleError: the file cannot be written.
    """
    if not points:
        raise SpecError("points: none to draw; finish at least one trial")
    for point in [*points, *references]:
        if not (math.isfinite(point.cost) and math.isfinite(point.score)):
            raise SpecError(f"points: {point.label!r} has {cost.name} {point.cost} and {score.name} {point.score}")
    front = front_points(points)
    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    axes = figure.add_subplot()
    across, below = _scaled(cost, [p.cost for p in points])
    up, beside = _scaled(score, [p.score for p in points])

    def places(some: Sequence[Point]) -> tuple[list[float], list[float]]:
        return [p.cost * across for p in some], [p.score * up for p in some]

    axes.scatter(*places([point for point in points if point not in front]), s=26, color=OTHER, label="others")
    axes.plot(*places(front), color=FRONT, linewidth=1.4, marker="o", markersize=5.5, drawstyle="steps-post",
              label="Pareto front", zorder=3)  # fmt: skip
    if references:
        axes.scatter(*places(references), s=64, marker="*", color=REFERENCE, label="for comparison", zorder=4)
    named = [*references, *(front if len(front) <= LABELLED else [])]
    for number, (point, place) in enumerate(zip(named, zip(*places(named), strict=True), strict=True)):
        right = number % 2 == 0  # neighbours on the front are named on opposite sides of it
        axes.annotate(point.label, place, xytext=(5, -9) if right else (-5, 5), textcoords="offset points",
                      ha="left" if right else "right", fontsize=7)  # fmt: skip
    axes.set_xlabel(below)
    axes.set_ylabel(beside)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return save_figure(figure, path)


def _scaled(axis: Axis, values: Sequence[float]) -> tuple[float, str]:
    """What to multiply values with for reading, and how the side is then called."""
    if axis.unit == "%":
        return 100.0, f"{axis.name}, %"
    if axis.unit in COUNTED:
        prefix, size = ("G", GIGA) if max(values) >= GIGA else ("M", MEGA)
        unit = f"{prefix}{axis.unit}" if axis.unit == "MACs" else f"{prefix} {axis.unit}"
        return 1 / size, unit if axis.unit in ("MACs", axis.name) else f"{axis.name}, {unit}"
    return 1.0, f"{axis.name}, {axis.unit}" if axis.unit else axis.name
