"""Running one step of a plan: decide, compute what was kept, pass the rest on.

Shape legend: B images · N tokens of a map · P = N, or 1 where a mask is about whole images · C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from routespace.grid.graph import Node
from routespace.nn.packing.maps import coarsen
from routespace.nn.plan import Embed, Row
from routespace.nn.routing.execution import Compute, EdgeInput
from routespace.nn.routing.gates import Decision
from routespace.nn.routing.routes import EdgeRoute, Routes
from routespace.nn.routing.state import NodeState

if TYPE_CHECKING:
    from routespace.nn.route_net import RouteNet


@dataclass
class ForwardState:
    """The state of one forward pass.

    Attributes:
        compute: how gated and partly reached edges are computed (`Dense`, `Packed`).
        nodes: the nodes reached so far that are still to be read.
        taken: what each edge did.
        replay: decisions to use instead of the gates', or None.
    """

    compute: Compute
    nodes: dict[Node, NodeState]
    taken: dict[str, EdgeRoute]
    replay: Routes | None

    def arrive(self, node: Node, state: NodeState) -> None:
        """Add an arrival to a node's sum."""
        self.nodes[node] = self.nodes[node].plus(state) if node in self.nodes else state


def run_row(net: RouteNet, step: Row, hw: tuple[int, int], run: ForwardState) -> None:
    """One row: identity, transformer, or the gate between them."""
    here = run.nodes.pop(step.source)  # rows come last at a node, so nobody reads it again
    name = step.transformer
    if name is None:
        run.arrive(step.target, here)
        return
    stage = net.edges[name]
    if not step.gated and here.reach is None:
        run.arrive(step.target, NodeState(stage(here.x, hw), None, here.active))
        return
    if run.compute.absent(here if step.gated else here.unstopped()):
        run.taken[name] = _nothing(net, name, here, hw)
        run.arrive(step.target, here)
        return
    scale, per_image, active = None, None, here.active
    if step.gated:
        decision = _ask(net, name, here, hw, run.replay)
        there = here.there()
        counted = decision.counted
        if here.reach is not None:
            counted = counted * here.reach
        if here.active is not None:
            counted = counted * here.active
        scale, kept = _scale(net, name, decision, run.replay), counted > 0
        per_image = decision.per_image if here.active is None else None  # the stopped are not counted
        asked = _asked(there, decision.value)
        route = EdgeRoute(kept, counted, decision.chance, asked, per_image, _shade(net, name, decision))
        run.taken[name] = route
        active = kept if net.gate_spec.early_stop else None
    else:
        assert here.reach is not None
        kept, per_image = here.reach > 0, here.count
        run.taken[name] = EdgeRoute(kept, here.reach, per_image=per_image)
    work = EdgeInput(here, hw, kept, scale, keys=net.gate_spec.keys, per_image=per_image)
    y = run.compute.row(stage, work)
    run.arrive(step.target, NodeState(y, here.reach, active, here.count))


