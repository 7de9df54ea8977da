"""Running one step of a plan: decide, compute what was kept, pass the rest on.

Shape legend: B images · N tokens of a map · P = N, or 1 where a mask is about whole images · C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from routespace.grid.graph import Node
from routespace.grid.spec import GridSpec, map_size
from routespace.nn.packing.maps import coarsen
from routespace.nn.plan import Embed, Row
from routespace.nn.routing.deciding import Deciding
from routespace.nn.routing.execution import Compute, EdgeInput
from routespace.nn.routing.gates import Decision, Gate
from routespace.nn.routing.margins import MarginMap
from routespace.nn.routing.routes import EdgeRoute, Routes
from routespace.nn.routing.state import NodeState


@dataclass
class ForwardState:
    """One forward pass: what it computes with, and how far it has come.

    Attributes:
        spec: the grid's.
        edges, gates, skips: the network's modules by edge name.
        deciding: how gates decide.
        compute: how gated and partly reached edges are computed (`Dense`, `Packed`, `Auto`).
        replay: decisions to use instead of the gates', by edge name.
        nodes: the nodes reached so far that are still to be read.
        taken: what each edge did.
        margins: what the leading row's gate said of each token, for the rows after it (`gates.source: map`).
        lengths: kept tokens of each image by the decisions of `replay`, where the host has asked for them.
    """

    spec: GridSpec
    edges: nn.ModuleDict
    gates: nn.ModuleDict
    skips: nn.ModuleDict
    deciding: Deciding
    compute: Compute
    replay: Routes
    nodes: dict[Node, NodeState]
    taken: dict[str, EdgeRoute]
    margins: MarginMap | None = None
    lengths: Mapping[str, list[int]] = field(default_factory=dict)

    def arrive(self, node: Node, state: NodeState) -> None:
        """Add an arrival to a node's sum."""
        self.nodes[node] = self.nodes[node].plus(state) if node in self.nodes else state

    def gate(self, name: str) -> Gate:
        """The gate of an edge."""
        gate = self.gates[name]
        assert isinstance(gate, Gate)
        return gate


def run_row(step: Row, hw: tuple[int, int], run: ForwardState) -> None:
    """One row: identity, transformer, or the gate between them; `hw` is its map's height and width."""
    here = run.nodes.pop(step.source)  # rows come last at a node, so nobody reads it again
    name = step.transformer
    if name is None:
        run.arrive(step.target, here)
        return
    stage = run.edges[name]
    if not step.gated and here.reach is None:
        run.arrive(step.target, NodeState(stage(here.x, hw), None, here.active))
        return
    if run.compute.finds_nothing(here if step.gated else here.unstopped()):
        run.taken[name] = _route_of_nothing(name, here, hw, run)
        run.arrive(step.target, here)
        return
    scale, mask, active = None, None, here.active
    if step.gated:
        route, scale, mask = _decide_row(name, here, hw, run)
        active = route.kept if run.deciding.gates.early_stop else None
    else:
        assert here.reach is not None
        route = EdgeRoute(_kept(here.reach, here.count), here.reach, per_image=here.count)
    run.taken[name] = route
    edge = EdgeInput(
        here,
        hw,
        route.kept,
        scale,
        keys=run.deciding.gates.keys,
        per_image=route.per_image,
        lengths=run.lengths.get(name) if here.reach is None and here.active is None else None,
        mask=mask,
    )
    y = run.compute.row(stage, edge)
    if route.skipped is not None:
        y = run.compute.skip(run.skips[name], y, route.skipped > 0, _skipped_count(route, here))
    run.arrive(step.target, NodeState(y, here.reach, active, here.count))


