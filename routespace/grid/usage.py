"""Measured usage: which share of each edge ran.

Usage is a plain mapping from edge name to `EdgeUsage`; the network measures it (`Routes`), files keep it, and
`Terms.used` (resources.py) turns it into MACs and the like. An edge that is not in the mapping counts as wholly
used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from routespace.checked import checked
from routespace.errors import GridError, SpecError
from routespace.grid.graph import RoutingGrid

USAGE_FORMAT = "routespace.usage/1"

MOST_SHARE = 1 + 1e-6  # averages of shares are rounded
UsageShare = Any  # a number in 0…1, or a 0-d tensor of one where the budget loss differentiates through it


class EdgeUsage(NamedTuple):
    """The share of one edge that ran, averaged over images; each in 0…1.

    Attributes:
        tokens: computed tokens among all tokens.
        images: images with at least one computed token.
        asked: gate decisions that were evaluated at all (those of unreached nodes are not). A row's are kept
            with its transformer edge.
        skipped: tokens among all that took the cheap path for skipped ones, where the gates have one.
    """

    tokens: UsageShare = 1
    images: UsageShare = 1
    asked: UsageShare = 1
    skipped: UsageShare = 0


Usage = Mapping[str, EdgeUsage]
ALL_USED = EdgeUsage()


class SizedUsage(NamedTuple):
    """What images of one size used.

    Attributes:
        images: how many.
        usage: their average shares.
        size: (H, W) in pixels; None for the grid's own.
    """

    images: int
    usage: Usage
    size: tuple[int, int] | None = None


def check_usage(usage: Usage, edges: Mapping[str, Any]) -> None:
    """Raise SpecError for usage of an edge that is not among the grid's `edges`, and for a share that is none."""
    for name, used in usage.items():
        if name not in edges:
            raise SpecError(
                f"usage: {name!r:.60} is not an edge of the grid; it has {len(edges)} edges, "
                f"such as {next(iter(edges))}"
            )
        if not isinstance(used, EdgeUsage):
            raise SpecError(f"usage: {used!r:.60} of {name} is not allowed; give an EdgeUsage")
        _check_shares(name, used._asdict())


def _check_shares(edge: str, shares: Mapping[str, Any]) -> None:
    for part, share in shares.items():
        number = hasattr(share, "__float__") and not isinstance(share, bool) and not getattr(share, "ndim", 0)
        if not number or not 0 <= share <= MOST_SHARE:  # NaN fails the comparison
            raise SpecError(f"usage.{edge}.{part}: {share!r:.60} is no share; give a number from 0 to 1")


def usage_to_json(usage: Usage, grid: RoutingGrid, sizes: Sequence[SizedUsage] = ()) -> dict[str, Any]:
    """A usage file as JSON data: which grid it is of, and edge name → its shares.

    Args:
        usage: of all images.
        grid: whose edges they are.
        sizes: the same by the images' sizes. It is kept where a size is not the grid's own: MACs of these are no
            function of the averages.

    Raises:
        SpecError: usage of an edge that the grid lacks, or a share that is no number in 0…1.
    """
    check_usage(usage, grid.edges)
    found: dict[str, Any] = {"format": USAGE_FORMAT, "grid": grid.hash, "edges": shares_to_json(usage)}
    if any(part.size is not None for part in sizes):
        found["sizes"] = [
            {
                "size": list(part.size or grid.spec.image_size),
                "images": part.images,
                "edges": shares_to_json(part.usage),
            }
            for part in sizes
        ]
    return found


def shares_to_json(usage: Usage) -> dict[str, dict[str, float]]:
    """Usage as JSON data: edge name → {tokens, images, asked}, and skipped where that is not 0."""
    return {
        name: {key: float(value) for key, value in u._asdict().items() if key != "skipped" or float(value)}
        for name, u in usage.items()
    }


@checked
def usage_from_json(data: Any, grid: RoutingGrid) -> dict[str, EdgeUsage]:
    """Read what `usage_to_json` wrote, or a hand-written one: shares that are left out count as in EdgeUsage.

    A file that does not say which grid it is of, as older ones do not, is taken by the names of its edges.

    Raises:
        SpecError: not a usage file, an edge that the grid lacks, or a share that is no number in 0…1.
        GridError: it is of another grid.
    """
    if not isinstance(data, dict) or data.get("format") != USAGE_FORMAT:
        raise SpecError(f"format: not a usage file; it needs 'format: {USAGE_FORMAT}'")
    if data.get("grid", grid.hash) != grid.hash:
        raise GridError(
            f"usage: it was measured on grid {data['grid']!s:.40}, not on {grid.hash}; edges of the two may share "
            f"names, but not their sizes: give the usage of a run of this grid"
        )
    return _shares(data.get("edges"), grid, "edges")


def sizes_from_json(data: Any, grid: RoutingGrid) -> tuple[SizedUsage, ...]:
    """What images of each size used, from a usage file; all images as those of one size where it does not say.

    Raises:
        SpecError, GridError: as `usage_from_json`; or a size or number of images that cannot be.
    """
    whole, sizes = usage_from_json(data, grid), data.get("sizes")
    if sizes is None:
        return (SizedUsage(1, whole),)
    if not isinstance(sizes, list) or not sizes:
        raise SpecError("sizes: must be a list of {size, images, edges}, one for each size of images")
    return tuple(_sized(part, grid, f"sizes[{place}]") for place, part in enumerate(sizes))


def _sized(part: Any, grid: RoutingGrid, where: str) -> SizedUsage:
    part = part if isinstance(part, dict) else {}
    size, images = part.get("size"), part.get("images")
    sides = size if isinstance(size, list) else []
    if len(sides) != 2 or not all(_is_count(number) for number in (*sides, images)):
        raise SpecError(
            f"{where}: size {size!r:.40} and images {images!r:.40} must be [height, width] and a number, whole "
            f"and above 0"
        )
    usage = _shares(part.get("edges"), grid, f"{where}.edges")
    own = (sides[0], sides[1]) == grid.spec.image_size
    return SizedUsage(int(cast(int, images)), usage, None if own else (sides[0], sides[1]))


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number > 0


def _shares(edges: Any, grid: RoutingGrid, where: str) -> dict[str, EdgeUsage]:
    if not isinstance(edges, dict):
        raise SpecError(f"{where}: missing; a usage file maps edge names to {{tokens, images, asked}}")
    found = {name: _edge_usage(f"{where}.{name!s:.60}", shares) for name, shares in edges.items()}
    check_usage(found, grid.edges)
    return found


def _edge_usage(where: str, shares: Any) -> EdgeUsage:
    if not isinstance(shares, dict) or set(shares) - set(EdgeUsage._fields):
        raise SpecError(f"{where}: {shares!r:.60} is not allowed; give {{tokens, images, asked, skipped}}")
    return EdgeUsage(**shares)
