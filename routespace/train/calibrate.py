"""Calibration: after training, move the gates' threshold until the counted MACs meet the target.

Training holds the cost on training images to the budget; on other images, and with the averaged gate weights that
inference uses, the same gates cost a little more or less (measured on the digits: up to 6 %). A higher threshold
closes gates, so a search over thresholds finds the one that meets the target on validation images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from routespace.checked import checked
from routespace.errors import SpecError
from routespace.grid.gate_spec import GateSpec
from routespace.nn.module import unwrap
from routespace.nn.route_net import RouteNet
from routespace.nn.running import evaluating
from routespace.nn.task_net import AnyNet, TaskNet
from routespace.train.evaluate import mean_macs

TOLERANCE_FRAC = 0.0025
WORST_FRAC = 0.03  # farther from the target than this, the budget counts as missed
STEPS = 20
FIRST_STEP = 0.5  # of the logit; a trained network is near its target already
LOGIT_RANGE = 14.0  # thresholds from 8e-7 to 1 − 8e-7: a trained gate is rarely surer
HELD_BYTES = 1 << 28  # of images kept in memory between trials; more are read again for each
INNER_FRAC = 0.1  # interpolated trials stay this far inside their interval, so that it shrinks


@dataclass(frozen=True)
class Calibration:
    """What calibration found.

    Attributes:
        threshold: now in the network's gate spec.
        macs, target: MACs of one image on the calibration images, and those wanted.
        met: whether they are within 3 %.
        note: empty, or why not.
    """

    threshold: float
    macs: float
    target: float
    met: bool
    note: str


class Trial(NamedTuple):
    """A threshold's logit, and the MACs that it gives."""

    logit: float
    macs: float


@checked
def calibrate_threshold(
    net: AnyNet, loader: Iterable[Any], target: float, *, at_most: bool = False
) -> Calibration:
    """Set `net.gate_spec.threshold` so that the counted MACs meet `target`.

    Args:
        net: a network with gates; its threshold is replaced, and nothing else, nor that on an error.
        loader: batches that training has not seen, the same in every pass, a pass for each of about six trials.
            Labels are not used.
        target: MACs of one image.
        at_most: stay within the target, however little is above it, where any threshold that was tried does.

    Raises:
        SpecError: a target that is no number above 0, or a module that is no network of ours.
        DataError: the loader holds no images.
    """
    if not 0 < target < math.inf:
        raise SpecError(f"target: {target!r:.40} is not allowed; give the MACs of one image, a number above 0")
    net = unwrap(net, wanted=(TaskNet, RouteNet))
    start, batches = _logit(net.gate_spec.open_above), _held(loader)
    aim = target * (1 - TOLERANCE_FRAC) if at_most else target
    with evaluating(net):
        tried = _search(lambda logit: Trial(logit, _macs_at(net, logit, batches)), start, aim)
    within = [trial for trial in tried if trial.macs <= target] if at_most else []
    best = min(within or tried, key=lambda trial: abs(trial.macs - target))
    set_threshold(net, best.logit)
    met = abs(best.macs - target) <= WORST_FRAC * target
    return Calibration(_sigmoid(best.logit), best.macs, target, met, "" if met else _why(target, tried))


def _held(loader: Iterable[Any]) -> Iterable[Any]:
    """The batches in memory, read or rendered once for all trials, or the loader where they are too many."""
    held, size = [], 0
    for batch in loader:
        size += sum(part.nbytes for part in batch if isinstance(part, Tensor))
        if size > HELD_BYTES:
            return loader
        held.append(batch)
    return held


def _search(trial: Callable[[float], Trial], start: float, target: float) -> list[Trial]:
    """Every trial of a walk that brackets the target, then of false position inside the bracket."""
    tried = [trial(start)]
    side = 1.0 if tried[0].macs > target else -1.0  # a higher threshold closes gates
    step = FIRST_STEP
    while side * (tried[-1].macs - target) > 0 and abs(tried[-1].logit) < LOGIT_RANGE:
        tried.append(trial(max(-LOGIT_RANGE, min(LOGIT_RANGE, tried[-1].logit + side * step))))
        step *= 2
    if side * (tried[-1].macs - target) > 0 or len(tried) == 1:
        return tried
    near, far = tried[-2], tried[-1]
    while len(tried) < STEPS and all(abs(t.macs - target) > TOLERANCE_FRAC * target for t in (near, far)):
        share = (near.macs - target) / (near.macs - far.macs)
        share = max(INNER_FRAC, min(1 - INNER_FRAC, share))
        tried.append(trial(near.logit + share * (far.logit - near.logit)))
        near, far = (tried[-1], far) if side * (tried[-1].macs - target) > 0 else (near, tried[-1])
    return tried


def _why(target: float, tried: list[Trial]) -> str:
    low, high = min(t.macs for t in tried), max(t.macs for t in tried)
    reach = f"thresholds tried give {low / 1e6:.4g} to {high / 1e6:.4g} MMACs, wanted are {target / 1e6:.4g}"
    if low < target < high:
        return f"{reach}; many decisions flip at one threshold"
    return f"{reach}; the gates are saturated (train longer, or with a larger budget.weight) or have no threshold"


def _macs_at(net: AnyNet, logit: float, batches: Iterable[Any]) -> float:
    with net.deciding_as(gates=_with_threshold(net.gate_spec, logit), held=None, shares=None, execution="auto"):
        return mean_macs(net, batches)


def set_threshold(net: AnyNet, logit: float) -> None:
    """Replace the network's gate spec by one with the threshold sigmoid(logit), inside ±LOGIT_RANGE."""
    net.decide(gates=_with_threshold(net.gate_spec, logit))


def _with_threshold(gates: GateSpec, logit: float) -> GateSpec:
    threshold = _sigmoid(max(-LOGIT_RANGE, min(LOGIT_RANGE, logit)))
    return gates.model_copy(update={"threshold": threshold})


def _logit(probability: float) -> float:
    edge = _sigmoid(LOGIT_RANGE)
    probability = max(1 - edge, min(edge, probability))
    return math.log(probability / (1 - probability))


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))