def run_embed(step: Embed, hw: tuple[int, int], run: ForwardState) -> None:
    """One patch embedding: the chosen images or 2×2 groups also go on at the next coarser rate."""
    here = run.nodes[step.source]
    embed = run.edges[step.name]
    if not step.gated and here.reach is None:
        run.arrive(step.target, NodeState(embed(here.x, hw)))
        return
    scale, early_stop = None, run.deciding.gates.early_stop
    width, coarse = run.spec.width(step.target[1]), map_size(hw, 2)
    if run.compute.finds_nothing(here.unstopped()):
        route = _route_of_nothing(step.name, here, coarse, run)
        y = here.x.new_zeros(here.x.shape[0], coarse[0] * coarse[1], width)
        per_image = None
    else:
        if step.gated:
            route, scale = _decide_embed(step, here, hw, run)
        else:
            assert here.reach is not None
            there = coarsen(here.reach, hw)
            count = there.shape[1] if here.is_whole else None
            route = EdgeRoute(_kept(there, count), there, per_image=count)
        per_image = route.per_image
        edge = EdgeInput(here, hw, route.kept, scale, per_image=per_image, width=width)
        y = run.compute.embed(embed, edge)
    run.taken[step.name] = route
    run.arrive(step.target, NodeState(y, route.counted, route.kept if early_stop else None, per_image))


def _decide_row(
    name: str, here: NodeState, hw: tuple[int, int], run: ForwardState
) -> tuple[EdgeRoute, Tensor | None, Tensor | None]:
    """What a row's gate keeps of the tokens that are there, and (B, P) what their result is multiplied by.

    The third is `kept` as floats, where somebody has made them.
    """
    decision = _ask(name, here, hw, run)
    counted, there = decision.counted, _there(here)
    if there is not None:
        counted = counted * there
    per_image = _count(decision, counted) if here.active is None else None  # the stopped are not counted
    opened = decision.opened if there is None and per_image is None else None
    route = EdgeRoute(
        _kept(counted, per_image) if opened is None else opened,
        counted,
        decision.chance,
        _asked(here.undecided(), decision.value),
        per_image,
        _value_to_record(name, decision, run),
        ((1.0 if there is None else there) - counted) if _takes_path(name, run) else None,
    )
    return route, _scale(name, decision, run), None if opened is None else counted


def _count(decision: Decision, counted: Tensor) -> int | None:
    """How many (B, P) count in every image, where the host knows; a decision about images is one about tokens."""
    return counted.shape[1] if decision.per_image == decision.counted.shape[1] else decision.per_image


def _kept(counted: Tensor, per_image: int | None) -> Tensor:
    """(B, P) bool of what counts; all, where the host knows so, also of probabilities that round to nothing."""
    return counted > 0 if per_image != counted.shape[1] else torch.ones_like(counted, dtype=torch.bool)


def _there(here: NodeState) -> Tensor | None:
    """(B, P) floats of what a row's gate can decide about, with the gradient of what sent it; None for all."""
    if here.active is None:
        return here.reach
    active = here.active.float()
    return active if here.reach is None else here.reach * active


def _takes_path(name: str, run: ForwardState) -> bool:
    """Whether what a row skips takes its cheap path; of decisions from outside it is said by them."""
    return name in run.skips and (name not in run.replay or run.replay[name].skipped is not None)


def _skipped_count(route: EdgeRoute, here: NodeState) -> int | None:
    """How many tokens of every image are skipped, where the host knows."""
    if route.per_image is None:
        return None
    there = here.x.shape[1] if here.is_whole else here.count
    return None if there is None else there - route.per_image


def _decide_embed(
    step: Embed, here: NodeState, hw: tuple[int, int], run: ForwardState
) -> tuple[EdgeRoute, Tensor | None]:
    """What a patch embedding's gate sends down, and (B, P) what its result is multiplied by."""
    decision = _ask(step.name, here, hw, run)
    counted, scale = decision.counted, _scale(step.name, decision, run)
    if step.last_chance and decision.per_image is None:  # else a part of each image goes down
        must = _stranded(step, counted, run)
        counted = torch.where(must, torch.ones_like(counted), counted)
        scale = None if scale is None else torch.where(must, torch.ones_like(scale), scale)
    there = None if here.reach is None else coarsen(here.reach, hw)
    counted = counted if there is None else counted * there
    per_image = _count(decision, counted)
    route = EdgeRoute(
        _kept(counted, per_image),
        counted,
        decision.chance,
        _asked(None if there is None else there > 0, decision.value),
        per_image,
        _value_to_record(step.name, decision, run),
    )
    return route, scale


