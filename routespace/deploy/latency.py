"""Latency tables: what each kind of edge takes on one device, and what a whole network takes by them.

    table = profile(grid, device="cpu", batch=1)          measure (`routespace.deploy.profiling`)
    save_table(table, path) · load_table(path)
    predict(table, architecture, usage)                   milliseconds of a forward pass of the batch
    edge_ms(table, grid) · table.constant_ms              the same as prices per edge, for `select`

A network takes the sum of its parts, each multiplied by its group's factor, plus an offset. The factors are 1 and
the offset 0 in a table without calibration; `profile` fits them to a few whole subnets, because parts measured
alone know neither the caches that a whole network finds nor the time between its steps.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from routespace.deploy.device import Device, differences
from routespace.errors import GridError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import Edge, Node, RoutingGrid
from routespace.grid.spec import GridSpec, explain
from routespace.grid.usage import ALL_USED, Usage, check_usage_names
from routespace.nn.weights import write_file

PartKind = Literal["stem", "transformer", "patch_embed", "merge", "output", "head"]
Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Key = tuple[str, int, int]  # kind, rate, depth


class PartTime(BaseModel):
    """The time of one part for the whole batch.

    Args:
        kind: `stem`, `transformer`, `patch_embed`, `merge` (adding two arrivals at a node), `output` or `head`.
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


