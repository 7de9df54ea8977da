"""Weights from timm: exact on the staircase path, a warm start everywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from routespace.checked import checked
from routespace.errors import BundleError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.spec import GridSpec
from routespace.nn.checkpoints import adapted_input, module_of, some_keys, state_dict_of
from routespace.nn.families.base import StateDict, TimmWeights, modules_of, prefixed
from routespace.nn.heads.classify import Classifier
from routespace.nn.module import unwrap
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import AnyNet, TaskNet, backbone_of

Fills = dict[str, tuple[nn.Module, StateDict]]  # what it is called in messages → what is filled, and with what


@checked
def load_timm_weights(
    net: AnyNet, weights: nn.Module | Mapping[str, Any], *, path: Architecture | None = None
) -> list[str]:
    """Load the weights of timm's network of the same family and widths (`pvt_v2_b2`, `swinv2_…`).

    The transformer edges of `path` take the blocks in timm's order, which makes the restriction of `net` to
    `path` timm's network exactly. Every other transformer edge of a rate takes that stage's blocks again from
    its first, every patch embedding the one between its two rates.

    A state dict does not tell in which windows a SwinV2 network was first trained, and its positions are shares of
    those: give the grid `pretrained_window`, as timm's `pretrained_window_sizes`. The module tells it, and is
    checked: hand it over where you have it.

    Args:
        net: the network to fill, in place.
        weights: timm's network, for example `timm.create_model("pvt_v2_b2", pretrained=True)`; its state dict; or
            a checkpoint that holds one, see `state_dict_of`. The names of the authors' own files are known, too.
            Networks of features alone (`features_only=True`) have everything but a head.
        path: the staircase; without it the network's own architecture when that is static, else the equal
            staircase of its grid.

    Returns:
        Names of the modules that kept their own weights: the gates, the head where the classes differ, and an
        output norm that timm's network lacks.

    Raises:
        SpecError: the family has no timm counterpart.
        BundleError: shapes or keys do not fit this grid, or the module's windows do not. The network is as it was.
    """
    net = unwrap(net, wanted=(TaskNet, RouteNet))
    head = net.head if isinstance(net, TaskNet) else None
    net = backbone_of(net)
    parts, module = modules_of(net.spec.family), module_of(weights)
    if parts.from_timm is None:
        raise SpecError(f"family: {net.spec.family} has no weights in timm; train from scratch")
    if path is None:
        path = net.architecture if net.architecture.is_static else Architecture.staircase(net.architecture.grid)
    state = state_dict_of(weights)
    if module is not None and parts.check_timm is not None:
        parts.check_timm(net.spec, module)
    fills, kept = _matched(net, head, parts.from_timm(state), path, told=some_keys(state))
    _fill(fills)
    return kept


def load_network_weights(net: TaskNet, given: TaskNet) -> list[str]:
    """Load the weights of another network of ours into a new one of the same family and widths, but for its gates.

    In the same grid, whatever its image size and classes, each edge takes the weights of the edge of its name, and
    so does the path of its skipped tokens, where both have one. All others, and those of another grid, take the
    blocks of their rate, as `load_timm_weights` deals them out: the staircase's layers first, in order.

    Args:
        net: the network to fill, in place.
        given: whose weights to take; of any architecture that has a transformer edge at each rate of `net`.

    Returns:
        As `load_timm_weights`.

    Raises:
        BundleError: shapes or rates do not fit.
    """
    path = net.architecture if net.architecture.is_static else Architecture.staircase(net.architecture.grid)
    fills, kept = _matched(net.backbone, net.head, _sorted_weights(given), path, told="of a run or bundle")
    if same_but(net.spec, given.spec):
        for name in set(net.edges) & set(given.edges):
            fills[name] = net.edges[name], given.edges[name].state_dict()
        ours, theirs = net.backbone.skips, given.backbone.skips
        for name in set(ours) & set(theirs):
            fills[f"skips.{name}"] = ours[name], theirs[name].state_dict()
            kept.remove(f"skips.{name}")
    _fill(fills)
    return kept


def same_but(one: GridSpec, other: GridSpec, *fields: str) -> bool:
    """Whether two grids have the same edges and blocks: all but the images, the outputs and the classes."""
    left = {"image_size", "in_channels", "num_classes", "outputs", *fields}
    ours, theirs = one.canonical(), other.canonical()
    return all(ours.get(name) == theirs.get(name) for name in {*ours, *theirs} - left)


def _sorted_weights(net: TaskNet) -> TimmWeights:
    """A network's weights by the part of a grid that they belong to, each rate's blocks in order of layer."""
    spec, grid = net.spec, net.architecture.grid
    blocks: list[list[StateDict]] = [[] for _ in spec.rates]
    embeds: dict[int, StateDict] = {}
    for name, edge in grid.edges.items():
        if name not in net.edges:
            continue
        state = net.edges[name].state_dict()
        if edge.kind == "patch_embed":
            embeds.setdefault(spec.index(edge.rate), state)
        elif edge.kind == "transformer":
            blocks[spec.index(edge.rate)] += [
                prefixed(state, f"blocks.{k}.") for k in range(spec.depth(edge.layer))
            ]
    outputs = [
        net.backbone.outputs[f"r{rate:02d}"].state_dict() if rate in net.architecture.output_rates else {}
        for rate in spec.rates
    ]
    return TimmWeights(
        stem=net.backbone.stem.state_dict(),
        blocks=blocks,
        embeds=[embeds[i] for i in sorted(embeds)],
        outputs=outputs,
        head=net.head.state_dict() if isinstance(net.head, Classifier) else {},
    )


def _matched(
    net: RouteNet, head: nn.Module | None, weights: TimmWeights, path: Architecture, *, told: str
) -> tuple[Fills, list[str]]:
    """What is to be filled, and what keeps its own weights; `told` are some of the keys, for messages."""
    _check_stages(net, weights, told)
    fills: Fills = {"stem": (net.stem, adapted_stem(weights.stem, net.spec.in_channels))}
    for name, blocks in _assign_blocks(net, weights, path).items():
        fills[name] = net.edges[name], blocks
    for name, module in net.edges.items():
        edge = net.architecture.grid.edges[name]
        if edge.kind == "patch_embed":
            fills[name] = module, weights.embeds[net.spec.index(edge.rate)]
    kept = [*(f"gates.{name}" for name in net.gates), *(f"skips.{name}" for name in net.skips)]
    for i, rate in enumerate(net.spec.rates):
        if rate not in net.architecture.output_rates:
            continue
        output = net.outputs[f"r{rate:02d}"]
        if weights.outputs[i] or not list(output.parameters()):
            fills[f"outputs at rate {rate}"] = output, weights.outputs[i]
        else:  # a family with one norm, whose grid ends at a finer rate than timm's network
            kept.append(f"outputs.r{rate:02d}")
    if head is not None and list(head.parameters()):
        fits = isinstance(head, Classifier) and weights.head
        if fits and _shapes(weights.head).get("weight") == head.weight.shape:
            fills["head"] = head, weights.head
        else:
            kept.append("head")
    return fills, kept


def _check_stages(net: RouteNet, weights: TimmWeights, told: str) -> None:
    """Raise BundleError unless there is something for each rate and each step between two."""
    rates = list(net.spec.rates)
    if not weights.blocks:
        raise BundleError(f"weights: no weights of {net.spec.family} in it ({told}); give those of such a network")
    if not all(weights.blocks[: len(rates)]):
        without = [rate for rate, blocks in zip(rates, weights.blocks, strict=False) if not blocks]
        named = ", ".join(map(str, without or rates[len(weights.blocks) :]))
        raise BundleError(
            f"weights: no block at rate {named} ({told}); give a network that has one at each of {rates}"
        )
    if len(weights.blocks) < len(rates):
        raise BundleError(f"weights: {len(weights.blocks)} stages for rates {rates}; not this family")
    if len(weights.embeds) < len(rates) - 1 or not weights.stem:
        raise BundleError(f"weights: a part of a {net.spec.family} network ({told}); give all of its state dict")


def adapted_stem(stem: StateDict, channels: int) -> StateDict:
    """A stem's weights for images of `channels` channels."""
    return {key: adapted_input(weight, channels) if weight.dim() == 4 else weight for key, weight in stem.items()}