def _ask(name: str, here: NodeState, hw: tuple[int, int], run: ForwardState) -> Decision:
    """The gate's decision, or the recorded one; `per_image` only where it holds for what is here, too."""
    gate = run.gate(name)
    if gate.leads and any(other not in run.replay for other in run.gates):
        run.margins = MarginMap(gate.margins_to_decide_by(here.x, hw, run.deciding.gates), hw)
    if name in run.replay:
        route = run.replay[name]
        kept = route.kept.float()
        value = kept if route.value is None else route.value
        counted = kept if run.deciding.gates.scales_edge else value
        opened = route.kept if route.value is None else None
        return Decision(value, counted, value, route.per_image if here.reach is None else None, opened)
    margins = run.margins.at(hw) if run.margins is not None and (gate.leads or gate.follows) else None
    share = None if run.deciding.shares is None else run.deciding.shares.get(name)
    decision: Decision = gate(
        here.x, hw, run.deciding, present=here.arrived(), count=here.count, margins=margins, share=share
    )
    if here.reach is not None and here.count is None:
        return decision._replace(per_image=None)  # images that are not here keep nothing
    return decision


def _scale(name: str, decision: Decision, run: ForwardState) -> Tensor | None:
    """What the result is multiplied by; None where that is 1 at every kept token and has no gradient."""
    if name in run.replay:
        return run.replay[name].value
    gates = run.deciding.gates
    if gates.scales_edge or (run.gate(name).training and gates.relaxation == "soft"):
        return decision.value
    return decision.value if decision.value.requires_grad else None


def _value_to_record(name: str, decision: Decision, run: ForwardState) -> Tensor | None:
    """The decision's value for the record, where it is not simply 0 or 1."""
    gates = run.deciding.gates
    soft = run.gate(name).training and gates.relaxation == "soft"
    return decision.value if soft or gates.scales_edge else None


def _route_of_nothing(name: str, here: NodeState, hw: tuple[int, int], run: ForwardState) -> EdgeRoute:
    """The route of an edge whose source holds nothing to compute: its gate, if there is one, is not asked."""
    gated = name in run.gates
    decided = 1 if not gated or run.gate(name).decides_for_images else hw[0] * hw[1]
    partial = any(mask is not None and mask.shape[1] > 1 for mask in (here.reach, here.active))
    images, device = here.x.shape[0], here.x.device
    kept = torch.zeros(images, hw[0] * hw[1] if partial else decided, dtype=torch.bool, device=device)
    asked = torch.zeros(images, decided, dtype=torch.bool, device=device) if gated else None
    return EdgeRoute(kept, kept.float(), None if asked is None else asked.float(), asked)


def _asked(there: Tensor | None, value: Tensor) -> Tensor:
    """(B, P) bool: the decisions that had something to decide about."""
    if there is None:
        return torch.ones_like(value, dtype=torch.bool)
    return there.any(1, keepdim=True) if value.shape[1] == 1 else there.expand_as(value)


def _stranded(step: Embed, counted: Tensor, run: ForwardState) -> Tensor:
    """(B, 1) bool: images that would miss an output if they did not go down here as a whole.

    They have arrived at no node that spares them; coarser nodes of this column hold what their own rows brought,
    as rows come last. A gate with capacity sends a part of each image, which is enough; `counted` (B, P) says of
    which it does.
    """
    arrived = torch.zeros(counted.shape[0], 1, dtype=torch.bool, device=counted.device)
    for node in step.spared_by:
        below = run.nodes.get(node)
        if below is not None:
            some = torch.ones_like(arrived) if below.reach is None else (below.reach > 0).any(1, keepdim=True)
            arrived = arrived | some  # of tensors both, or it could not be traced
    if run.gate(step.name).capacity:
        arrived = arrived | (counted > 0).any(1, keepdim=True)
    return ~arrived
