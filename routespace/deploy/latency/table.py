"""Latency tables: what each kind of edge takes on one device, and what a whole network takes by them.

    table = profile(grid, device="cpu", batch=1)          measure (`routespace.deploy.latency.profiling`)
    table = profile(grid, gates=GateSpec())               the gates too, and edges that compute some tokens
    save_table(table, path) · load_table(path)
    predict(table, architecture, usage)                   milliseconds of a forward pass of the batch
    table_prices(table, grid)                             the same as prices per edge, for `select`

A network takes the sum of its parts, each multiplied by its group's factor, plus an offset. The factors are 1 and
the offset 0 in a table that was not fitted; `profile` fits them to a few whole subnets, because parts measured
alone know neither the caches that a whole network finds nor the time between its steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from routespace.deploy.latency.device import MeasuredDevice, device_differences
from routespace.deploy.latency.parts import (
    SKIPPED,
    Milliseconds,
    PartKey,
    PartTime,
    edge_key,
    gate_key,
    part_keys,
)
from routespace.errors import GridError, SpecError, warn
from routespace.files import read_json, write_json
from routespace.grid.architecture import Architecture
from routespace.grid.families.base import Family
from routespace.grid.families.lookup import allow_families
from routespace.grid.gate_spec import SHAPING, GateSpec
from routespace.grid.graph import Node, RoutingGrid
from routespace.grid.leading import leading_row
from routespace.grid.resources import MeasuredPrices
from routespace.grid.spec import GridSpec
from routespace.grid.usage import ALL_USED, Usage, check_usage
from routespace.values import Value

Clock = Literal["wall", "cpu"]  # the time that passes, or the processor's of the process, on a busy machine
DType = Literal["float32", "bfloat16", "float16"]
# What a gated edge's time depends on.
TIMED = (*SHAPING, "window", "capacity", "keys", "smooth_side")


class Subnet(Value):
    """A whole static network that the factors were fitted to.

    Args:
        edges: names of its open edges.
        ms: median milliseconds of a forward pass.
    """

    edges: tuple[str, ...]
    ms: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LatencyTable(Value):
    """Measured times of every part of a grid.

    Args:
        grid: hash of the grid that was measured; no other one is answered for.
        spec: its spec.
        device: where.
        batch, dtype, compiled: how.
        clock: `wall`, or `cpu` for the thread's own processor time (on a shared machine).
        rounds: measurements behind each median.
        date: UTC, ISO 8601.
        gates: how the gates decide that were measured; None where none were.
        parts: the times; each part and keep once.
        factors: group (`transformer_r08`, `patch_embed_r08`, …) → factor; groups not named have 1.
        offset_ms: what is left, once per forward pass.
        subnets: what factors and offset were fitted to.
    """

    format: Literal["routespace.latency/1"] = "routespace.latency/1"
    grid: str
    spec: GridSpec
    device: MeasuredDevice
    batch: Annotated[int, Field(ge=1)]
    dtype: DType = "float32"
    compiled: bool = False
    clock: Clock = "wall"
    rounds: Annotated[int, Field(ge=1)]
    date: str
    gates: GateSpec | None = None
    parts: tuple[PartTime, ...]
    factors: Mapping[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    offset_ms: Milliseconds = 0.0
    subnets: tuple[Subnet, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.grid != self.spec.hash:
            raise ValueError(f"grid: {self.grid} is not the hash of the table's spec; the file was changed")
        again = "measure the table again with `routespace profile`"
        points = Counter((part.key, part.keep) for part in self.parts)
        for (key, keep), times in points.items():
            if times > 1:
                raise ValueError(f"parts: {key}, keep {keep:g} is there {times} times, once is allowed; {again}")
        for key in sorted(part_keys(RoutingGrid(self.spec), self.gates)):
            if (key, 1.0) not in points:
                raise ValueError(f"parts: {key} is missing; {again}")
        return self

    def curve(self, key: PartKey) -> list[tuple[float, float]]:
        """The measured points of one part: (keep, milliseconds), by rising keep; factors are not applied."""
        return sorted((part.keep, part.ms) for part in self.parts if part.key == key)

    def ms(self, key: PartKey, keep: float = 1.0) -> float:
        """Milliseconds of one part at a share of computed tokens, interpolated; none for nothing kept.

        Few tokens take nearly as long as somewhat more: keys are made of all of them, and calls have a price of
        their own. So below the least share that was measured the line through the two least goes on, down to what
        one token takes; of a part that was measured whole alone the time is in proportion.
        """
        points, factor = self.curve(key), self.factors.get(key.group, 1.0)
        if keep <= 0 or not points:
            return 0.0
        if len(points) == 1:
            return factor * points[0][1] * min(1.0, keep)
        lines = pairwise(points)
        (x0, y0), (x1, y1) = next(((low, high) for low, high in lines if keep <= high[0]), points[-2:])
        rise = (y1 - y0) / (x1 - x0)
        if keep < x0:  # noise of two close points must not make less dearer than more
            return factor * max(0.0, y0 - max(0.0, rise) * (x0 - keep))
        return factor * (y0 + rise * (min(1.0, keep) - x0))

    @property
    def constant_ms(self) -> float:
        """Milliseconds that every architecture pays: stem, outputs, head, offset."""
        outputs = sum(self.ms(PartKey("output", rate)) for rate in self.spec.output_rates)
        head = self.ms(PartKey("head")) if self.spec.num_classes else 0.0
        return self.offset_ms + self.ms(PartKey("stem")) + outputs + head


def predict(
    table: LatencyTable,
    architecture: Architecture,
    usage: Usage | None = None,
    *,
    gates: GateSpec | None = None,
) -> float:
    """Milliseconds of one forward pass of the table's batch.

    As MACs are counted: an edge takes its time for the images that it computes, at their share of tokens, and its
    gate for the decisions that were asked for, the path of skipped tokens for these. Warns (UserWarning) where a
    gate's time is not in the table, or is that of gates of another kind.

    Args:
        table: of the architecture's grid.
        architecture: static, or gated: then usage tells how much of each edge is computed.
        usage: edge name → measured shares; edges that are not named are computed wholly.
        gates: how the architecture's gates decide, to compare with those measured; None: as those.

    Raises:
        GridError: the table is of another grid.
        SpecError: usage of an edge that the grid lacks.
    """
    total = sum_ms(table, architecture, usage)
    problem = None if architecture.is_static else gate_problem(table, gates)
    if problem:
        warn(problem)
    return total


def sum_ms(table: LatencyTable, architecture: Architecture, usage: Usage | None = None) -> float:
    """`predict` without its warnings, for those who predict often and have looked at `gate_problem` once."""
    require_grid(table, architecture.grid)
    check_usage(usage or {}, architecture.grid.edges)
    total = table.constant_ms - sum(table.ms(PartKey("output", rate)) for rate in architecture.missing_rates)
    leader = leading_row(architecture) if table.gates is not None and table.gates.source == "map" else None
    for rate, count in merges(architecture).items():
        total += count * table.ms(PartKey("merge", rate))
    for name, state in architecture.edges.items():
        edge = architecture.grid.edges[name]
        if edge.kind == "identity":
            continue
        tokens, images, asked, skipped = (float(share) for share in (usage or {}).get(name, ALL_USED))
        if images:
            total += images * table.ms(edge_key(architecture.spec, edge), min(1.0, tokens / images))
        if state == "gated":
            follows = leader is not None and name != leader
            total += asked * table.ms(gate_key(edge, follows=follows))
            total += skipped * table.ms(PartKey(SKIPPED, edge.rate))
    return total


def gate_problem(table: LatencyTable, gates: GateSpec | None = None) -> str | None:
    """What a routed network's prediction leaves out, or takes from other gates, in one line; None for nothing.

    Args:
        table: the table.
        gates: how the network's gates decide; None: as the table's.
    """
    again = "measure one with `routespace profile RUN`, or `profile GRID --routed` for default gates"
    if table.gates is None:
        return f"latency table: it holds no gates, so the time of deciding is left out; {again}"
    other = [name for name in TIMED if gates and getattr(gates, name) != getattr(table.gates, name)]
    named = ", ".join(name.removesuffix("_side") for name in other)
    return f"latency table: its gates are of another kind ({named}); {again}" if other else None


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


def table_prices(table: LatencyTable, grid: RoutingGrid) -> MeasuredPrices:
    """Milliseconds per edge, for `select(…, measured={"latency_ms": table_prices(table, grid)})`.

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
        added = table.ms(PartKey("merge", 2 * edge.rate)) if edge.kind == "patch_embed" else 0.0
        prices[name] = table.ms(edge_key(grid.spec, edge)) + added
    return MeasuredPrices(prices, table.constant_ms)


