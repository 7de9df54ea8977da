"""RoutingGrid: the graph of a GridSpec. Nodes are (layer, rate), edges carry one frozen `Edge` each.

    (j, r) ──transformer──▶ (j+1, r)      blocks of rate r's width
    (j, r) ──identity─────▶ (j+1, r)      the token map as it is
    (j, r) ──patch_embed──▶ (j, 2r)       the next coarser map, in the same column

Edges have one order everywhere (`RoutingGrid.edges`): by source column, then rate, then kind. It is the order
of execution too: when an edge's turn comes, every edge into its source has been computed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import networkx as nx

from routespace.checked import checked
from routespace.errors import GridError
from routespace.grid.families.base import Family
from routespace.grid.spec import GridSpec

Kind = Literal["transformer", "identity", "patch_embed"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Node = tuple[int, int]
_NAME = re.compile(r"l(\d{2,})_r(\d{2,})_(transformer|identity|patch_embed)")


@dataclass(frozen=True, slots=True)
class Edge:
    """One edge of a routing grid: its source column, source rate and kind."""

    layer: int
    rate: int
    kind: Kind

    @property
    def name(self) -> str:
        """A legal module key: `l03_r08_transformer`."""
        return f"l{self.layer:02d}_r{self.rate:02d}_{self.kind}"

    @property
    def source(self) -> Node:
        """The node that the edge leaves."""
        return self.layer, self.rate

    @property
    def target(self) -> Node:
        """The node that the edge enters."""
        return (self.layer, 2 * self.rate) if self.kind == "patch_embed" else (self.layer + 1, self.rate)

    @property
    def partner(self) -> str | None:
        """Name of the row's other choice: identity for transformer and the reverse; None for patch_embed."""
        if self.kind == "patch_embed":
            return None
        other: Kind = "identity" if self.kind == "transformer" else "transformer"
        return Edge(self.layer, self.rate, other).name

    @property
    def order(self) -> tuple[int, int, int]:
        """Sort key of the one edge order."""
        return self.layer, self.rate, KINDS.index(self.kind)

    @classmethod
    @checked
    def parse(cls, name: str) -> Edge:
        """The edge called `name`; raises GridError when the name is not an edge's."""
        match = _NAME.fullmatch(name)
        edge = cls(int(match[1]), int(match[2]), cast(Kind, match[3])) if match else None
        if edge is None or edge.name != name:
            raise GridError(f"edge: {name!r} is no edge name; they look like 'l03_r08_transformer'")
        return edge


def live_edges(edges: Iterable[Edge], start: Node, ends: Iterable[Node]) -> set[Edge]:
    """The edges on a way from `start` to one of `ends`."""
    listed = sorted(edges, key=lambda edge: edge.order)
    reached = {start}
    forward = []
    for edge in listed:  # in execution order one pass each way is enough
        if edge.source in reached:
            reached.add(edge.target)
            forward.append(edge)
    wanted = set(ends)
    kept = set()
    for edge in reversed(forward):
        if edge.target in wanted:
            wanted.add(edge.source)
            kept.add(edge)
    return kept


class RoutingGrid:
    """The routing grid of a spec: a frozen networkx graph and the one order of its edges.

    Args:
        spec: what to build.

    Attributes:
        spec: the GridSpec.
        graph: a frozen `networkx.MultiDiGraph`; nodes (layer, rate), edge key = kind, edge attribute `edge`.
        edges: name → Edge, in execution order.
        removed_nodes: how many nodes no stem path reaches, or reach no output.

    Raises:
        GridError: an output cannot be reached from the stem.
    """

    @checked
    def __init__(self, spec: GridSpec) -> None:
        self.spec = spec
        every = list(_all_edges(spec))
        kept = live_edges(every, self.stem, self.outputs)
        self.edges: Mapping[str, Edge] = {edge.name: edge for edge in sorted(kept, key=lambda edge: edge.order)}
        nodes = {edge.source for edge in kept} | {edge.target for edge in kept}
        for node in self.outputs:
            if node not in nodes:
                raise GridError(
                    f"embed_layers: no path from the stem reaches the output at rate {node[1]}; "
                    f"allow a patch embedding into every rate, or lower max_down"
                )
        self.removed_nodes = (spec.layers + 1) * len(spec.rates) - len(nodes)
        graph = nx.MultiDiGraph()
        graph.add_nodes_from(sorted(nodes))
        for edge in self.edges.values():
            graph.add_edge(edge.source, edge.target, key=edge.kind, edge=edge)
        self.graph = nx.freeze(graph)

    @property
    def stem(self) -> Node:
        """The node that the stem feeds."""
        return 0, self.spec.stem_down

    @property
    def outputs(self) -> tuple[Node, ...]:
        """The nodes that the heads read, fine to coarse."""
        return tuple((self.spec.layers, rate) for rate in self.spec.output_rates)

    @property
    def nodes(self) -> list[Node]:
        """Every node, by column and rate."""
        return list(self.graph.nodes)

    @functools.cached_property
    def hash(self) -> str:
        """Content hash of the spec: equal grids, equal hash, on every machine."""
        return self.spec.hash

    def of_kind(self, kind: Kind) -> list[Edge]:
        """The edges of one kind, in order."""
        return [edge for edge in self.edges.values() if edge.kind == kind]

    def to_json(self) -> dict[str, Any]:
        """Spec, edge names and hash; `from_json` rebuilds and compares."""
        return {
            "format": "routespace.grid/1",
            "spec": self.spec.model_dump(mode="json", exclude_none=True),
            "edges": list(self.edges),
            "hash": self.hash,
        }

    @classmethod
    def from_json(cls, data: Any, *, families: Iterable[Family] = ()) -> RoutingGrid:
        """Rebuild a grid that `to_json` wrote; `families` of your own may be named in it.

        Raises:
            GridError: not a grid file, or its edges do not follow from its spec.
            SpecError: a field of the spec is not allowed.
        """
        if not isinstance(data, dict) or data.get("format") != "routespace.grid/1":
            raise GridError("format: not a grid file; write one with `routespace build … -o grid.json`")
        grid = cls(GridSpec.parse(data.get("spec"), families=families))
        if data.get("edges") != list(grid.edges) or data.get("hash", grid.hash) != grid.hash:
            raise GridError("edges: they do not follow from the spec; the file was changed, build it again")
        return grid

    def __eq__(self, other: object) -> bool:
        # The hash knows families by name; one that was defined again under its old name is another.
        return isinstance(other, RoutingGrid) and (self.hash, self.spec.family) == (other.hash, other.spec.family)

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        rates = "/".join(map(str, self.spec.rates))
        size = f"{len(self.nodes)} nodes, {len(self.edges)} edges"
        return f"RoutingGrid({self.spec.layers} layers × rates {rates}, {size}, {self.hash})"


@functools.lru_cache(maxsize=64)
def grid_of(spec: GridSpec) -> RoutingGrid:
    """The grid of a spec, kept for the next call: a grid is immutable, and architectures of one spec share it."""
    return RoutingGrid(spec)


def _all_edges(spec: GridSpec) -> Iterable[Edge]:
    for layer in range(spec.layers + 1):
        for rate in spec.rates:
            if layer < spec.layers:
                yield Edge(layer, rate, "transformer")
                yield Edge(layer, rate, "identity")
            if rate < spec.max_down and layer in spec.embed_columns:
                yield Edge(layer, rate, "patch_embed")
