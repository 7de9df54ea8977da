"""The parts of a network that take time of their own: their keys, and the time of one.

    part_keys(grid)               stem, transformers, patch embeddings, merges, outputs, head
    part_keys(grid, gated=True)   also the gates of rows (row_gate) and of patch embeddings (column_gate)

A part is told by kind, rate and depth: edges that share these take the same time, and so do their gates.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from routespace.grid.graph import Edge, RoutingGrid
from routespace.grid.spec import GridSpec

PartKind = Literal["stem", "transformer", "patch_embed", "merge", "output", "head", "row_gate", "column_gate"]
Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Key = tuple[PartKind, int, int]  # kind, rate, depth
ROW_GATE: PartKind = "row_gate"
COLUMN_GATE: PartKind = "column_gate"
GATES = "gates"  # the group of both: static subnets tell nothing about it, so it is not calibrated


class PartTime(BaseModel):
    """The time of one part for the whole batch.

    Args:
        kind: `stem`, `transformer`, `patch_embed`, `merge` (adding two arrivals at a node), `output`, `head`,
            `row_gate` (deciding between transformer and identity) or `column_gate` (of a patch embedding).
        rate: of the part's source; 0 where it has none.
        depth: blocks of a transformer edge, else 0.
        keep: share of tokens computed; 1 is the plain edge, less is a routed one.
        ms: median milliseconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: PartKind
    rate: Annotated[int, Field(ge=0)] = 0
    depth: Annotated[int, Field(ge=0)] = 0
    keep: Annotated[float, Field(gt=0, le=1)] = 1.0
    ms: Milliseconds


def part_keys(grid: RoutingGrid, *, gated: bool = False) -> set[Key]:
    """The distinct parts of a grid: edges of one kind, rate and depth take the same time.

    Args:
        grid: the grid.
        gated: with the gates of its edges.
    """
    keys: set[Key] = {("stem", 0, 0), *(("output", rate, 0) for rate in grid.spec.output_rates)}
    if grid.spec.num_classes:
        keys.add(("head", 0, 0))
    for edge in grid.edges.values():
        if edge.kind == "identity":
            continue
        keys.add(edge_key(grid.spec, edge))
        if edge.kind == "patch_embed":
            keys.add(("merge", 2 * edge.rate, 0))
        if gated:
            keys.add(gate_key(edge))
    return keys


def edge_key(spec: GridSpec, edge: Edge) -> Key:
    """The part that a transformer or patch_embed edge is."""
    assert edge.kind != "identity", "an identity takes no time"
    return edge.kind, edge.rate, spec.depth(edge.layer) if edge.kind == "transformer" else 0


def gate_key(edge: Edge) -> Key:
    """The part that the gate of a transformer or patch_embed edge is; a row's is kept with its transformer."""
    return ROW_GATE if edge.kind == "transformer" else COLUMN_GATE, edge.rate, 0


def group_of(kind: str, rate: int) -> str:
    """The group whose calibration factor a part takes."""
    if kind in (ROW_GATE, COLUMN_GATE):
        return GATES
    return f"{kind}_r{rate:02d}" if kind in ("transformer", "patch_embed") else "rest"


def in_words(kind: str, rate: int, depth: int) -> str:
    """A part as messages name it."""
    return f"{kind} at rate {rate}" + (f" with {depth} blocks" if depth else "")
