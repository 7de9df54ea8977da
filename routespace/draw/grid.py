"""A picture of a routing grid: columns × rates, what an architecture keeps of it and how much of that ran.

    draw_grid(architecture, usage, path="grid.png")      PNG, SVG or PDF, by the path's ending

Left to right the layers, top to bottom fine to coarse. Straight lines are transformer edges, arcs identities,
lines down patch embeddings; pruned edges stay as a faint trace. Colour and thickness tell the used share.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from routespace.checked import checked
from routespace.draw.canvas import save_figure
from routespace.grid.architecture import Architecture
from routespace.grid.graph import Edge, Node
from routespace.grid.usage import ALL_USED, Usage, check_usage

NUMBERED_EDGES = 60  # more numbers than this no longer fit beside their edges
COLUMN_INCHES, RATE_INCHES = 1.15, 1.0
MAX_INCHES = 40.0
PRUNED = "#e3e3e3"
NODE = "#3b4252"
LEAST_WIDTH, WIDTH = 0.7, 3.3  # points, of an edge that is hardly and one that is wholly used
IDENTITY_ARC = -0.28
USED_COLOURS = LinearSegmentedColormap.from_list("used", ["#c9d6e8", "#4c8bc4", "#1b3a6b"])


@checked
def draw_grid(
    architecture: Architecture,
    usage: Usage | None = None,
    *,
    path: Path | str,
    title: str | None = None,
) -> Path:
    """Draw an architecture in its grid.

    Args:
        architecture: what is kept. Gated edges are dashed.
        usage: edge name → measured shares; edges that are not named count as wholly used. A row's identity is
            shown with the share of tokens that came by and were not computed.
        path: where to; the ending chooses the format.
        title: above the picture; the grid's size without it.

    Returns:
        The path.

    Raises:
        SpecError: usage of an edge that the grid lacks, or an ending that is no picture format.
        BundleError: the file cannot be written.
    """
    grid = architecture.grid
    check_usage(usage or {}, grid.edges)
    columns, rates = grid.spec.layers + 1, len(grid.spec.rates)
    size = (min(MAX_INCHES, 1.6 + COLUMN_INCHES * columns), 1.6 + RATE_INCHES * rates)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    numbered = usage is not None and len(architecture.edges) <= NUMBERED_EDGES
    for edge in grid.edges.values():
        state = architecture.edges.get(edge.name)
        if state is None:
            _draw_edge(axes, grid.spec.rates, edge, colour=PRUNED, width=LEAST_WIDTH, gated=False)
            continue
        share = used_share(edge, usage)
        colour = USED_COLOURS(share)
        width = LEAST_WIDTH + (WIDTH - LEAST_WIDTH) * share
        _draw_edge(axes, grid.spec.rates, edge, colour=colour, width=width, gated=state == "gated")
        if numbered and edge.kind != "identity":
            _number(axes, grid.spec.rates, edge, share)
    _draw_nodes(axes, architecture)
    _decorate(axes, architecture, title)
    if usage is not None:
        shades = ScalarMappable(Normalize(0, 100), USED_COLOURS)
        figure.colorbar(shades, ax=axes, label="used share of the tokens, %", shrink=0.8, pad=0.01)
    return save_figure(figure, path)


def used_share(edge: Edge, usage: Usage | None) -> float:
    """The share of tokens that took an edge, 0…1."""
    if usage is None:
        return 1.0
    if edge.kind != "identity":
        return float(usage.get(edge.name, ALL_USED).tokens)
    row = usage.get(str(edge.partner))
    if row is None:
        return 1.0
    return min(1.0, max(0.0, float(row.asked) - float(row.tokens)))


def _place(rates: tuple[int, ...], node: Node) -> tuple[float, float]:
    return float(node[0]), -float(rates.index(node[1]))


def _draw_edge(
    axes: Axes, rates: tuple[int, ...], edge: Edge, *, colour: object, width: float, gated: bool
) -> None:
    arc = f"arc3,rad={IDENTITY_ARC}" if edge.kind == "identity" else "arc3"
    axes.add_patch(
        FancyArrowPatch(
            _place(rates, edge.source),
            _place(rates, edge.target),
            arrowstyle="-|>",
            mutation_scale=7 + 1.5 * width,
            shrinkA=6,
            shrinkB=6,
            connectionstyle=arc,
            linestyle=(0, (4, 1.5)) if gated else "solid",
            linewidth=width,
            color=colour,
            zorder=1 if colour == PRUNED else 2,
        )
    )


def _number(axes: Axes, rates: tuple[int, ...], edge: Edge, share: float) -> None:
    (x0, y0), (x1, y1) = _place(rates, edge.source), _place(rates, edge.target)
    down = edge.kind == "patch_embed"
    axes.annotate(
        f"{100 * share:.0f}",
        ((x0 + x1) / 2, (y0 + y1) / 2),
        xytext=(4, 0) if down else (0, -3),
        textcoords="offset points",
        ha="left" if down else "center",
        va="center" if down else "top",
        fontsize=7,
        color=NODE,
    )


def _draw_nodes(axes: Axes, architecture: Architecture) -> None:
    grid = architecture.grid
    ends = {end for name in architecture.edges for end in (grid.edges[name].source, grid.edges[name].target)}
    used = ends | {grid.stem}
    for kept, colour in ((False, PRUNED), (True, NODE)):
        places = [_place(grid.spec.rates, node) for node in grid.nodes if (node in used) == kept]
        if places:
            axes.scatter([x for x, _ in places], [y for _, y in places], s=42, color=colour, zorder=3)
    outputs = [_place(grid.spec.rates, node) for node in architecture.outputs]
    axes.scatter(
        [x for x, _ in outputs],
        [y for _, y in outputs],
        s=130,
        facecolors="none",
        edgecolors=NODE,
        linewidths=1.3,
        zorder=3,
    )


def _decorate(axes: Axes, architecture: Architecture, title: str | None) -> None:
    spec = architecture.spec
    axes.set_xlim(-0.45, spec.layers + 0.45)
    axes.set_ylim(-len(spec.rates) + 0.55, 0.55)
    step = max(1, -(-spec.layers // 24))
    axes.set_xticks(range(0, spec.layers + 1, step), [f"{j}" for j in range(0, spec.layers + 1, step)])
    axes.set_yticks([-i for i in range(len(spec.rates))], [f"1/{rate}" for rate in spec.rates])
    axes.set_xlabel("layer")
    axes.set_ylabel("resolution")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    kept, whole = len(architecture.edges), len(architecture.grid.edges)
    axes.set_title(
        title or f"{spec.layers} layers × {len(spec.rates)} rates, {kept} of {whole} edges", fontsize=10
    )
    axes.legend(handles=list(_legend(architecture)), loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=5,
                frameon=False, fontsize=8)  # fmt: skip


def _legend(architecture: Architecture) -> Iterator[Line2D]:
    dark = USED_COLOURS(1.0)
    yield Line2D([], [], color=dark, linewidth=2, label="straight: transformer (down: patch embedding)")
    yield Line2D(
        [], [], color=dark, linewidth=2, marker="$\\frown$", markersize=12, linestyle="", label="arc: identity"
    )
    if not architecture.is_static:
        yield Line2D([], [], color=dark, linewidth=2, linestyle=(0, (4, 1.5)), label="dashed: gated")
    if len(architecture.edges) < len(architecture.grid.edges):
        yield Line2D([], [], color=PRUNED, linewidth=2, label="pruned")
