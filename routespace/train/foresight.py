"""What other thresholds of the gates would compute, told by the chances that one pass saw.

    chances = Chances()
    chances.update(net(images).routes)              # for each batch, at one threshold
    chances.foreseen(usage, at=0.0, to=0.5)         # the usage measured there, as it would be at another one

Where gates decide by one map of margins, which decisions do not change, this is what a pass at the other threshold
finds. Where features follow what was computed, it is near for thresholds that are near.

Shape legend: B images · P places of a decision.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from routespace.grid.usage import EdgeUsage, Usage
from routespace.nn.routing.routes import Routes
from routespace.train.processes import process_count

LOGIT_RANGE = 14.0  # thresholds from 8e-7 to 1 − 8e-7: a trained gate is rarely surer
LEAST = 1 / (1 + math.exp(LOGIT_RANGE))
BINS = 4096  # of 0.007 logits each

FloatArray = NDArray[np.float64]


class Chances:
    """Of how many decisions, and of how many images' surest ones, the chance of opening lies in which bin."""

    def __init__(self) -> None:
        self._edges: dict[str, Tensor] = {}  # (2, BINS + 1): places and images, the last of how many
        self._shares: dict[str, FloatArray] = {}  # of those that were asked for; see `_above`

    @torch.no_grad()
    def update(self, routes: Routes) -> None:
        """Add the decisions of a batch; of edges without a gate there are none."""
        for name, route in routes.items():
            if route.chance is None or route.asked is None:
                continue
            chance = torch.where(route.asked, route.chance.float(), 0.0)  # (B, P)
            parts = [
                torch.cat([_counts(part), part.new_full((1,), part.numel())]) for part in (chance, chance.amax(1))
            ]
            self._add(name, torch.stack(parts).double())

    def _add(self, name: str, counts: Tensor) -> None:
        self._edges[name] = self._edges[name] + counts if name in self._edges else counts
        self._shares.pop(name, None)

    def gathered(self) -> Chances:
        """The sums of all processes of a distributed run; itself where there is one process."""
        if process_count() == 1:
            return self
        mine = {name: counts.cpu() for name, counts in self._edges.items()}
        parts = [mine] * process_count()
        dist.all_gather_object(parts, mine)
        total = Chances()
        for part in parts:
            for name, counts in part.items():
                total._add(name, counts)
        return total

    def foreseen(self, usage: Usage, *, at: float, to: float) -> dict[str, EdgeUsage]:
        """What was measured with one threshold, as it would be with another.

        Args:
            usage: edge name → shares, measured in the pass that the chances are of.
            at: the logit of the threshold of that pass.
            to: the logit of the other one.

        Returns:
            The same with other shares of tokens and images, and of skipped tokens where there are any; which
            decisions are asked is taken as it was.
        """
        found = dict(usage)
        for name in self._edges.keys() & usage.keys():
            used = usage[name]
            tokens, images = self._above(name, to) - self._above(name, at)
            skipped = used.skipped - tokens if used.skipped else used.skipped
            found[name] = used._replace(
                tokens=_share(used.tokens + tokens), images=_share(used.images + images), skipped=_share(skipped)
            )
        return found

    def _above(self, name: str, logit: float) -> FloatArray:
        """(2,) the shares of places, and of images, with a chance above a threshold; even within a bin."""
        if name not in self._shares:  # (2, BINS + 1), above the lower edge of each bin, and above all
            counts = self._edges[name].cpu().numpy()
            below = np.pad(counts[:, :-1].cumsum(1), ((0, 0), (1, 0)))
            self._shares[name] = (below[:, -1:] - below) / np.maximum(counts[:, -1:], 1)
        shares = self._shares[name]
        place = (min(LOGIT_RANGE, max(-LOGIT_RANGE, logit)) + LOGIT_RANGE) / (2 * LOGIT_RANGE) * BINS
        low = min(int(place), BINS - 1)
        found: FloatArray = shares[:, low] + (place - low) * (shares[:, low + 1] - shares[:, low])
        return found


def _counts(chance: Tensor) -> Tensor:
    """How many lie in each bin, of whatever shape; those that no threshold opens lie in none."""
    logits = torch.logit(chance[chance > LEAST], eps=LEAST).clamp(max=LOGIT_RANGE)
    return torch.histc(logits, BINS, -LOGIT_RANGE, LOGIT_RANGE)


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
