"""RouteNet: the backbone of an architecture. One class serves supernet, routed subnet and static subnet.

    net = RouteNet(Architecture.full(grid))          # every choice gated: the supernet
    out = net(images)                                # out.maps, out.routes
    small = net.restrict(architecture)               # the same weights, another part of the grid

A head on its maps makes it a network for a task: see `TaskNet`.

Keys of the state dict: `stem.*`, `edges.l03_r08_transformer.blocks.0.*`, `edges.l03_r08_patch_embed.*`,
`gates.l03_r08_transformer.*`, `skips.l03_r08_transformer.*` (with `gates.skipped`), `outputs.r32.*`. A part's keys
are a subset of the whole's.

Shape legend: B images · N tokens of a map · P = N, or 1 where a mask is about whole images · C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Self, Unpack

import torch
from torch import Tensor, nn

from routespace.checked import checked
from routespace.errors import GridError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.leading import check_map, leading_row
from routespace.grid.spec import map_size
from routespace.nn.assembly import assemble
from routespace.nn.families.base import Block, PatchEmbed, Stage, Stem
from routespace.nn.families.compiled import compile_blocks
from routespace.nn.module import PlainModule
from routespace.nn.packing.compiler import is_plain_run
from routespace.nn.plan import Row, compile_plan
from routespace.nn.routing.deciding import Changes, Deciding, Execution
from routespace.nn.routing.execution import make_compute
from routespace.nn.routing.gates import Gate
from routespace.nn.routing.places import GatePlaces, places_of
from routespace.nn.routing.routes import EdgeRoute, Routes
from routespace.nn.routing.state import NodeState
from routespace.nn.routing.steps import ForwardState, run_embed, run_row
from routespace.nn.trees import register_namedtuple
from routespace.nn.views import view_of


class RouteOutput(NamedTuple):
    """What a forward pass returns.

    Attributes:
        maps: rate → (B, C, H, W) of each output that the architecture reaches, fine to coarse; zero where nothing
            arrived.
        routes: every decision that was taken; cost is computed from it.
        there: rate → (B, N) bool of the tokens that arrived; None when images are there whole or not at all.
        computed: rate → (B, N) float of the tokens that its last row computed, as 0 or 1 with the gate's gradient;
            None where no gate chose among tokens.
    """

    maps: dict[int, Tensor]
    routes: Routes
    there: dict[int, Tensor | None]
    computed: dict[int, Tensor | None]


register_namedtuple(RouteOutput, "routespace.RouteOutput")


class RouteNet(nn.Module):
    """The network of an architecture.

    Args:
        architecture: what exists, and what is gated.
        gates: how the gated edges decide.
        execution: `dense` computes everything and masks (the reference); `packed` computes the kept tokens
            alone; `auto` chooses per edge by the share kept in the batch. Can be set later.
        drop_path: stochastic depth of the last layer; it grows linearly from 0 at the first.

    Attributes:
        drop_path: the same.

    Raises:
        SpecError: `drop_path` is no probability below 1.
    """

    stem: Stem
    edges: nn.ModuleDict
    gates: nn.ModuleDict
    skips: nn.ModuleDict
    outputs: nn.ModuleDict

    @checked
    def __init__(
        self,
        architecture: Architecture,
        gates: GateSpec | None = None,
        *,
        execution: Execution = "dense",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise SpecError(f"drop_path: {drop_path} is not allowed; give a probability, 0 or more and below 1")
        with torch.inference_mode(False):  # whoever makes it at inference may train it later
            self._assemble(architecture, Deciding.at_start(gates or GateSpec(), execution), drop_path, source=None)

    def _assemble(
        self, architecture: Architecture, deciding: Deciding, drop_path: float, source: RouteNet | None
    ) -> None:
        """Make the modules, or take those of `source`."""
        spec = architecture.spec
        self.architecture = architecture
        self.spec = spec
        self.drop_path = drop_path
        self._deciding = deciding
        self.plan = compile_plan(architecture)
        check_map(architecture, self.gate_spec)
        parts = assemble(architecture, self.plan, self.gate_spec, drop_path=drop_path, source=source)
        self.stem, self.edges, self.gates, self.skips, self.outputs = parts

    @property
    def deciding(self) -> Deciding:
        """How gates decide, and how what they decide is computed; `decide` changes it."""
        return self._deciding

    @property
    def gate_spec(self) -> GateSpec:
        """How the gated edges decide; `decide(gates=…)` changes it."""
        return self._deciding.gates

    @property
    def execution(self) -> Execution:
        """`dense`, `packed` or `auto`; `decide(execution=…)` changes it."""
        return self._deciding.execution

    def decide(self, **changes: Unpack[Changes]) -> Self:
        """Decide otherwise from the next call on; returns self.

        Args:
            changes: fields of `Deciding`: gates, temperature, noise, held, execution.

        Raises:
            SpecError: a value that is not allowed, or gates that need other modules than this network has.
            GridError: `held` is of another grid.
        """
        deciding = self._deciding.changed(**changes)
        if deciding.held is not None and deciding.held.spec.hash != self.spec.hash:
            raise GridError(
                f"held: architecture {deciding.held.hash} is of another grid; give one of this network's grid"
            )
        self._deciding = deciding
        return self

    @contextmanager
    def deciding_as(self, **changes: Unpack[Changes]) -> Iterator[Self]:
        """`decide` for the length of a block; afterwards, on errors too, all is as it was."""
        before = self._deciding
        self.decide(**changes)
        try:
            yield self
        finally:
            self._deciding = before

    def compile_blocks(self, on: bool = True) -> RouteNet:
        """Run transformer blocks compiled from the next call on, dense and packed ones alike; returns self.

        One compiled function serves all blocks of a width, every mask and every keep ratio.

        Raises:
            SpecError: the family has no compiled steps (swin_v2).
        """
        if on and not any(isinstance(part, Block) and part.has_compiled_steps for part in self.modules()):
            raise SpecError(f"compile: family {self.spec.family} has no compiled steps; leave it out")
        compile_blocks(self, on)
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let training keep each transformer edge's input alone, and compute the edge again in the backward pass.

        Edges of few and wide tokens keep what they made, and patch embeddings what their product makes. A deep
        grid then needs a fraction of the memory, for about a quarter more time; results stay the same. The name
        is timm's.
        """
        for edge in self.edges.values():
            if isinstance(edge, Stage | PatchEmbed):
                edge.grad_checkpointing = enable

    @property
    def compiled(self) -> bool:
        """Whether some blocks run compiled."""
        return any(isinstance(part, Block) and part.compiled for part in self.modules())

    def forward(self, images: Tensor, *, routes: Routes | None = None) -> RouteOutput:
        """Run the network.

        Args:
            images: (B, in_channels, H, W) normalised pixels, H and W of at least `spec.least_image_px`.
            routes: decisions to replay instead of asking the gates.

        Returns:
            RouteOutput; its routes carry the gates' gradients.

        Raises:
            SpecError: images that do not fit, or routes of other images.
        """
        sizes = self.map_sizes(images)
        if routes is not None:
            if not isinstance(routes, Routes):
                raise SpecError(f"routes: a {type(routes).__name__} was given; give Routes, such as output.routes")
            routes.check(self.architecture.grid, images=images.shape[0], sizes=sizes)
        replay = self._held_routes(images) if routes is None else routes
        asks = self._deciding.execution != "dense" and is_plain_run(images)
        run = ForwardState(
            spec=self.spec,
            edges=self.edges,
            gates=self.gates,
            skips=self.skips,
            deciding=self._deciding,
            compute=make_compute(self._deciding.execution, images),
            replay=replay,
            lengths=replay.lengths() if asks else {},  # before anything keeps the device busy
            nodes={self.architecture.grid.stem: NodeState(self.stem(images))},
            taken={},
        )
        for step in self.plan:
            hw = sizes[step.source[1]]
            if isinstance(step, Row):
                run_row(step, hw, run)
            else:
                run_embed(step, hw, run)
        ends = {rate: run.nodes[self.spec.layers, rate] for rate in self._rates(routes)}
        maps = {}
        for rate, end in ends.items():
            x = self.outputs[f"r{rate:02d}"](end.x) * end.mask(end.x.dtype)
            maps[rate] = x.transpose(1, 2).unflatten(2, sizes[rate])
        there = {rate: end.arrived() for rate, end in ends.items()}
        computed = {rate: self._computed_last(rate, run.taken) for rate in ends}
        return RouteOutput(maps, Routes(run.taken), there, computed)

    def _computed_last(self, rate: int, taken: Mapping[str, EdgeRoute]) -> Tensor | None:
        """What the last row at a rate computed of (B, N) tokens; None where it computed images whole, or all."""
        rows = (step for step in self.plan if isinstance(step, Row) and step.source[1] == rate)
        last = [step.transformer for step in rows if step.transformer is not None][-1:]
        route = taken.get(last[0]) if last else None
        return None if route is None or route.counted.shape[1] == 1 else route.counted

    def _rates(self, routes: Routes | None) -> list[int]:
        """Rates of the outputs: those that are reached, also by the gates that are held."""
        held = self._deciding.held if routes is None else None
        rates = self.architecture.output_rates
        return [rate for rate in rates if held is None or rate in held.output_rates]

    def _held_routes(self, images: Tensor) -> Routes:
        """The decisions of gates that are held; none where they decide for themselves."""
        held = self._deciding.held
        if held is None:
            return Routes({})
        places = self.gate_places(images.shape[-2:])
        return Routes.following(held, places, images=images.shape[0], device=images.device)

    def as_module(self) -> PlainModule:
        """A plain module over the same weights: images → a tuple of maps (B, C, H, W), fine to coarse."""
        return PlainModule(
            self, [f"features_r{rate:02d}" for rate in self.architecture.output_rates], several=True
        )

    def tensors(self, output: RouteOutput) -> tuple[Tensor, ...]:
        """What `forward` returned as tensors: the maps, fine to coarse."""
        return tuple(output.maps.values())

    def map_sizes(self, images: Tensor) -> dict[int, tuple[int, int]]:
        """Rate → height and width of its maps for images (B, C, H, W); raises SpecError where they do not fit."""
        if not isinstance(images, Tensor) or not images.is_floating_point():
            given = f"{images.dtype}" if isinstance(images, Tensor) else f"a {type(images).__name__}"
            raise SpecError(f"images: {given} was given; give normalised pixels (B, C, H, W), a tensor of floats")
        height, width = images.shape[-2:] if images.ndim == 4 else (0, 0)
        if min(height, width) < self.spec.least_image_px or images.shape[1] != self.spec.in_channels:
            raise SpecError(
                f"images: {tuple(images.shape)} does not fit; give (B, {self.spec.in_channels}, H, W) with "
                f"H and W of at least {self.spec.least_image_px}"
            )
        return {rate: map_size((height, width), rate) for rate in self.spec.rates}

    @checked
    def restrict(self, architecture: Architecture) -> RouteNet:
        """A RouteNet over the same weights for a part of this one's architecture.

        Weights, buffers and hooks are shared. Everything else is the part's own: its mode, how it decides,
        compiled blocks and checkpointing; whatever is set on the part leaves this network as it is.

        Raises:
            GridError: `architecture` is not a part of this network's, or has gated rows without the one whose gate
                makes their map (`gates.source: map`).
        """
        if not self.architecture.contains(architecture):
            raise GridError(
                f"architecture: {architecture.hash} is no part of {self.architecture.hash}; it needs the same "
                f"grid, edges that exist here, and gates only where this network has them"
            )
        self._check_leader(architecture)
        part = RouteNet.__new__(RouteNet)
        nn.Module.__init__(part)
        part._assemble(architecture, self._deciding, self.drop_path, source=view_of(self))
        part.training = self.training
        return part

    def _check_leader(self, part: Architecture) -> None:
        """Raise GridError for a part with gates that would have nobody to follow."""
        leader, own = leading_row(part), leading_row(self.architecture)
        if self.gate_spec.source == "map" and leader is not None and leader != own:
            raise GridError(
                f"architecture: {leader} is gated, but {own}, whose gate makes the map for all rows, is not; gate "
                f"that row too, or none"
            )

    def gate_places(self, image_size: tuple[int, int] | torch.Size) -> dict[str, GatePlaces]:
        """Edge name → where its gate decides, for images of (H, W) pixels."""
        return places_of(self.plan, self.gate_spec, (image_size[0], image_size[1]))

    def update_gate_ema(self) -> None:
        """Move the EMA copies of all gate weights; call it after each optimiser step."""
        for gate in self.gates.values():
            assert isinstance(gate, Gate)
            gate.update_ema(self.gate_spec.ema_decay)
