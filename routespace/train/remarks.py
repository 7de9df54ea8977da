"""Remarks: what a training's numbers show of what went wrong, a line each, for the epoch's line and result.json.

A budget can be met by a network that decides nothing: some blocks shut for every token, the others open for every
token. And a loss can stay where guessing is. Neither is an error, and both look like numbers among others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.leading import gated_rows
from routespace.train.recipe.recipe import Recipe

ACCURACY = "accuracy"  # a task's metric: its loss is a cross-entropy, so that of guessing is known
SHUT_BELOW, OPEN_ABOVE = 0.01, 0.99  # shares of tokens: a gate beyond them tells no tokens apart
MOST_SAVED_FRAC = 0.5  # of what is saved: more of it by shut blocks, and they are what meets the budget
MET_WITHIN = 1.03  # of the target: as calibration counts it
CHANCE_FRAC = 0.98  # of the loss of guessing
LEARNED_FRAC = 0.25  # of the way from guessing to naming every image right
LEAST_PROGRESS = 0.3  # of the training, before which a loss may well be there
MOST_NAMED = 3


class Validation(NamedTuple):
    """What a validation found.

    Attributes:
        usage: edge name → measured shares.
        counted: MACs of one image.
        task_loss: of the epoch's training images; None where nothing was trained.
        progress: share of the training that is done.
        accuracy: of a classifier.
    """

    usage: Mapping[str, Mapping[str, float]]
    counted: float
    task_loss: float | None
    progress: float
    accuracy: float | None = None


def remarks_on(
    seen: Validation,
    recipe: Recipe,
    architecture: Architecture,
    *,
    shares: Mapping[str, float] | None = None,
    target: float | None = None,
) -> list[str]:
    """What looks wrong; gates that are held, or whose budget still moves, are not judged.

    Args:
        seen: a validation.
        recipe: of the training.
        architecture: of the network.
        shares: transformer edge → share that its gate is to open, where it is told one.
        target: MACs of one image; None without a budget.
    """
    said, budget, classes = list[str](), recipe.budget, recipe.num_classes
    if seen.task_loss is not None:
        chance = math.log(classes) if recipe.task.metric.name == ACCURACY and classes > 1 else None
        said += loss_remarks(seen.task_loss, chance, seen.progress, accuracy=seen.accuracy)
    moves = shares is not None or budget.schedule == "linear"
    judged = recipe.train.mode != "sandwich"  # there gates are left open on purpose
    if judged and seen.progress >= max(budget.open_frac, budget.warmup_frac, budget.settle_frac if moves else 0.0):
        cost = architecture_cost(architecture)
        routed = {row.name: cost.edges[row.name].routed_macs for row in gated_rows(architecture)}
        said += gate_remarks(seen.usage, routed, shares=shares, counted=seen.counted, target=target)
    return said


def gate_remarks(
    usage: Mapping[str, Mapping[str, float]],
    routed: Mapping[str, float],
    *,
    shares: Mapping[str, float] | None = None,
    counted: float = math.inf,
    target: float | None = None,
) -> list[str]:
    """On rows that are shut or open for nearly every token, and on a budget that is met by the shut ones.

    Args:
        usage: edge name → measured shares; edges that are not in it computed everything.
        routed: transformer edge with a gate → MACs of all its tokens.
        shares: transformer edge → share that its gate is to open, where it is told one.
        counted, target: MACs of one image; no target without a budget.
    """
    tokens = {name: usage[name]["tokens"] if name in usage else 1.0 for name in routed}
    shut = [name for name, share in tokens.items() if share < SHUT_BELOW]
    told = shares or {}
    opened = [n for n, share in tokens.items() if share > OPEN_ABOVE and told.get(n, 0.0) <= OPEN_ABOVE]
    found = [
        f"gates: {_named(names)} {state} for nearly every token"
        for names, state in ((shut, "shut"), (opened if target is not None else [], "open"))
        if names
    ]
    saved = {name: macs * (1 - tokens[name]) for name, macs in routed.items()}
    part = sum(saved[name] for name in shut) / max(sum(saved.values()), 1.0)
    if target is not None and counted <= MET_WITHIN * target and part > MOST_SAVED_FRAC:
        found.append(
            f"budget: it is met by shutting {len(shut)} of {len(routed)} blocks ({part:.0%} of what is saved), "
            f"not by choosing tokens; gates.teach and gates.opening choose"
        )
    return found


def loss_remarks(
    task_loss: float, chance_loss: float | None, progress: float, *, accuracy: float | None = None
) -> list[str]:
    """On a training that has learned nothing.

    Args:
        task_loss: mean of an epoch's training images.
        chance_loss: that of guessing; None where nobody knows it.
        progress: share of the training that is done.
        accuracy: on validation, after the epoch: of few steps, what was learned shows there before it does in the
            mean of their losses.
    """
    if chance_loss is None or progress < LEAST_PROGRESS or task_loss < CHANCE_FRAC * chance_loss:
        return []
    guessed = math.exp(-chance_loss)
    if accuracy is not None and accuracy - guessed > LEARNED_FRAC * (1 - guessed):
        return []
    return [
        f"training: its loss of {task_loss:.3f} is that of guessing ({chance_loss:.3f}), nothing is learned; "
        f"lower train.lr, or begin with larger objects or smaller images in a phase before it (train.phases)"
    ]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more + (" is" if len(names) == 1 else " are")
