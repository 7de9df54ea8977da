"""Calibration: after training, move the gates' threshold until the counted MACs meet the target.

Training holds the cost on training images to the budget; on other images, and with the averaged gate weights that
inference uses, the same gates cost a little more or less (measured on the digits: up to 6 %). A higher threshold
closes gates, so a search over thresholds finds the one that meets the target on validation images. Each pass tells
by its decisions where to try next (`foresight.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from routespace.checked import checked
from routespace.errors import DataError, SpecError
from routespace.grid.gate_spec import GateSpec
from routespace.nn.module import unwrap
from routespace.nn.route_net import RouteNet
from routespace.nn.running import evaluating
from routespace.nn.task_net import AnyNet, TaskNet
from routespace.nn.usage import metered
from routespace.train.foresight import LOGIT_RANGE, Chances
from routespace.train.macs import counted_macs, metered_macs
from routespace.train.processes import together

TOLERANCE_FRAC = 0.0025
WORST_FRAC = 0.03  # farther from the target than this, the budget counts as missed
STEPS = 20
FIRST_STEP = 0.5  # of the logit; a trained network is near its target already
LEAST_STEP = 0.01  # of a walk where a foreseen threshold came near, but not over
MOST_GAIN = 2.0  # in one step, of what other thresholds change over what was foreseen
NARROW = 2e-4  # of the logit: thresholds that are one
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
    """A pass with one threshold.

    Attributes:
        logit: of the threshold.
        macs: what it gives.
        ahead: MACs → the logit at which its decisions foresee these, or None.
    """

    logit: float
    macs: float
    ahead: Callable[[float], float | None]


@checked
def calibrate_threshold(
    net: AnyNet, loader: Iterable[Any], target: float, *, at_most: bool = False
) -> Calibration:
    """Set `net.gate_spec.threshold` so that the counted MACs meet `target`.

    Args:
        net: a network with gates; its threshold is replaced, and nothing else, nor that on an error.
        loader: batches that training has not seen, the same in every pass, a pass for each of about three trials.
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
        tried = tried_thresholds(lambda logit: _trial(net, logit, batches), start, aim)
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


def tried_thresholds(trial: Callable[[float], Trial], start: float, target: float) -> list[Trial]:
    """Every trial, until one meets the target: the next is where the nearest one foresees the target.

    Where that did not help, or leads out of the interval in which the target lies, the next is a step without
    foresight.
    """

    def far(found: Trial) -> float:
        return abs(found.macs - target)

    tried, trusted, gain = [trial(start)], True, 1.0
    while len(tried) < STEPS:
        best = min(tried, key=far)
        dear = next((found for found in reversed(tried) if found.macs > target), None)
        cheap = next((found for found in reversed(tried) if found.macs <= target), None)
        if far(best) <= TOLERANCE_FRAC * target or _is_narrow(dear, cheap):
            break
        step = _walked(tried, up=cheap is None) if dear is None or cheap is None else _inside(dear, cheap, target)
        if step is None:
            break
        ahead = best.ahead(best.macs + (target - best.macs) / gain) if trusted else None
        if ahead is None or not step.low < ahead < step.high:
            tried.append(trial(step.logit))
            trusted = True
            continue
        tried.append(trial(ahead))
        trusted = far(tried[-1]) < far(best) / 2
        # Decisions that follow others changed more, or less, than was foreseen.
        gain *= max(1 / MOST_GAIN, min(MOST_GAIN, (tried[-1].macs - best.macs) / (target - best.macs)))
    return tried


class Step(NamedTuple):
    """The next logit without foresight, and those between which the target lies."""

    logit: float
    low: float
    high: float


def _walked(tried: Sequence[Trial], *, up: bool) -> Step | None:
    """On in the direction in which the target lies, twice as far as before; None at the end of all thresholds."""
    last, side = tried[-1].logit, 1.0 if up else -1.0  # a higher threshold closes gates
    if abs(last) >= LOGIT_RANGE:
        return None
    length = max(LEAST_STEP, 2 * abs(last - tried[-2].logit)) if len(tried) > 1 else FIRST_STEP
    low, high = sorted((last, side * LOGIT_RANGE))
    return Step(max(-LOGIT_RANGE, min(LOGIT_RANGE, last + side * length)), low, high)


def _inside(dear: Trial, cheap: Trial, target: float) -> Step:
    """False position between two trials that enclose the target."""
    share = max(INNER_FRAC, min(1 - INNER_FRAC, (dear.macs - target) / (dear.macs - cheap.macs)))
    low, high = sorted((dear.logit, cheap.logit))
    return Step(dear.logit + share * (cheap.logit - dear.logit), low, high)


def _is_narrow(dear: Trial | None, cheap: Trial | None) -> bool:
    """Whether what two trials enclose is so little that many decisions flip at one threshold."""
    return dear is not None and cheap is not None and abs(dear.logit - cheap.logit) < NARROW


def _why(target: float, tried: list[Trial]) -> str:
    low, high = min(t.macs for t in tried), max(t.macs for t in tried)
    reach = f"thresholds tried give {low / 1e6:.4g} to {high / 1e6:.4g} MMACs, wanted are {target / 1e6:.4g}"
    if low < target < high:
        return f"{reach}; many decisions flip at one threshold"
    return f"{reach}; the gates are saturated (train longer, or with a larger budget.weight) or have no threshold"


def _trial(net: AnyNet, logit: float, batches: Iterable[Any]) -> Trial:
    """A pass over the batches with one threshold."""
    chances = Chances()
    with net.deciding_as(gates=_with_threshold(net.gate_spec, logit), held=None, shares=None, execution="auto"):
        with together(), torch.no_grad():
            found = metered(net, batches, chances.update)
        meter, chances = found.gathered(), chances.gathered()
        if not meter.images:
            raise DataError("data: no images to count MACs on")
        usage, macs = meter.usage(), metered_macs(net, meter)

    def macs_at(other: float) -> float:
        return counted_macs(net, chances.foreseen(usage, at=logit, to=other))

    here = macs_at(logit)
    return Trial(logit, macs, lambda target: _crossing(macs_at, target * here / macs))


def _crossing(macs_at: Callable[[float], float], target: float) -> float | None:
    """The logit at which MACs that fall with it are the target's; None where they nowhere are."""
    low, high = -LOGIT_RANGE, LOGIT_RANGE
    if not macs_at(high) <= target <= macs_at(low):
        return None
    while high - low > NARROW:
        middle = (low + high) / 2
        low, high = (middle, high) if macs_at(middle) > target else (low, middle)
    return (low + high) / 2


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
