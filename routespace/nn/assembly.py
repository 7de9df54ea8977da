"""The modules of an architecture: made anew, or those of a network that has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import nn

from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.leading import leading_row
from routespace.grid.spec import GridSpec
from routespace.nn.families.base import FamilyModules, PatchEmbed, Stage, Stem, modules_of
from routespace.nn.plan import Embed, Row
from routespace.nn.routing.gates import Gate
from routespace.nn.routing.skipped import SkippedPath


class Assembled(NamedTuple):
    """A network's modules.

    Attributes:
        stem: images → the finest tokens.
        edges, gates, skips: edge name → its module, its gate, and the path that skipped tokens take.
        outputs: `r32` and so on → what stands at the end of a rate.
    """

    stem: Stem
    edges: nn.ModuleDict
    gates: nn.ModuleDict
    skips: nn.ModuleDict
    outputs: nn.ModuleDict


class HasModules(Protocol):
    """A network over the modules of which another one is made."""

    stem: Stem
    edges: nn.ModuleDict
    gates: nn.ModuleDict
    skips: nn.ModuleDict
    outputs: nn.ModuleDict


def assemble(
    architecture: Architecture,
    plan: Sequence[Row | Embed],
    gates: GateSpec,
    *,
    drop_path: float,
    source: HasModules | None,
) -> Assembled:
    """The modules that a network of the architecture is made of.

    Args:
        architecture: what exists, and what is gated.
        plan: its steps; new modules draw their weights in this order.
        gates: how the gated edges decide.
        drop_path: stochastic depth of the last layer; it grows linearly from 0 at the first.
        source: a network with all of these modules, to take them from; None to make new ones.
    """
    spec = architecture.spec
    family, leader = modules_of(spec.family), leading_row(architecture)
    stem = source.stem if source else family.stem(spec)
    made = Assembled(stem, nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict())
    for step in plan:
        name = step.transformer if isinstance(step, Row) else step.name
        if name is None:
            continue
        made.edges[name] = source.edges[name] if source else _edge(step, spec, family, drop_path)
        if step.gated:
            made.gates[name] = source.gates[name] if source else _gate(step, spec, gates, leads=name == leader)
            if isinstance(step, Row) and gates.skipped != "identity":
                width = spec.width(step.source[1])
                made.skips[name] = source.skips[name] if source else SkippedPath(gates, width)
    for rate in architecture.output_rates:
        name = f"r{rate:02d}"
        made.outputs[name] = source.outputs[name] if source else family.output(spec, rate)
    return made


def _edge(step: Row | Embed, spec: GridSpec, family: FamilyModules, drop_path: float) -> Stage | PatchEmbed:
    layer, rate = step.source
    if isinstance(step, Embed):
        return family.patch_embed(spec, rate)
    share, first = layer / max(1, spec.layers - 1), spec.blocks_before(layer)
    return family.stage(spec, rate, spec.depth(layer), drop_path * share, first=first)


def _gate(step: Row | Embed, spec: GridSpec, gates: GateSpec, *, leads: bool) -> Gate:
    rows = isinstance(step, Row)
    granularity = gates.rows if rows else gates.columns
    follows = rows and gates.source == "map" and not leads
    return Gate(gates, granularity, spec.width(step.source[1]), rows=rows, follows=follows)
