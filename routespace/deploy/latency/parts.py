"""The parts of a network that take time of their own: their keys, and the time of one.

    part_keys(grid)               stem, transformers, patch embeddings, merges, outputs, head
    part_keys(grid, gates)        also the gates of rows (row_gate, map_gate) and of patch embeddings (column_gate)
                                  and the paths of skipped tokens (skipped)

A part is told by kind, rate, depth and phase: edges that share these take the same time, and so do their gates.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import Edge, RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.values import Value

PartKind = Literal[
    "stem",
    "transformer",
    "patch_embed",
    "merge",
    "output",
    "head",
    "row_gate",
    "map_gate",
    "column_gate",
    "skipped",
]
Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ROW_GATE: PartKind = "row_gate"
MAP_GATE: PartKind = "map_gate"
COLUMN_GATE: PartKind = "column_gate"
SKIPPED: PartKind = "skipped"
GATES = "gates"  # the group of them: static subnets tell nothing about it, so no factor is fitted for it


class PartKey(NamedTuple):
    """What tells a part from others.

    Attributes:
        kind: `stem`, `transformer`, `patch_embed`, `merge` (adding two arrivals at a node), `output`, `head`,
            `row_gate` (deciding between transformer and identity), `map_gate` (the same by another row's margins),
            `column_gate` (of a patch embedding) or `skipped` (the path of skipped tokens, all of them together).
        rate: of the part's source; 0 where it has none.
        depth: blocks of a transformer edge, else 0.
        phase: of a transformer edge whose family alternates kinds of blocks, the first block's place in the
            alternation: with SwinV2, 1 begins with shifted windows. Else 0.
    """

    kind: PartKind
    rate: int = 0
    depth: int = 0
    phase: int = 0

    @property
    def group(self) -> str:
        """The group whose fitted factor the part takes."""
        if self.kind in (ROW_GATE, MAP_GATE, COLUMN_GATE, SKIPPED):
            return GATES
        return f"{self.kind}_r{self.rate:02d}" if self.kind in ("transformer", "patch_embed") else "rest"

    def __str__(self) -> str:
        """As messages name it."""
        blocks = f" with {self.depth} blocks" if self.depth else ""
        return f"{self.kind} at rate {self.rate}{blocks}" + (f", phase {self.phase}" if self.phase else "")


class PartTime(Value):
    """The time of one part for the whole batch.

    Args:
        kind, rate, depth, phase: which part; see PartKey.
        keep: share of tokens computed; 1 is the plain edge, less is a routed one.
        ms: median milliseconds.
    """

    kind: PartKind
    rate: Annotated[int, Field(ge=0)] = 0
    depth: Annotated[int, Field(ge=0)] = 0
    phase: Annotated[int, Field(ge=0)] = 0
    keep: Annotated[float, Field(gt=0, le=1)] = 1.0
    ms: Milliseconds

    @property
    def key(self) -> PartKey:
        """Which part."""
        return PartKey(self.kind, self.rate, self.depth, self.phase)


def part_keys(grid: RoutingGrid, gates: GateSpec | None = None) -> set[PartKey]:
    """The distinct parts of a grid.

    Args:
        grid: the grid.
        gates: with the gates of its edges; those that follow another row's margins (`gates.source: map`) and the
            paths of skipped tokens (`gates.skipped`) are parts of their own.
    """
    keys = {PartKey("stem"), *(PartKey("output", rate) for rate in grid.spec.output_rates)}
    if grid.spec.num_classes:
        keys.add(PartKey("head"))
    for edge in grid.edges.values():
        if edge.kind == "identity":
            continue
        keys.add(edge_key(grid.spec, edge))
        if edge.kind == "patch_embed":
            keys.add(PartKey("merge", 2 * edge.rate))
        if gates is not None:
            keys |= {gate_key(edge), gate_key(edge, follows=gates.source == "map")}
            if gates.skipped != "identity" and edge.kind == "transformer":
                keys.add(PartKey(SKIPPED, edge.rate))
    return keys


def edge_key(spec: GridSpec, edge: Edge) -> PartKey:
    """The part that a transformer or patch_embed edge is."""
    assert edge.kind != "identity", "an identity takes no time"
    if edge.kind == "patch_embed":
        return PartKey("patch_embed", edge.rate)
    phase = spec.blocks_before(edge.layer) % spec.family.alternates
    return PartKey("transformer", edge.rate, spec.depth(edge.layer), phase)


def gate_key(edge: Edge, *, follows: bool = False) -> PartKey:
    """The part that the gate of a transformer or patch_embed edge is; a row's is kept with its transformer.

    Args:
        edge: the edge.
        follows: a row's gate decides by another row's margins.
    """
    if edge.kind == "patch_embed":
        return PartKey(COLUMN_GATE, edge.rate)
    return PartKey(MAP_GATE if follows else ROW_GATE, edge.rate)
