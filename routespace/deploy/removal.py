"""What each edge is worth, by what happens without it: scores for `derive` beside usage.

    scores = removal_scores(net, batches)
    derive(net.architecture, usage, macs=12_000_000, scores=scores)

A few batches run once through the network as it is, and once more for each edge with that edge taken out; how far
the outputs move is what the edge does (Puzzle, arXiv 2411.19146, scores replaced blocks like this). Where a gate
decides, keeping the edge changes the network too, since a static one computes it for every token: that is taken
off.

Shape legend: B images · C channels · H, W pixels · K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from routespace.checked import checked
from routespace.deploy.derive import IDENTITY_WORTH
from routespace.errors import DataError, GridError, SpecError
from routespace.grid.architecture import Architecture
from routespace.nn.candidates import SharedParts
from routespace.nn.module import unwrap
from routespace.nn.running import as_input, evaluating, placed
from routespace.nn.task_net import TaskNet

TINY = 1e-12  # of outputs that are all zero


@checked
@torch.no_grad()
def removal_scores(
    net: TaskNet,
    batches: Iterable[Any],
    *,
    base: Architecture | None = None,
    device: str | torch.device | None = None,
) -> dict[str, float]:
    """The worth of keeping each edge, for `derive`.

    Args:
        net: the network, in a wrapper or not; it is left as it came.
        batches: images (B, C, H, W), alone or first of a tuple; a few hundred images will do.
        base: a static part that is compared with; None for the network as its gates decide.
        device: where to run; None where the network is.

    Returns:
        Edge name → KL(outputs ‖ outputs without it), less KL(outputs ‖ outputs with it always on) where a gate
        decides; of other outputs than logits the squared distance, as a share of their own square. What cannot be
        taken out alone has the largest score there is.

    Raises:
        DataError: no images.
        GridError: `base` is no part of the network.
        SpecError: images that do not fit.
    """
    net = unwrap(net, wanted=TaskNet)
    if base is not None and not (base.is_static and net.architecture.contains(base)):
        raise GridError("base: it is no static part of the network; give one of its own")
    start = net.architecture if base is None else base
    with placed(net, device), evaluating(net), net.deciding_as(held=None, shares=None, execution="auto"):
        images = [as_input(net, batch if isinstance(batch, Tensor) else batch[0]) for batch in batches]
        if not sum(len(some) for some in images):
            raise DataError("batches: no images to score edges on; give at least one batch")
        parts = _variants(net, start)
        moved = dict.fromkeys(parts, 0.0)
        for some in images:
            for part, distance in _distances(net, start, list(parts), some):
                moved[part] += distance * len(some) / sum(map(len, images))
    found: dict[str, float | None] = {}
    for name, state in start.edges.items():
        if start.grid.edges[name].kind != "identity":
            without = _of(moved, without_edge(start, name, net.architecture))
            always = _of(moved, _always(start, name)) if state == "gated" else 0.0
            found[name] = None if without is None or always is None else without - always
    return _filled(start, found)


def _of(moved: Mapping[Architecture, float], part: Architecture | None) -> float | None:
    return None if part is None else moved.get(part)


def _variants(net: TaskNet, start: Architecture) -> dict[Architecture, None]:
    """Every part that is compared with `start`: without an edge, and with a gated one always on."""
    parts: dict[Architecture, None] = {}
    for name, state in start.edges.items():
        if start.grid.edges[name].kind == "identity":
            continue
        for part in (
            without_edge(start, name, net.architecture),
            _always(start, name) if state == "gated" else None,
        ):
            if part is not None and _part(net, part) is not None:
                parts[part] = None
    return parts


def _distances(
    net: TaskNet, start: Architecture, parts: Sequence[Architecture], images: Tensor
) -> Iterator[tuple[Architecture, float]]:
    """How far the outputs of each part lie from those of `start`; what static parts share is computed once."""
    wanted = net.restrict(start)(images).outputs
    static = [part for part in parts if part.is_static]
    if static:
        for place, outputs in SharedParts(net, static)(images):
            yield static[place], outputs_distance(wanted, outputs)
    for part in parts:
        if not part.is_static:
            yield part, outputs_distance(wanted, net.restrict(part)(images).outputs)


def _filled(architecture: Architecture, found: dict[str, float | None]) -> dict[str, float]:
    """Scores for every edge: the greatest for those that must stay, next to nothing for identities."""
    most = max((abs(score) for score in found.values() if score is not None), default=1.0)
    scores = {name: most if score is None else score for name, score in found.items()}
    return {name: scores.get(name, IDENTITY_WORTH * most) for name in architecture.edges}


def without_edge(part: Architecture, name: str, whole: Architecture) -> Architecture | None:
    """A part without one edge: the row passes on where `whole` has its identity. None where nothing is left."""
    edges = {other: state for other, state in part.edges.items() if other != name}
    partner = part.grid.edges[name].partner
    if partner is not None and partner in whole.edges:
        edges[partner] = "open"
    return _cleaned(part, edges)


def _always(part: Architecture, name: str) -> Architecture | None:
    """A part in which a gated edge is always computed."""
    partner = part.grid.edges[name].partner
    edges = {other: state for other, state in part.edges.items() if other != partner}
    return _cleaned(part, edges | {name: "open"})


def _cleaned(part: Architecture, edges: dict[str, Any]) -> Architecture | None:
    try:
        found = Architecture.cleaned(part.spec, edges)
    except GridError:
        return None
    return found if found.outputs == part.outputs else None  # heads compare what they make of the same maps


def _part(net: TaskNet, part: Architecture) -> TaskNet | None:
    """The network's part; None where its gates cannot do without the rest (a map without its first row)."""
    try:
        return net.restrict(part)
    except (GridError, SpecError):
        return None


def outputs_distance(before: Any, after: Any) -> float:
    """KL(before ‖ after) of logits (B, K), a mean over images; of other outputs the squared distance, a share."""
    if isinstance(before, Tensor) and before.ndim == 2:
        first, second = before.double().log_softmax(1), after.double().log_softmax(1)
        return float(F.kl_div(second, first, reduction="batchmean", log_target=True))
    pairs = zip(tree_leaves(before), tree_leaves(after), strict=True)
    maps = [(x.double(), y.double()) for x, y in pairs if isinstance(x, Tensor) and x.is_floating_point()]
    apart = sum(float((x - y).square().sum()) for x, y in maps)
    return apart / (sum(float(x.square().sum()) for x, _ in maps) + TINY)
