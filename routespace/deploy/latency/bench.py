"""Bench: the pieces of work that `profile` times, each part as it stands in a network, and whole networks.

A part is run as a chain of CHAIN copies with weights of their own, each reading what the one before has just
written. A gate's chain decides CHAIN times about one map, as a network's gates read what was computed just now.

Shape legend: B images · N tokens of a map · C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from routespace.deploy.latency.parts import COLUMN_GATE, MAP_GATE, ROW_GATE, SKIPPED, PartKey, part_keys
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec, gate_places
from routespace.grid.graph import RoutingGrid
from routespace.nn.families.base import modules_of
from routespace.nn.families.compiled import compile_blocks
from routespace.nn.packing.maps import spread
from routespace.nn.routing.deciding import Deciding
from routespace.nn.routing.execution import EdgeInput, Packed
from routespace.nn.routing.gates import Gate, share_count, top_share
from routespace.nn.routing.margins import MarginMap
from routespace.nn.routing.skipped import SkippedPath, add_packed
from routespace.nn.routing.state import NodeState
from routespace.nn.task_net import TaskNet

CHAIN = 3

Work = Callable[[], object]
M = TypeVar("M", bound=nn.Module)


class Bench:
    """Makes the pieces of work that are timed.

    Args:
        grid: whose parts.
        device, batch, dtype, compiled: as in `profile`.
        gates: how edges are gated; None where nothing is, and tokens are kept as default gates would.

    Raises:
        SpecError: `compiled` for a family whose blocks have no compiled steps.
    """

    def __init__(
        self,
        grid: RoutingGrid,
        *,
        device: torch.device | str,
        batch: int,
        dtype: torch.dtype,
        compiled: bool = False,
        gates: GateSpec | None = None,
    ) -> None:
        self.grid, self.spec = grid, grid.spec
        self.device, self.batch, self.dtype, self.compiled = device, batch, dtype, compiled
        self.gated, self.gates = gates is not None, gates or GateSpec()
        self._modules = modules_of(self.spec.family)
        if compiled:  # refused here where it cannot be, before anything is measured
            with torch.device("meta"):
                TaskNet.classifier(Architecture.full(grid)).compile_blocks()

    def copies(self, key: PartKey) -> int:
        """How many copies of a part one piece of work runs."""
        return 1 if key.kind in ("stem", "output", "head") else CHAIN

    def parts(self, keeps: Sequence[float], seed: int) -> dict[tuple[PartKey, float], Work]:
        """(part, keep) → its work, for every distinct part.

        Transformer edges at each share of tokens, but for shares of less than one decision: the coarsest map may
        have a single token, which is computed or not.
        """
        return {
            (key, keep): self.part(key, keep, seed)
            for key in sorted(part_keys(self.grid, self.gates if self.gated else None))
            for keep in sorted({1.0, *(keeps if key.kind == "transformer" else ())})
            if keep == 1.0 or keep * self._places(key.rate) >= 1
        }

    def part(self, key: PartKey, keep: float, seed: int) -> Work:
        """The work of one part."""
        kind, rate, depth, phase = key
        spec, hw = self.spec, self.spec.map_size(rate) if rate else (0, 0)
        if kind == "stem":
            stem, images = self._ready(self._modules.stem(spec)), self.images()
            return lambda: stem(images)
        if kind == "head":
            head, pooled = (
                self._ready(nn.Linear(spec.width(spec.max_down), spec.num_classes)),
                self._map(spec.max_down),
            )
            return lambda: head(pooled.mean(1))
        x = self._map(rate)
        if kind == "output":
            output = self._ready(self._modules.output(spec, rate))
            return lambda: output(x)
        if kind == "merge":
            return lambda: _merge(x, CHAIN)
        if kind == MAP_GATE:
            return self._followed(rate)
        if kind in (ROW_GATE, COLUMN_GATE):
            return self._decisions(rate, rows=kind == ROW_GATE)
        if kind == SKIPPED:
            return self._skipped(rate)
        if kind == "patch_embed":
            embeds = [self._ready(self._modules.patch_embed(spec, rate)) for _ in range(CHAIN)]
            return lambda: [embed(x, hw) for embed in embeds]
        stages = [self._ready(self._modules.stage(spec, rate, depth, first=phase)) for _ in range(CHAIN)]
        if keep == 1.0:
            return lambda: _chain(stages, x, hw)
        equal = share_count(keep, self._places(rate)) if self.gates.capacity else None
        works = [
            EdgeInput(NodeState(x), hw, self._kept(rate, keep, seed + copy), keys=self.gates.keys, per_image=equal)
            for copy in range(CHAIN)
        ]
        return lambda: _packed_chain(stages, works)

    def subnet(self, architecture: Architecture) -> Work:
        """The work of a whole static network."""
        net, images = self.net(architecture), self.images()
        return lambda: net(images)

    def net(self, architecture: Architecture) -> TaskNet:
        """A network as it is measured whole; one with gates computes packed."""
        net = self._ready(TaskNet.classifier(architecture, self.gates))
        return net.decide(execution="dense" if architecture.is_static else "packed")

    def images(self) -> Tensor:
        """(B, C, H, W) random pixels."""
        size = (self.batch, self.spec.in_channels, *self.spec.image_size)
        return torch.randn(size, device=self.device, dtype=self.dtype)

    def _decisions(self, rate: int, *, rows: bool) -> Work:
        """Asking gates, and marking what they keep."""
        spec, x, hw = self.gates, self._map(rate), self.spec.map_size(rate)
        deciding = Deciding.at_start(spec)
        granularity, width = spec.rows if rows else spec.columns, self.spec.width(rate)
        gates = [self._ready(Gate(spec, granularity, width, rows=rows)) for _ in range(CHAIN)]
        return lambda: [gate(x, hw, deciding).counted > 0 for gate in gates]

    def _followed(self, rate: int) -> Work:
        """Deciding by the margins of the finest rate."""
        spec, x, hw = self.gates, self._map(rate), self.spec.map_size(rate)
        deciding, finest = Deciding.at_start(spec), self.spec.map_size(self.spec.rates[0])
        margins = MarginMap(torch.randn(self.batch, finest[0] * finest[1], device=self.device), finest)
        gate = self._ready(Gate(spec, spec.rows, self.spec.width(rate), rows=True, follows=True))
        return lambda: [gate(x, hw, deciding, margins=margins.at(hw)).counted > 0 for _ in range(CHAIN)]

    def _skipped(self, rate: int) -> Work:
        """The paths of skipped tokens, where all are."""
        x = self._map(rate)
        paths = [self._ready(SkippedPath(self.gates, self.spec.width(rate))) for _ in range(CHAIN)]
        every = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return lambda: _added(paths, x, every)

    def _kept(self, rate: int, keep: float, seed: int) -> Tensor:
        """(B, N) bool: the share `keep` of each image's tokens, or of its windows where rows decide by these."""
        generator = torch.Generator().manual_seed(seed)
        draw = torch.rand((self.batch, self._places(rate)), generator=generator, device="cpu")
        return spread(top_share(draw, keep).bool().to(self.device), self.spec.map_size(rate), self._side)

    @property
    def _side(self) -> int:
        """Side in tokens of what a row's gate keeps or skips as one."""
        return self.gates.window if self.gates.rows == "window" else 1

    def _places(self, rate: int) -> int:
        """Into how many such squares a map falls."""
        return gate_places("window", self.spec.map_size(rate), self._side)

    def _map(self, rate: int) -> Tensor:
        """(B, N, C) random tokens."""
        height, width = self.spec.map_size(rate)
        size = (self.batch, height * width, self.spec.width(rate))
        return torch.randn(size, device=self.device, dtype=self.dtype)

    def _ready(self, module: M) -> M:
        """A module as a network runs it: blocks compiled where that was asked for, all else as it is."""
        module = module.eval().to(self.device, self.dtype)
        if self.compiled:
            compile_blocks(module)
        return module


def _chain(stages: Sequence[nn.Module], x: Tensor, hw: tuple[int, int]) -> Tensor:
    for stage in stages:
        x = stage(x, hw)
    return x


def _packed_chain(stages: Sequence[nn.Module], works: Sequence[EdgeInput]) -> Tensor:
    """Each stage keeps tokens of its own, as each row of a network decides for itself."""
    compute, x = Packed(), works[0].node.x
    for stage, work in zip(stages, works, strict=True):
        x = compute.row(stage, replace(work, node=NodeState(x)))
    return x


def _added(paths: Sequence[nn.Module], x: Tensor, skipped: Tensor) -> Tensor:
    for path in paths:
        x = add_packed(path, x, skipped)
    return x


def _merge(x: Tensor, count: int) -> Tensor:
    total = x
    for _ in range(count):
        total = total + x
    return total