def require_grid(table: LatencyTable, grid: RoutingGrid) -> None:
    """Raise GridError for a table of another grid."""
    if table.grid == grid.hash:
        return
    ours, theirs = grid.spec.canonical(), table.spec.canonical()
    if ours == theirs | {"image_size": ours["image_size"]}:
        sizes = table.spec.image_size, grid.spec.image_size
        measured, wanted = (f"{height}x{width}" for height, width in sizes)
        raise GridError(
            f"latency table: it was measured on images of {measured} px, not of {wanted} px; measure one at that "
            f"size with `routespace profile`"
        )
    raise GridError(
        f"latency table: it is of grid {table.grid}, not of {grid.hash}; measure one for this grid with "
        f"`routespace profile`"
    )


def mismatches(table: LatencyTable) -> list[str]:
    """What differs between where a table was measured and here, one line each; empty when nothing does.

    Threads are not compared: see `routespace.deploy.latency.device.device_differences`.
    """
    return device_differences(table.device)


def save_table(table: LatencyTable, path: Path | str) -> None:
    """Write a table as JSON, whole or not at all; raises BundleError when it cannot be written."""
    write_json(path, table.model_dump(mode="json", exclude_none=True))


def load_table(
    path: Path | str, *, grid: RoutingGrid | None = None, families: Iterable[Family] = ()
) -> LatencyTable:
    """Read what `save_table` wrote; warns (UserWarning) when it is of another device or version.

    The times hold for `table.device.threads` threads of torch, whatever this process uses.

    Args:
        path: the file.
        grid: the grid that it must be of.
        families: block families of your own that it may name.

    Raises:
        SpecError: no such file, no table, or one with missing, repeated, negative or undefined times.
        GridError: the table is of another grid.
    """
    data = read_json(path, wanted="a table from `routespace profile`", error=SpecError)
    try:
        with allow_families(*families, *([grid.spec.family] if grid is not None else [])):
            table = LatencyTable.parse(data)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error
    if grid is not None:
        require_grid(table, grid)
    for line in mismatches(table):
        warn(f"{path}: {line}; its times may not hold here")
    return table