def _assign_blocks(net: RouteNet, weights: TimmWeights, path: Architecture) -> dict[str, StateDict]:
    """Edge name → the state dict of its stage: the path's edges first, in order, the others cyclically."""
    assigned = {}
    spec = net.spec
    for i, rate in enumerate(spec.rates):
        edges = [e for e in net.architecture.grid.of_kind("transformer") if e.rate == rate and e.name in net.edges]
        used = 0
        for edge in sorted(edges, key=lambda e: e.name not in path.edges):
            count = spec.depth(edge.layer)
            if edge.name not in path.edges:
                used = 0
            chosen = [weights.blocks[i][(used + k) % len(weights.blocks[i])] for k in range(count)]
            used += count
            assigned[edge.name] = {
                f"blocks.{k}.{key}": tensor for k, block in enumerate(chosen) for key, tensor in block.items()
            }
    return assigned


def _fill(fills: Fills) -> None:
    """Load all of them, or raise BundleError with nothing changed."""
    for name, (module, state) in fills.items():
        ours, theirs = _shapes(module.state_dict()), _shapes(state)
        if any(tensor.is_meta for tensor in state.values()):
            raise BundleError(f"weights: those of {name} lie on the meta device, without values; load them")
        for key in {**ours, **theirs}:
            if ours.get(key) != theirs.get(key):
                found = f"has {tuple(theirs[key])}" if key in theirs else "is missing"
                wanted = f"it needs {tuple(ours[key])}" if key in ours else "it knows no such weight"
                raise BundleError(
                    f"weights: {name} does not fit this grid's family and size ({key} {found}, {wanted}); nothing "
                    f"was loaded"
                )
    for module, state in fills.values():
        module.load_state_dict(state)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in state.items()}
