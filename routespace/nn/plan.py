"""The plan of a network: a flat list of steps, compiled once from an architecture.

Executing the steps in order computes every node before it is read. No graph library is needed afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

from routespace.grid.architecture import Architecture
from routespace.grid.graph import Edge, Node


@dataclass(frozen=True)
class Row:
    """(j, r) → (j+1, r): the transformer, the identity, or a gate between them.

    Attributes:
        source, target: nodes.
        transformer: name of the transformer edge, or None when the row is an identity.
        gated: whether a gate decides per token, window, image or layer.
    """

    source: Node
    target: Node
    transformer: str | None
    gated: bool


@dataclass(frozen=True)
class Embed:
    """(j, r) → (j, 2r).

    Attributes:
        source, target: nodes.
        name: the edge's name, and its gate's.
        gated: whether a gate decides.
        last_chance: no later patch embedding leaves this row, so an image that has not gone down yet must.
        spared_by: nodes of this column; an image that has arrived at one of them need not go down here, as it
            reaches every output without. With one output, at the coarsest rate, that is any coarser row; with a
            pyramid it is the next one.
    """

    source: Node
    target: Node
    name: str
    gated: bool
    last_chance: bool
    spared_by: tuple[Node, ...]


Step = Row | Embed


def compile_plan(architecture: Architecture) -> tuple[Step, ...]:
    """The steps of an architecture, in the grid's edge order."""
    edges = architecture.grid.edges
    steps: list[Step] = []
    for name, state in architecture.edges.items():
        edge = edges[name]
        gated = state == "gated"
        if edge.kind == "patch_embed":
            last = not _goes_down_later(architecture, edge)
            steps.append(Embed(edge.source, edge.target, name, gated, last, _coarser(architecture, edge)))
        elif edge.kind == "transformer":
            steps.append(Row(edge.source, edge.target, name, gated))
        elif not gated:  # a gated identity is the other choice of its transformer's step
            steps.append(Row(edge.source, edge.target, None, False))
    # A node's patch embedding comes before its row: an image's last chance is known when its column is done.
    return tuple(sorted(steps, key=lambda step: (step.source, isinstance(step, Row))))


def _coarser(architecture: Architecture, embed: Edge) -> tuple[Node, ...]:
    """The nodes that spare an image this patch embedding; see `Embed.spared_by`."""
    column, rate = embed.source
    spec = architecture.spec
    rates = [embed.target[1]] if spec.outputs == "pyramid" else [r for r in spec.rates if r > rate]
    return tuple((column, coarser) for coarser in rates)


def _goes_down_later(architecture: Architecture, embed: Edge) -> bool:
    """True when another patch embedding leaves the same row at a later column that the row reaches."""
    layer, rate = embed.source
    while any(Edge(layer, rate, kind).name in architecture.edges for kind in ("transformer", "identity")):
        layer += 1
        if Edge(layer, rate, "patch_embed").name in architecture.edges:
            return True
    return False