def run_embed(net: RouteNet, step: Embed, hw: tuple[int, int], run: ForwardState) -> None:
    """One patch embedding: the chosen images or 2×2 groups also go on at the next coarser rate."""
    here = run.nodes[step.source]
    embed = net.edges[step.name]
    if not step.gated and here.reach is None:
        run.arrive(step.target, NodeState(embed(here.x, hw)))
        return
    width, coarse = net.spec.width(step.target[1]), (-(-hw[0] // 2), -(-hw[1] // 2))
    if run.compute.absent(here.unstopped()):
        route = _nothing(net, step.name, here, coarse)
        run.taken[step.name] = route
        nowhere = here.x.new_zeros(here.x.shape[0], coarse[0] * coarse[1], width)
        run.arrive(
            step.target, NodeState(nowhere, route.counted, route.kept if net.gate_spec.early_stop else None)
        )
        return
    there = None if here.reach is None else coarsen(here.reach, hw)
    scale, per_image = None, None
    if step.gated:
        decision = _ask(net, step.name, here, hw, run.replay)
        scale, counted = _scale(net, step.name, decision, run.replay), decision.counted
        per_image = decision.per_image
        if step.last_chance and per_image is None:  # else a part of each image goes down
            must = _stranded(net, step, run.nodes, counted)
            counted = torch.where(must, torch.ones_like(counted), counted)
            scale = None if scale is None else torch.where(must, torch.ones_like(scale), scale)
        counted = counted if there is None else counted * there
        asked = _asked(None if there is None else there > 0, decision.value)
        route = EdgeRoute(
            counted > 0, counted, decision.chance, asked, per_image, _shade(net, step.name, decision)
        )
    else:
        assert there is not None
        route = EdgeRoute(there > 0, there)
    run.taken[step.name] = route
    y = run.compute.embed(embed, EdgeInput(here, hw, route.kept, scale, per_image=per_image, width=width))
    active = route.kept if net.gate_spec.early_stop else None
    run.arrive(step.target, NodeState(y, route.counted, active, per_image))


def _ask(net: RouteNet, name: str, here: NodeState, hw: tuple[int, int], replay: Routes | None) -> Decision:
    """The gate's decision, or the recorded one; `per_image` only where it holds for what is here, too."""
    if replay is not None and name in replay:
        route = replay[name]
        kept = route.kept.float()
        value = kept if route.value is None else route.value
        counted = kept if net.gate_spec.kind == "tanh" else value
        return Decision(value, counted, value, route.per_image if here.reach is None else None)
    present, count = here.present(), here.count
    decision: Decision = net.gates[name](
        here.x, hw, net.gate_spec, net.temperature, net.noise, present=present, count=count
    )
    if net.training and net.held_open:  # 0·value keeps the gates in the graph, as several processes need it
        ones = 0 * decision.value + 1
        return Decision(ones, ones, decision.chance)
    if here.reach is not None and count is None:
        return decision._replace(per_image=None)  # images that are not here keep nothing
    return decision


def _scale(net: RouteNet, name: str, decision: Decision, replay: Routes | None) -> Tensor | None:
    """What the result is multiplied by; None where that is 1 at every kept token and has no gradient."""
    if replay is not None and name in replay:
        return replay[name].value
    return decision.value if net.gates[name].training or net.gate_spec.kind == "tanh" else None


def _shade(net: RouteNet, name: str, decision: Decision) -> Tensor | None:
    """The decision's value for the record, where it is not simply 0 or 1."""
    soft = net.gates[name].training and net.gate_spec.relaxation == "soft"
    return decision.value if soft or net.gate_spec.kind == "tanh" else None


def _nothing(net: RouteNet, name: str, here: NodeState, hw: tuple[int, int]) -> EdgeRoute:
    """The route of an edge whose source holds nothing to compute: its gate is not asked."""
    gated = name in net.gates
    decided = 1 if not gated or net.gates[name].granularity in ("layer", "image") else hw[0] * hw[1]
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


def _stranded(net: RouteNet, step: Embed, nodes: dict[Node, NodeState], counted: Tensor) -> Tensor:
    """(B, 1) bool: images that would miss an output if they did not go down here as a whole.

    With one output at the coarsest rate, an image that is in no coarser row yet; with a pyramid, an image that
    is not in the next row. Coarser nodes of this column hold what their own rows brought, as rows come last.
    A gate with capacity sends a part of each image, which is enough; `counted` (B, P) says of which it does.
    """
    column, rate = step.source
    rates = [step.target[1]] if net.spec.outputs == "pyramid" else [r for r in net.spec.rates if r > rate]
    x = nodes[step.source].x
    arrived = torch.zeros(x.shape[0], 1, dtype=torch.bool, device=x.device)
    for coarser in rates:
        below = nodes.get((column, coarser))
        if below is not None:
            arrived = arrived | (True if below.reach is None else (below.reach > 0).any(1, keepdim=True))
    if net.gates[step.name].capacity:
        arrived = arrived | (counted > 0).any(1, keepdim=True)
    return ~arrived
