"""Architecture: which edges of a grid exist, and whether each is open or decided by a gate.

An absent edge is pruned. A row (the transformer and identity edge of one place) is one choice, so it is in one
of four states: absent, transformer open, identity open, or both gated; a patch embedding is absent, open or
gated. Nothing gated means static: a plain network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

from routespace.checked import checked
from routespace.errors import GridError
from routespace.grid.families.base import Family
from routespace.grid.graph import Edge, Node, RoutingGrid, grid_of, live_edges
from routespace.grid.spec import GridSpec, content_hash

State = Literal["open", "gated"]
Routing = Literal["both", "depth", "scale", "none"]
STATES = ("open", "gated")


class Architecture:
    """A part of a routing grid, as an immutable value.

    Args:
        spec: the grid's spec.
        edges: edge name → "open" (always computed) or "gated" (a gate decides); absent names are pruned.

    Attributes:
        spec: the GridSpec.
        edges: the same mapping, read-only, in the grid's edge order.
        outputs: the grid's outputs that it reaches, fine to coarse: one at least. Of a pyramid it may leave some
            out; a head then does without their maps.

    Raises:
        GridError: an unknown edge or state, an edge that lies on no way from the stem to an output, no output
            that is reached, or a row whose two edges are not one choice (both open, or one gated alone).
    """

    @checked
    def __init__(self, spec: GridSpec, edges: Mapping[str, State]) -> None:
        self.spec = spec
        self.grid = grid_of(spec)
        _check_names(self.grid, edges)
        self.edges: Mapping[str, State] = MappingProxyType(
            {name: edges[name] for name in self.grid.edges if name in edges}
        )
        live = self._live()
        entered = {edge.target for edge in live}
        self.outputs: tuple[Node, ...] = tuple(node for node in self.grid.outputs if node in entered)
        if not self.outputs:
            *finer, last = (str(rate) for rate in spec.output_rates)
            wanted = f"{', '.join(finer)} or {last}" if finer else last
            raise GridError(f"edges: the output at rate {wanted} is not reached; keep a path to it")
        dead = [name for name in self.edges if self.grid.edges[name] not in live]
        if dead:
            raise GridError(
                f"edges: {dead[0]} lies on no way from the stem to an output ({len(dead)} such); "
                f"Architecture.cleaned(…) removes them"
            )
        for name, state in self.edges.items():
            self._check_row(self.grid.edges[name], state)

    def _live(self) -> set[Edge]:
        return live_edges((self.grid.edges[n] for n in self.edges), self.grid.stem, self.grid.outputs)

    def _check_row(self, edge: Edge, state: State) -> None:
        other = self.edges.get(edge.partner) if edge.partner else None
        if edge.kind == "patch_embed" or (state == "open" and other is None):
            return
        if state == "open" and other == "open":
            raise GridError(f"edges: {edge.name} and {edge.partner} are both open; a row takes one of them")
        if state != other:
            raise GridError(
                f"edges: {edge.name} is {state} and {edge.partner} is {other or 'absent'}; "
                f"the two edges of a row are both gated, or one alone is open"
            )

    @classmethod
    @checked
    def full(cls, grid: RoutingGrid) -> Architecture:
        """Every edge of the grid, every choice gated: the supernet."""
        return cls(grid.spec, dict.fromkeys(grid.edges, "gated"))

    @classmethod
    @checked
    def staircase(cls, grid: RoutingGrid, split: Sequence[int] | None = None) -> Architecture:
        """The family's plain network as a path: `split[i]` transformer layers at rate i, then down.

        Args:
            grid: the grid to walk in.
            split: transformer layers per rate, fine to coarse; without it the layers are shared equally,
                earlier rates first where they do not divide. Layers left over are identities at the end.

        Raises:
            GridError: the split does not fit, or a patch embedding that it needs is not in the grid.
        """
        spec = grid.spec
        split = _equal_split(spec) if split is None else list(split)
        if len(split) != len(spec.rates) or min(split) < 0 or sum(split) > spec.layers:
            raise GridError(
                f"split: {split} does not fit; give {len(spec.rates)} counts, one per rate, "
                f"with a sum of at most {spec.layers}"
            )
        edges: list[Edge] = []
        layer = 0
        for i, rate in enumerate(spec.rates):
            edges += [Edge(layer + k, rate, "transformer") for k in range(split[i])]
            layer += split[i]
            if i + 1 < len(spec.rates):
                edges.append(Edge(layer, rate, "patch_embed"))
            if rate in spec.output_rates:
                edges += [Edge(k, rate, "identity") for k in range(layer, spec.layers)]
        for edge in edges:
            if edge.name not in grid.edges:
                down = [sum(split[: i + 1]) for i in range(len(split) - 1)]
                raise GridError(
                    f"split: {split} goes down in columns {down}, and patch embeddings stand in "
                    f"{sorted(spec.embed_columns)} alone; set embed_layers to all, or to what it needs"
                )
        return cls(spec, {edge.name: "open" for edge in edges})

    @classmethod
    @checked
    def routed(cls, grid: RoutingGrid, routing: Routing) -> Architecture:
        """The supernet of one of the paper's ablations.

        Args:
            grid: the grid.
            routing: `both` gates everything; `depth` gates the rows of the staircase and leaves its way down
                open; `scale` opens every transformer and gates the patch embeddings; `none` opens both (the
                fully connected grid).
        """
        if routing == "both":
            return cls.full(grid)
        if routing == "depth":
            stairs = cls.staircase(grid)
            rows = [grid.edges[name] for name in stairs.edges if grid.edges[name].kind == "transformer"]
            gated = {edge.name for edge in rows} | {edge.partner for edge in rows if edge.partner}
            return cls(grid.spec, {**stairs.edges, **dict.fromkeys(gated, "gated")})
        down: State = "gated" if routing == "scale" else "open"
        states: dict[str, State] = {edge.name: "open" for edge in grid.of_kind("transformer")}
        return cls(grid.spec, states | {edge.name: down for edge in grid.of_kind("patch_embed")})

    @classmethod
    @checked
    def cleaned(cls, spec: GridSpec, edges: Mapping[str, State]) -> Architecture:
        """The architecture of `edges` without its dead ends (edges on no way from stem to an output).

        Raises:
            GridError: what is left is still no architecture, for example because no output is reached.
        """
        grid = grid_of(spec)
        _check_names(grid, edges)
        live = live_edges((grid.edges[name] for name in edges), grid.stem, grid.outputs)
        return cls(spec, {edge.name: edges[edge.name] for edge in live})

    @classmethod
    @checked
    def static(cls, spec: GridSpec, names: Iterable[str]) -> Architecture:
        """The static architecture of these open edges, dead ends removed."""
        return cls.cleaned(spec, dict.fromkeys(names, "open"))

    @property
    def open_edges(self) -> list[str]:
        """Names of the edges that are always computed."""
        return [name for name, state in self.edges.items() if state == "open"]

    @property
    def gated_edges(self) -> list[str]:
        """Names of the edges that a gate decides."""
        return [name for name, state in self.edges.items() if state == "gated"]

    @property
    def output_rates(self) -> tuple[int, ...]:
        """Rates of the outputs that it reaches, fine to coarse."""
        return tuple(rate for _, rate in self.outputs)

    @property
    def missing_rates(self) -> tuple[int, ...]:
        """Rates of the grid's outputs that it never reaches, fine to coarse."""
        return tuple(rate for rate in self.spec.output_rates if rate not in self.output_rates)

    @property
    def is_static(self) -> bool:
        """True when nothing is gated."""
        return not self.gated_edges

    def opened(self) -> Architecture:
        """The static architecture that computes everything: where a gate would decide, its edge is open."""
        edges = [self.grid.edges[name] for name in self.edges]
        passed = {edge.partner for edge in edges if edge.kind == "transformer"}
        return Architecture.static(self.spec, self.edges.keys() - passed)

    @checked
    def contains(self, other: Architecture) -> bool:
        """True when `other` is a part of this one: same grid, and a choice only where this has it."""
        return self.spec.hash == other.spec.hash and all(
            name in self.edges and (state == "open" or self.edges[name] == "gated")
            for name, state in other.edges.items()
        )

    @cached_property
    def hash(self) -> str:
        """Content hash, equal on every machine."""
        return content_hash({"grid": self.spec.hash, "edges": dict(self.edges)})

    def to_json(self) -> dict[str, Any]:
        """The spec, the state of every kept edge and the hash."""
        return {
            "format": "routespace.architecture/1",
            "spec": self.spec.model_dump(mode="json", exclude_none=True),
            "edges": dict(self.edges),
            "hash": self.hash,
        }

    @classmethod
    def from_json(cls, data: Any, *, families: Iterable[Family] = ()) -> Architecture:
        """Rebuild what `to_json` wrote; `families` of your own may be named in it.

        Raises:
            GridError: not an architecture file, or one that was changed by hand into an illegal one.
            SpecError: a field of the spec is not allowed.
        """
        if not isinstance(data, dict) or data.get("format") != "routespace.architecture/1":
            raise GridError("format: not an architecture file; it needs 'format: routespace.architecture/1'")
        edges = data.get("edges")
        if not isinstance(edges, dict):
            raise GridError("edges: missing; an architecture file maps edge names to 'open' or 'gated'")
        architecture = cls(GridSpec.parse(data.get("spec"), families=families), edges)
        if data.get("hash", architecture.hash) != architecture.hash:
            raise GridError("hash: it does not match the edges; the file was changed, or is of another grid")
        return architecture

    def __reduce__(self) -> tuple[Any, ...]:
        return Architecture, (self.spec, dict(self.edges))  # copies and pickles: a mapping proxy has neither

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self.hash == other.hash and self.grid == other.grid

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        kind = "static" if self.is_static else f"{len(self.gated_edges)} gated"
        return f"Architecture({len(self.edges)} of {len(self.grid.edges)} edges, {kind}, {self.hash})"


def _check_names(grid: RoutingGrid, edges: Mapping[str, Any]) -> None:
    for name, state in edges.items():
        if name not in grid.edges:
            raise GridError(
                f"edges: {name!r:.60} is not in the grid; it has {len(grid.edges)} edges, "
                f"such as {next(iter(grid.edges))}"
            )
        if state not in STATES:
            raise GridError(f"edges: {name} is {state!r:.60}; allowed: 'open' or 'gated'")


def _equal_split(spec: GridSpec) -> list[int]:
    share, rest = divmod(spec.layers, len(spec.rates))
    return [share + (i < rest) for i in range(len(spec.rates))]