class Subnet(BaseModel):
    """A whole static network that was measured for calibration.

    Args:
        edges: names of its open edges.
        ms: median milliseconds of a forward pass.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    edges: tuple[str, ...]
    ms: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LatencyTable(BaseModel):
    """Measured times of every part of a grid.

    Args:
        grid: hash of the grid that was measured; no other one is answered for.
        spec: its spec.
        device: where.
        batch, dtype, compiled: how.
        clock: `wall`, or `cpu` for the thread's own processor time (on a shared machine).
        rounds: measurements behind each median.
        date: UTC, ISO 8601.
        parts: the times; each kind, rate, depth and keep once.
        factors: group (`transformer_r08`, `patch_embed_r08`, …) → factor; groups not named have 1.
        offset_ms: what is left, once per forward pass.
        subnets: what factors and offset were fitted to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["routespace.latency/1"] = "routespace.latency/1"
    grid: str
    spec: GridSpec
    device: Device
    batch: Annotated[int, Field(ge=1)]
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    compiled: bool = False
    clock: Literal["wall", "cpu"] = "wall"
    rounds: Annotated[int, Field(ge=1)]
    date: str
    parts: tuple[PartTime, ...]
    factors: Mapping[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    offset_ms: Milliseconds = 0.0
    subnets: tuple[Subnet, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.grid != self.spec.hash:
            raise ValueError(f"grid: {self.grid} is not the hash of the table's spec; the file was changed")
        again = "measure the table again with `routespace profile`"
        points = Counter((part.kind, part.rate, part.depth, part.keep) for part in self.parts)
        for (kind, rate, depth, keep), times in points.items():
            if times > 1:
                what = f"{_words(kind, rate, depth)}, keep {keep:g}"
                raise ValueError(f"parts: {what} is there {times} times, once is allowed; {again}")
        for key in sorted(part_keys(RoutingGrid(self.spec))):
            if (*key, 1.0) not in points:
                raise ValueError(f"parts: {_words(*key)} is missing; {again}")
        return self

    def curve(self, kind: str, rate: int, depth: int) -> list[tuple[float, float]]:
        """The measured points of one part: (keep, milliseconds), by rising keep; factors are not applied."""
        key = kind, rate, depth
        return sorted((part.keep, part.ms) for part in self.parts if (part.kind, part.rate, part.depth) == key)

    def ms(self, kind: str, rate: int = 0, depth: int = 0, keep: float = 1.0) -> float:
        """Milliseconds of one part at a share of computed tokens, interpolated; none for nothing kept."""
        points = [(0.0, 0.0), *self.curve(kind, rate, depth)]
        factor = self.factors.get(group_of(kind, rate), 1.0)
        if keep >= 1.0:
            return factor * points[-1][1]
        for (x0, y0), (x1, y1) in pairwise(points):
            if keep <= x1:
                return factor * (y0 + (y1 - y0) * (keep - x0) / (x1 - x0))
        return factor * points[-1][1]

    @property
    def constant_ms(self) -> float:
        """Milliseconds that every architecture pays: stem, outputs, head, offset."""
        outputs = sum(self.ms("output", rate) for rate in self.spec.output_rates)
        head = self.ms("head") if self.spec.num_classes else 0.0
        return self.offset_ms + self.ms("stem") + outputs + head


def _words(kind: str, rate: int, depth: int) -> str:
    return f"{kind} at rate {rate}" + (f" with {depth} blocks" if depth else "")


def group_of(kind: str, rate: int) -> str:
    """The group whose calibration factor a part takes."""
    return f"{kind}_r{rate:02d}" if kind in ("transformer", "patch_embed") else "rest"


def part_keys(grid: RoutingGrid) -> set[Key]:
    """The distinct parts of a grid: edges of one kind, rate and depth take the same time."""
    keys: set[Key] = {("stem", 0, 0), *(("output", rate, 0) for rate in grid.spec.output_rates)}
    if grid.spec.num_classes:
        keys.add(("head", 0, 0))
    for edge in grid.edges.values():
        if edge.kind != "identity":
            keys.add(edge_key(grid.spec, edge))
        if edge.kind == "patch_embed":
            keys.add(("merge", 2 * edge.rate, 0))
    return keys


def edge_key(spec: GridSpec, edge: Edge) -> Key:
    """The part that an edge is."""
    return edge.kind, edge.rate, spec.depth(edge.layer) if edge.kind == "transformer" else 0


def predict(table: LatencyTable, architecture: Architecture, usage: Usage | None = None) -> float:
    """Milliseconds of one forward pass of the table's batch.

    Args:
        table: of the architecture's grid.
        architecture: static, or gated: then usage tells how much of each edge is computed.
        usage: edge name → measured shares; edges that are not named are computed wholly.

    Raises:
        GridError: the table is of another grid.
        SpecError: usage of an edge that the grid lacks.
    """
    require_grid(table, architecture.grid)
    check_usage_names(usage or {}, architecture.grid.edges)
    total = table.constant_ms
    for key, count in merges(architecture).items():
        total += count * table.ms("merge", key)
    for name in architecture.edges:
        edge = architecture.grid.edges[name]
        if edge.kind != "identity":
            kind, rate, depth = edge_key(architecture.spec, edge)
            keep = float((usage or {}).get(name, ALL_USED).tokens)
            total += table.ms(kind, rate, depth, keep)
    return total


def merges(architecture: Architecture) -> Counter[int]:
    """Rate → how often two arrivals are added at its nodes."""
    arrivals: Counter[Node] = Counter()
    for name, state in architecture.edges.items():
        edge = architecture.grid.edges[name]
        if not (state == "gated" and edge.kind == "identity"):  # that one arrives with its transformer edge
            arrivals[edge.target] += 1
    extra: Counter[int] = Counter()
    for (_, rate), count in arrivals.items():
        extra[rate] += count - 1
    return +extra


def edge_ms(table: LatencyTable, grid: RoutingGrid) -> dict[str, float]:
    """Edge name → milliseconds, for `select(…, latency=…, constant_ms=table.constant_ms)`.

    A patch embedding is charged with adding its map to the row that it enters, so the sum over an architecture
    is never below `predict`.

    Raises:
        GridError: the table is of another grid.
    """
    require_grid(table, grid)
    prices = {}
    for name, edge in grid.edges.items():
        if edge.kind == "identity":
            prices[name] = 0.0
            continue
        kind, rate, depth = edge_key(grid.spec, edge)
        added = table.ms("merge", 2 * rate) if edge.kind == "patch_embed" else 0.0
        prices[name] = table.ms(kind, rate, depth) + added
    return prices


def require_grid(table: LatencyTable, grid: RoutingGrid) -> None:
    """Raise GridError for a table of another grid."""
    if table.grid != grid.hash:
        raise GridError(
            f"latency table: it is of grid {table.grid}, not of {grid.hash}; measure one for this grid with "
            f"`routespace profile`"
        )


def mismatches(table: LatencyTable) -> list[str]:
    """What differs between where a table was measured and here, one line each; empty when nothing does.

    Threads are not compared: see `routespace.deploy.device.differences`.
    """
    return differences(table.device)


def save_table(table: LatencyTable, path: Path | str) -> None:
    """Write a table as JSON, whole or not at all; raises BundleError when it cannot be written."""
    data = table.model_dump(mode="json", exclude_none=True)
    write_file(Path(path), (json.dumps(data, indent=1) + "\n").encode())


def load_table(path: Path | str, *, grid: RoutingGrid | None = None) -> LatencyTable:
    """Read what `save_table` wrote; warns (UserWarning) when it is of another device or version.

    The times hold for `table.device.threads` threads of torch, whatever this process uses.

    Args:
        path: the file.
        grid: the grid that it must be of.

    Raises:
        SpecError: no such file, no table, or one with missing, repeated, negative or undefined times.
        GridError: the table is of another grid.
    """
    path = Path(path)
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(
            f"{path}: cannot be read ({error.strerror}); give a table from `routespace profile`"
        ) from error
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: is not JSON ({str(error).splitlines()[0]}); measure the table again") from error
    try:
        table = LatencyTable.model_validate(data)
    except ValidationError as error:
        raise SpecError(f"{path}: {explain(error, known=LatencyTable.model_fields)}") from error
    if grid is not None:
        require_grid(table, grid)
    for line in mismatches(table):
        warnings.warn(f"{path}: {line}; its times may not hold here", UserWarning, stacklevel=2)
    return table
