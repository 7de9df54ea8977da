"""Accuracy against MACs: every candidate, and the Pareto front with its points named.

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


class Point(NamedTuple):
    """One network.

    Attributes:
        label: its name in the picture.
        macs: for one image.
        accuracy: share of images, 0…1.
    """

    label: str
    macs: float
    accuracy: float


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other point beats in both MACs and accuracy, by rising MACs; of equals the first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.macs, -p.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def draw_front(
    points: Sequence[Point],
    *,
    path: Path | str,
    references: Sequence[Point] = (),
    title: str = "Accuracy against cost",
) -> Path:
    """Draw networks by MACs and accuracy.

    Args:
        points: the candidates; those on the front are joined and named.
        path: where to; the ending chooses the format.
        references: networks to compare with; not part of the front, always named.
        title: above the picture.

    Returns:
        The path.

    Raises:
        SpecError: no points, or one whose numbers are not finite; a path with an unknown ending.
        BundleError: the file cannot be written.
    """
    if not points:
        raise SpecError("points: none to draw; finish at least one trial")
    for point in [*points, *references]:
        if not (math.isfinite(point.macs) and math.isfinite(point.accuracy)):
            raise SpecError(f"points: {point.label!r} has {point.macs} MACs and accuracy {point.accuracy}")
    front = pareto(points)
    scale, unit = (GIGA, "GMACs") if max(p.macs for p in points) >= GIGA else (MEGA, "MMACs")
    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    axes = figure.add_subplot()
    rest = [point for point in points if point not in front]
    axes.scatter(
        [p.macs / scale for p in rest], [100 * p.accuracy for p in rest], s=26, color=OTHER, label="others"
    )
    axes.plot([p.macs / scale for p in front], [100 * p.accuracy for p in front], color=FRONT, linewidth=1.4,
              marker="o", markersize=5.5, drawstyle="steps-post", label="Pareto front", zorder=3)  # fmt: skip
    if references:
        axes.scatter([p.macs / scale for p in references], [100 * p.accuracy for p in references], s=64,
                     marker="*", color=REFERENCE, label="for comparison", zorder=4)  # fmt: skip
    for place, point in enumerate([*references, *(front if len(front) <= LABELLED else [])]):
        below = place % 2 == 0  # neighbours on the front are named on opposite sides of it
        axes.annotate(
            point.label,
            (point.macs / scale, 100 * point.accuracy),
            xytext=(5, -9) if below else (-5, 5),
            textcoords="offset points",
            ha="left" if below else "right",
            fontsize=7,
        )
    axes.set_xlabel(f"{unit} of one image")
    axes.set_ylabel("accuracy, %")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return save_figure(figure, path)
