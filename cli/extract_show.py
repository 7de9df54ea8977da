"""What `routespace extract` shows at its end: what was taken, under which limits, and what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from routespace.deploy.latency.table import LatencyTable
    from routespace.workflow.artifacts import Artifact
    from routespace.workflow.taking import Extraction


def show(found: Artifact, taken: Extraction, table: LatencyTable | None = None) -> None:
    """Print what was taken, under which limits, and what was measured on the way."""
    from routespace.cli.render import amount, pairs
    from routespace.deploy.latency.table import predict
    from routespace.grid.resources import RESOURCES
    from routespace.nn.cost import network_cost
    from routespace.train.macs import counted_macs

    macs = counted_macs(taken.net, {}), counted_macs(found.net, {})  # what limits are about
    limits, network = taken.limits, taken.card.costs["macs"]
    routed = not taken.net.architecture.is_static
    small = {**taken.card.costs, "macs": macs[0]}
    whole = {**network_cost(found.net).totals, "macs": macs[1]}
    rows: list[tuple[str, object]] = []
    if _px(found) != _px(taken):
        rows.append(("images", f"{_px(taken)}; the whole was trained on {_px(found)}"))
    for name in dict.fromkeys(["macs", "params", *limits]):
        label = {"params": "parameters"}.get(name, RESOURCES[name].label)
        under = f" (limit {amount(name, limits[name])})" if name in limits else ""
        if name == "macs" and routed:
            rows += _routed_macs(taken, macs[0], under)
        elif name in small:
            rows.append((label, f"{amount(name, small[name])} of {amount(name, whole[name])}{under}"))
        elif table is not None:
            rows.append((label, f"{predict(table, taken.net.architecture):.3g} ms predicted{under}"))
        if name == "macs" and network != macs[0]:
            rows.append(("", f"{amount('macs', network)} with the head, which no budget counts"))
    rows.append(("verified", f"largest difference of outputs {taken.max_difference:.1e}"))
    rows += _measured(found, taken)
    rows += _gates(found, taken)
    rows += [("remark", line) for line in taken.card.remarks]
    pairs([*rows, ("architecture", taken.card.architecture)])


def _routed_macs(taken: Extraction, most: float, under: str) -> list[tuple[str, object]]:
    """Rows on what one image takes of a routed network.

    Args:
        taken: what was taken.
        most: MACs with everything computed.
        under: its limit, in words.
    """
    from routespace.cli.render import amount

    whole = f"{amount('macs', most)} with everything computed"
    if taken.card.counted_macs is None:
        return [("MACs", whole + under)]
    return [("MACs, counted", f"{amount('macs', taken.card.counted_macs)} of {whole}{under}")]


def _gates(found: Artifact, taken: Extraction) -> list[tuple[str, object]]:
    """The row on the threshold of gates, where they are kept."""
    if taken.net.architecture.is_static:
        return []
    own, before = (net.gate_spec.open_above for net in (taken.net, found.net))
    return [("gates", f"threshold {own:.4g}" + ("" if own == before else f"; {before:.4g} before"))]


def _measured(found: Artifact, taken: Extraction) -> list[tuple[str, object]]:
    """Rows on what was measured on validation; of which size images are where there are two."""
    from routespace.cli.watch import clock
    from routespace.train.tasks.kinds import task_of_head

    metric = task_of_head(taken.net.head, taken.net.spec).metric
    rows: list[tuple[str, object]] = []
    if taken.score is not None and taken.score_whole is not None:
        own, size = _px(found), _px(taken)
        new, old = ("", "") if own == size else (f" of {size}", f" of {own}")
        part, whole = metric.text(taken.score), metric.text(taken.score_whole)
        rows.append((metric.name, f"{part} of {taken.images} validation images{new}; whole{old} {whole}"))
    if taken.tuned is not None:
        after, spent = metric.text(taken.tuned[metric.name]), clock(taken.tuned["seconds"])
        epochs = taken.tuned["epochs"]
        rows.append(("fine-tuned", f"{after} after {epochs} {'epoch' if epochs == 1 else 'epochs'}, {spent}"))
    return rows


def _px(owner: Artifact | Extraction) -> str:
    """Height and width of the images that a network is for."""
    height, width = owner.net.spec.image_size
    return f"{height}x{width} px"
