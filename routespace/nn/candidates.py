"""Many static parts of one network on the same images, where whatever they share is computed once.

    shared = SharedParts(net, architectures)
    for place, outputs in shared(images):        # architectures[place]'s outputs, one after the other

A map is what a chain of edges made of the images. Parts that reach a node by the same edges read the same map, so
the parts together are a set of operations, each with the maps it reads; one that several parts need is done once.
That goes beyond common beginnings: two parts that differ at a coarse rate alone share all finer rates. A map is
dropped as soon as nobody will read it, and parts that have much in common run one after the other.

Shape legend: B images · N tokens of a map · C channels · H, W pixels, or of a map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from routespace.errors import GridError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import Node
from routespace.grid.prices import cost_table
from routespace.nn.plan import Row, compile_plan
from routespace.nn.route_net import RouteOutput
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import TaskNet, head_over

STEM = 0  # the first map


@dataclass(frozen=True)
class Operation:
    """How a map is made: an edge reads one, a node adds two up, an output's norm reads one.

    Attributes:
        kind: `edge`, `sum` or `output`.
        name: of the edge; empty for a sum; the rate's key for an output.
        reads: numbers of the maps.
        rate: of the (first) map that is read.
    """

    kind: str
    name: str
    reads: tuple[int, ...]
    rate: int


class PartSteps(NamedTuple):
    """What happens for one architecture.

    Attributes:
        place: of the architecture.
        made: the maps that nobody has made before it, in order.
        dropped: for each of these, and last for the head, the maps that nobody reads after it.
    """

    place: int
    made: list[int]
    dropped: list[list[int]]


class SharedParts:
    """The operations of some static parts of a network.

    Args:
        net: the network.
        architectures: its static parts.

    Attributes:
        operations: number of each map → how it is made; the stem's, number 0, is none of them.
        ends: place of an architecture → rate → number of its output map.
        order: places of the architectures, in the order in which they run.
        share: MACs of all operations, over those of the parts one by one.

    Raises:
        SpecError: a part with gates, or no part at all.
        GridError: an architecture that is no part of the network's.
    """

    def __init__(self, net: TaskNet, architectures: Sequence[Architecture]) -> None:
        self.net, self.spec = net, net.spec
        self.operations: dict[int, Operation] = {}
        self.ends: list[dict[int, int]] = []
        self._numbers: dict[Operation, int] = {}
        self._heads: dict[tuple[int, ...], nn.Module] = {}
        made_by: list[list[int]] = []
        for architecture in architectures:
            self._check(architecture)
            used: list[int] = []
            self.ends.append(self._trace(architecture, used))
            made_by.append(used)
        if not architectures:
            raise SpecError("architectures: there are none; give one or more static parts of the network")
        self.order = sorted(range(len(architectures)), key=lambda place: made_by[place])
        self._turns = self._planned(made_by)
        self.share = self._share(architectures, made_by)

    def _check(self, architecture: Architecture) -> None:
        if not architecture.is_static:
            raise SpecError(f"architectures: {architecture.hash} has gates; give static ones")
        if not self.net.architecture.contains(architecture):
            raise GridError(f"architectures: {architecture.hash} is no part of {self.net.architecture.hash}")

    def _trace(self, architecture: Architecture, used: list[int]) -> dict[int, int]:
        """Rate → number of the output map; `used` becomes the maps on the way, in order."""
        nodes: dict[Node, int] = {architecture.grid.stem: STEM}

        def make(kind: str, name: str, reads: tuple[int, ...], rate: int) -> int:
            operation = Operation(kind, name, reads, rate)
            number = self._numbers.setdefault(operation, len(self._numbers) + 1)
            self.operations[number] = operation
            used.append(number)
            return number

        def arrive(node: Node, number: int) -> None:
            before = nodes.get(node)
            nodes[node] = number if before is None else make("sum", "", (before, number), node[1])

        for step in compile_plan(architecture):
            here = nodes[step.source]
            name = step.transformer if isinstance(step, Row) else step.name
            arrive(step.target, here if name is None else make("edge", name, (here,), step.source[1]))
        return {
            node[1]: make("output", f"r{node[1]:02d}", (nodes[node],), node[1]) for node in architecture.outputs
        }

    def _planned(self, made_by: Sequence[Sequence[int]]) -> list[PartSteps]:
        """The turns of the architectures, each with the maps that are made in it and when each can go."""
        new: list[list[int]] = []
        done, last = set[int](), dict[int, tuple[int, int]]()  # map → turn and place in it that reads it last
        for turn, place in enumerate(self.order):
            new.append([number for number in made_by[place] if number not in done])
            done.update(new[-1])
            for step, number in enumerate(new[-1]):
                for read in self.operations[number].reads:
                    last[read] = turn, step
            for number in self.ends[place].values():
                last[number] = turn, len(new[-1])
        turns = [
            PartSteps(place, made, [[] for _ in range(len(made) + 1)])
            for place, made in zip(self.order, new, strict=True)
        ]
        for number, (turn, step) in last.items():
            turns[turn].dropped[step].append(number)
        return turns

    def _share(self, architectures: Sequence[Architecture], made_by: Sequence[Sequence[int]]) -> float:
        prices = cost_table(self.net.architecture.grid).amounts("macs")

        def cost(number: int) -> float:
            operation = self.operations[number]
            return prices[operation.name] if operation.kind == "edge" else 0.0

        once = sum(cost(number) for number in self.operations)
        alone = sum(cost(number) for used in made_by for number in used)
        return once / alone if alone else 1.0

    def __call__(self, images: Tensor) -> Iterator[tuple[int, Any]]:
        """Images (B, C, H, W) → the place of each architecture and its head's outputs, in `order`.

        The caller chooses mode and gradients; memory is meant for inference.

        Raises:
            SpecError: images that do not fit.
        """
        backbone = self.net.backbone
        sizes = backbone.map_sizes(images)
        maps: dict[int, Tensor] = {STEM: backbone.stem(images)}
        for turn in self._turns:
            for number, dropped in zip(turn.made, turn.dropped, strict=False):
                maps[number] = self._make(self.operations[number], maps, sizes)
                for old in dropped:
                    del maps[old]
            ends = {rate: maps[number] for rate, number in self.ends[turn.place].items()}
            yield (
                turn.place,
                self._head(tuple(ends))(RouteOutput(ends, Routes({}), dict.fromkeys(ends), dict.fromkeys(ends))),
            )
            for old in turn.dropped[-1]:
                del maps[old]

    def _head(self, rates: tuple[int, ...]) -> nn.Module:
        """The head of parts that reach these rates."""
        if rates not in self._heads:
            self._heads[rates] = head_over(self.net.head, rates)
        return self._heads[rates]

    def _make(self, operation: Operation, maps: dict[int, Tensor], sizes: dict[int, tuple[int, int]]) -> Tensor:
        """The map of an operation; exactly what a forward pass of its part computes."""
        backbone, read = self.net.backbone, maps[operation.reads[0]]
        if operation.kind == "sum":
            return read + maps[operation.reads[1]]
        hw = sizes[operation.rate]
        if operation.kind == "edge":
            made: Tensor = backbone.edges[operation.name](read, hw)
            return made
        normed: Tensor = backbone.outputs[operation.name](read)
        laid_out: Tensor = normed.transpose(1, 2).unflatten(2, hw)
        return laid_out
