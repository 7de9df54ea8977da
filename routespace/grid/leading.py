"""The leading row: with `gates.source: map`, the row whose gate decides for all others."""

from __future__ import annotations

from routespace.errors import GridError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import Edge, Node


def leading_row(architecture: Architecture) -> str | None:
    """The first gated row in the order of computation, by its transformer edge; None where no row is gated."""
    rows = gated_rows(architecture)
    return min(rows, key=lambda edge: edge.source).name if rows else None


def gated_rows(architecture: Architecture) -> list[Edge]:
    """The transformer edges that a gate decides about, in the grid's order."""
    edges = architecture.grid.edges
    return [edges[name] for name in architecture.gated_edges if edges[name].kind == "transformer"]


def check_map(architecture: Architecture, gates: GateSpec) -> None:
    """Raise GridError where `gates` ask for one map, and the first gated row cannot make it for all.

    Its map must be the finest, as a coarser one does not tell fine tokens apart, and every token must be there.
    """
    leader = leading_row(architecture)
    if gates.source != "map" or leader is None:
        return
    row = architecture.grid.edges[leader]
    finer = [edge.name for edge in gated_rows(architecture) if edge.rate < row.rate]
    if finer:
        raise GridError(
            f"gates.source: 'map' takes the margins of all rows from the first gated one, {leader}, but "
            f"{finer[0]} is finer; leave that row open, or use source 'own'"
        )
    if row.source not in _whole_nodes(architecture):
        raise GridError(
            f"gates.source: 'map' takes the margins of all rows from the first gated one, {leader}, but gates "
            f"decide what arrives there; open the patch embeddings above it, or use source 'own'"
        )


def _whole_nodes(architecture: Architecture) -> set[Node]:
    """The nodes that every token of every image reaches: by rows, and by patch embeddings that are open."""
    edges = architecture.grid.edges
    whole = {architecture.grid.stem}
    for edge in sorted((edges[name] for name in architecture.edges), key=lambda edge: edge.source):
        always = edge.kind != "patch_embed" or architecture.edges[edge.name] == "open"
        if always and edge.source in whole:
            whole.add(edge.target)
    return whole
