"""Gates: small modules that decide which tokens or images an edge computes.

Sources: DiT (arXiv 2308.03409) for the linear Gumbel-Softmax gate, "Learning Dynamic Routing for Semantic
Segmentation" (CVPR 2020) for max(0, tanh). Straight-through: the value is 0 or 1 in the forward pass and has
the soft probability's gradient. A closed gate's edge is not computed, so no gradient of the task reaches a
closed gate: that bias is the price of real savings, and noise and the budget loss are what reopens gates.

Shape legend: B images · N tokens · P places (decisions of one gate for one image) · C channels · S squares of
tokens and D channels of a scout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routespace.grid.gate_spec import MAP_CONTEXT, RANKING, GateSpec, Granularity
from routespace.grid.spec import map_size
from routespace.nn.drawing import truncated_normal_
from routespace.nn.packing.maps import coarsen, pool, spread
from routespace.nn.routing.deciding import Deciding
from routespace.nn.routing.margins import (
    Cut,
    margin_of,
    of_windows,
    smoothed,
    surroundings,
    weighed,
    without_autocast,
)
from routespace.nn.routing.scout import Scout

GROUP_TOKENS = 4  # fine tokens of a patch embedding's 2×2 group, at most
ROUNDING = 1e-9  # 0.55 of 100 places is 55.00000000000001 in floats, and yet 55 places
INIT_STD = 0.02  # of a gate's weights, as of the blocks': the bias decides at first


Ranked = Callable[[Tensor], tuple[Tensor, int | None]]  # scores → ones at the best, and how many of every image


class Decision(NamedTuple):
    """What a gate says. Both (B, P) spread to the tokens: (B, N) or (B, 1).

    Attributes:
        value: what the edge's result is multiplied by, 0 where closed; straight-through, so 0 or 1, but for
            tanh and for soft relaxations.
        counted: what the budget counts for `value`: 0 or 1 with its gradient (soft: the probability).
        chance: probability of opening, for reports (tanh: the value).
        per_image: open places of every image where they are equal in number, as the host knows, else None.
        opened: (B, P) bool of what is open, where `counted` is these as numbers; None where nobody has made it.
    """

    value: Tensor
    counted: Tensor
    chance: Tensor
    per_image: int | None = None
    opened: Tensor | None = None


class Gate(nn.Module):
    """One gate: pooled features → linear → margin → decision.

    Args:
        spec: the gates' spec.
        granularity: what decides together.
        width: channels of the map that the gate reads.
        rows: True for the gate of a row, False for that of a patch embedding, whose places are 2×2 groups.
        follows: it has no weights, and decides by the margins of another row's gate.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter
    ema_weight: Tensor | None
    ema_bias: Tensor

    def __init__(
        self, spec: GateSpec, granularity: Granularity, width: int, *, rows: bool, follows: bool = False
    ) -> None:
        super().__init__()
        self.granularity = granularity
        self.group = 1 if rows else 2
        self.window = spec.window if granularity == "window" else 1
        self.capacity = spec.capacity and granularity == "token"
        self.selection = spec.selection if rows else "learned"
        self.follows = follows
        self.leads = rows and spec.source == "map" and not follows
        self.read_side = 1 if rows and spec.read_rows == "token" else self.window
        self.context = spec.context_side if rows else 1
        shape = spec.scout_shape(width, rows=rows) if self.leads else None
        self.scout = Scout(shape) if shape else None
        self.cut = Cut() if rows and spec.opening == "share" else None
        self.learned = self.selection == "learned" and not follows
        if not self.learned:
            return
        taught = rows and spec.is_taught
        self.bias = nn.Parameter(initial_bias(spec, spec.teach_share if taught else spec.openness))
        self.register_buffer("ema_bias", self.bias.detach().clone())
        if granularity == "layer":  # one learned number (two logits), no features
            self.weight = self.ema_weight = None
        else:
            self.weight = nn.Parameter(torch.empty(spec.logits, spec.gate_inputs(width, rows=rows)))
            truncated_normal_(self.weight, std=INIT_STD)
            self.register_buffer("ema_weight", self.weight.detach().clone())

    @property
    def decides_for_images(self) -> bool:
        """Whether a decision is about whole images."""
        return self.granularity in ("layer", "image")

    def forward(
        self,
        x: Tensor,
        hw: tuple[int, int],
        deciding: Deciding,
        *,
        present: Tensor | None = None,
        count: int | None = None,
        margins: Tensor | None = None,
        share: float | None = None,
    ) -> Decision:
        """Decide from the map x (B, N, C) of height and width `hw`.

        Args:
            x: the map that the gated edge reads.
            hw: its height and width.
            deciding: how (the net's, so that a calibrated threshold reaches every gate).
            present: (B, N) bool, the tokens that are there; None for all. What is chosen by rank is chosen among
                them.
            count: how many of every image `present` holds, where that is known beforehand.
            margins: (B, N) those of the leading row, to decide by instead of one's own.
            share: of the batch's tokens to open in training, of a gate that opens a share.
        """
        spec, coarse = deciding.gates, self._spread_over(hw)
        best = partial(self._best, keep=spec.keep, hw=hw, present=present, count=count)
        if self.selection == "random":
            scores = torch.rand(self._places(x, hw).shape[:2], device=x.device) - 1 + spec.keep
            value = (scores > 0).float()
            decision = Decision(value, value, torch.full_like(value, spec.keep))
        elif self.selection in RANKING:
            places = self._places(x, hw)
            scores = attention_scores(places) if self.selection == "attention" else entropy_scores(places, hw)
            value, per_image = best(scores)
            decision = Decision(value, value, value, per_image)
        else:
            own = self.margins_to_decide_by(x, hw, spec) if margins is None else margins
            if self.leads or self.follows:
                own = of_windows(own, hw, self.window)
            if self.cut is not None:
                own = own - self.cut(own, share)
            decision = self._decide(own, deciding, best if self.capacity else None)
        if self.window == 1:
            return decision
        value, counted, chance = (spread(part, coarse, self.window) for part in decision[:3])
        everything = decision.per_image == decision.value.shape[1]
        return Decision(value, counted, chance, value.shape[1] if everything else None)  # some windows are smaller

    def margins(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """(B, N, C) → (B, P) what its weights say of each place: above 0 where it should open."""
        weight, bias = (self.weight, self.bias) if self.training else (self.ema_weight, self.ema_bias)
        if weight is None:
            return margin_of(bias.expand(x.shape[0], 1, -1))
        parts = surroundings(x, hw, self.context) if self.context > 1 else (self._places(x, hw),)
        with without_autocast(x, wanted=self.context > 1 or self.scout is not None):  # few bits make ties
            margins = weighed(parts, weight, bias)
        return margins if self.scout is None else spread(margins, hw, self.scout.shape.side)

    def margins_to_decide_by(self, x: Tensor, hw: tuple[int, int], spec: GateSpec) -> Tensor:
        """(B, N, C) → (B, P) the same, smoothed; what a taught gate decides gives its weights no gradient."""
        margins = self.margins(x, hw)
        if self.group > 1:  # of a patch embedding
            return margins
        margins = smoothed(margins, hw, spec.smooth_side)
        return margins.detach() if spec.is_taught else margins

    def _spread_over(self, hw: tuple[int, int]) -> tuple[int, int]:
        """The height and width of the map over which decisions are spread."""
        return (1, 1) if self.decides_for_images else map_size(hw, self.group)

    def _places(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """(B, N, C) → (B, P, C): what a decision without context is made from; of a scout (B, S, D)."""
        if self.decides_for_images:
            return x.mean(1, keepdim=True)
        if self.scout is not None:
            features: Tensor = self.scout(x, hw)
            return features
        return pool(x, hw, self.group * self.read_side)

    def _best(
        self, scores: Tensor, *, keep: float, hw: tuple[int, int], present: Tensor | None, count: int | None
    ) -> tuple[Tensor, int | None]:
        """(B, P) scores → (B, P), ones at the best of each image, and how many where the host knows.

        A row takes the share `keep` of the tokens that are there. A patch embedding takes the share `keep` of all
        groups, so that it does not shrink from rate to rate, but no more than the tokens that are there can fill:
        that many groups hold one for certain, wherever they are.
        """
        places = scores.shape[1]
        if present is None:
            return top_share(scores, keep), share_count(keep, places)
        rows, most = self.group == 1, share_count(keep, places)
        there = present if rows else coarsen(present.float(), hw) > 0
        scores = scores.detach().masked_fill(~there, -math.inf)
        if count is not None:
            number = share_count(keep, count) if rows else min(most, -(-count // GROUP_TOKENS))
            return top_places(scores, number), number
        counts = present.sum(1, keepdim=True)
        wanted = (
            torch.ceil(keep * counts.double() - ROUNDING) if rows else (-(-counts // GROUP_TOKENS)).clamp(max=most)
        )
        return top_places(scores, wanted), None

    def _decide(self, margin: Tensor, deciding: Deciding, ranked: Ranked | None) -> Decision:
        spec = deciding.gates
        if spec.kind == "tanh":
            value = F.relu(torch.tanh(margin))
            if not self.training:
                value = torch.where(value > spec.open_above, value, torch.zeros_like(value))
            return Decision(value, (value > 0).float() + (value - value.detach()), value.detach())
        chance = torch.sigmoid(margin)
        per_image: int | None = None
        opened: Tensor | None = None
        if ranked is not None:
            soft, (hard, per_image) = chance, ranked(margin)
        elif self.training:
            # The threshold shifts the margin, so that a calibrated gate samples around the same decision.
            margin = margin - threshold_logit(spec.open_above)
            if spec.kind == "gumbel" and deciding.noise:
                margin = margin + deciding.noise * logistic_noise(margin, shared=self.granularity == "layer")
            soft = torch.sigmoid(margin / deciding.temperature)
            hard = (soft > 0.5).float()
        else:
            opened, soft = chance > spec.open_above, chance
            hard = opened.float()
        if not self.training:
            return Decision(hard, hard, chance, per_image, opened)
        if spec.relaxation == "soft":
            return Decision(soft, soft, chance.detach(), soft.shape[1])  # a probability shuts nothing
        value = hard + (soft - soft.detach())
        return Decision(value, value, chance.detach(), per_image)

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """Move the EMA copy towards the weights; call it after each optimiser step."""
        if not self.learned:
            return
        if self.scout is not None:
            self.scout.update_ema(decay)
        self.ema_bias.lerp_(self.bias, 1 - decay)
        if self.weight is not None and self.ema_weight is not None:
            self.ema_weight.lerp_(self.weight, 1 - decay)


def initial_bias(spec: GateSpec, p: float) -> Tensor:
    """Bias with which an untrained gate opens with probability `p` (tanh: has that value)."""
    if spec.kind == "tanh":
        return torch.tensor([math.atanh(p)])
    logit = math.log(p / (1 - p))
    return torch.tensor([logit / 2, -logit / 2] if spec.kind == "gumbel" else [logit])


def threshold_logit(threshold: float) -> float:
    """The margin at which a gate's probability is `threshold`; thresholds of 0 and 1 stay finite."""
    p = min(max(threshold, 1e-9), 1 - 1e-9)
    return math.log(p / (1 - p))


def logistic_noise(like: Tensor, *, shared: bool) -> Tensor:
    """The difference of two Gumbel samples, which is logistic: what two-way Gumbel-Softmax adds to its margin.

    A `layer` gate is one number for the whole batch, so its noise is shared by the batch.
    """
    shape = (1, *like.shape[1:]) if shared else like.shape
    uniform = torch.rand(shape, device=like.device, dtype=torch.float32).clamp_(1e-7, 1 - 1e-7)
    return torch.log(uniform) - torch.log1p(-uniform)


def share_count(keep: float, places: int) -> int:
    """How many of an image's places the share `keep` is: at least one."""
    return max(1, math.ceil(keep * places - ROUNDING))


def top_share(scores: Tensor, keep: float) -> Tensor:
    """(B, P) scores → (B, P) floats with a one at the best ceil(keep·P) places of each image."""
    return top_places(scores, share_count(keep, scores.shape[1]))


def top_places(scores: Tensor, number: int | Tensor) -> Tensor:
    """(B, P) scores → (B, P) floats with a one at the best `number` places: of all images, or (B, 1) of each."""
    if isinstance(number, int):
        # In order of size they are wanted nowhere; on a GPU sorting them takes another kernel.
        best = scores.topk(number, dim=1, sorted=not scores.is_cuda).indices
        return torch.zeros_like(scores).scatter_(1, best, 1.0)
    ones = (torch.arange(scores.shape[1], device=scores.device) < number).to(scores.dtype)
    return torch.zeros_like(scores).scatter_(1, scores.argsort(dim=1, descending=True), ones)


def attention_scores(places: Tensor) -> Tensor:
    """(B, P, C) → (B, P): how much the mean token attends to each place, without parameters (the ablation)."""
    query = places.mean(1, keepdim=True)
    return (places * query).sum(-1) / math.sqrt(places.shape[-1])


def entropy_scores(places: Tensor, hw: tuple[int, int]) -> Tensor:
    """(B, N, C) → (B, N): the entropy of a Gaussian with the deviations around each token, without parameters.

    Up to a constant it is the mean logarithm of the deviations: high where the map is busy, low where it is flat.
    """
    return surroundings(places, hw, MAP_CONTEXT)[2].log().mean(-1)
