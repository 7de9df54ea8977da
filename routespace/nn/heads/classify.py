"""The classifier: the mean of the coarsest map's tokens, then one linear layer.

On a large image a small object is a few tokens among many that say nothing, and in a mean over all of them it is
hardly heard. A routed network knows which tokens it found worth computing: with `pool: computed` the mean is over
these alone.

Shape legend: B images · N tokens of the coarsest map · C its channels · K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from routespace.errors import SpecError
from routespace.grid.families.base import EdgeCost
from routespace.grid.prices import head_cost
from routespace.grid.spec import GridSpec
from routespace.nn.drawing import truncated_normal_
from routespace.nn.heads.base import Head
from routespace.nn.heads.settings import Pool
from routespace.nn.route_net import RouteOutput

INIT_STD = 0.02


class Classifier(Head):
    """A linear classifier on the pooled coarsest map; the norm before it is the backbone's.

    Its parameters are called `weight` and `bias`, as those of timm's classifier.

    Args:
        width: C.
        classes: K.
        rate: of the map that is pooled.
        pool: which tokens the mean is over: `all` that are there, or those that the map's last row `computed`,
            where its gate chooses among tokens and computed any.

    Raises:
        SpecError: no classes.
    """

    kind = "classify"
    recordable = True
    budgeted = True
    names = ("logits",)

    def __init__(self, width: int, classes: int, rate: int, pool: Pool = "all") -> None:
        super().__init__()
        if classes < 1:
            raise SpecError(f"num_classes: {classes} classes cannot be told apart; give grid.num_classes")
        linear = nn.Linear(width, classes)
        truncated_normal_(linear.weight, std=INIT_STD)
        nn.init.zeros_(linear.bias)
        self.rate, self.pool = rate, pool
        self.weight, self.bias = linear.weight, linear.bias

    @classmethod
    def build(cls, spec: GridSpec, settings: Mapping[str, Any]) -> Self:
        """The classifier of a grid's `num_classes` on its coarsest map."""
        return cls(spec.width(spec.max_down), spec.num_classes, spec.max_down, **settings)

    def settings(self) -> dict[str, Any]:
        """What the mean is over, where it is not all tokens: heads of before there was a choice stay equal."""
        return {} if self.pool == "all" else {"pool": self.pool}

    def reads(self, spec: GridSpec) -> tuple[int, ...]:
        """The coarsest."""
        return (self.rate,)

    def over(self, rates: Sequence[int]) -> Self:
        """Itself; raises SpecError without the map that it pools."""
        if self.rate not in rates:
            raise SpecError(f"head: a classifier reads the map at rate {self.rate}; keep a path to it")
        return self

    def cost(self, spec: GridSpec) -> EdgeCost:
        """The linear layer's price."""
        return head_cost(spec)

    def forward(self, output: RouteOutput) -> Tensor:
        """Logits (B, K): tokens that nobody sent are left out of the mean; an image without any has the bias."""
        x = output.maps[self.rate].flatten(2).transpose(1, 2)
        weights = self._weights(output)
        if weights is None:
            return nn.functional.linear(x.mean(1), self.weight, self.bias)
        weights = weights.to(x.dtype)
        pooled = (x * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)
        return nn.functional.linear(pooled, self.weight, self.bias)

    def _weights(self, output: RouteOutput) -> Tensor | None:
        """What each token (B, N) weighs in the mean, 0 or 1; None for all alike."""
        there, computed = output.there[self.rate], output.computed[self.rate]
        if self.pool == "all" or computed is None:
            return there
        rest = torch.ones_like(computed) if there is None else there.to(computed.dtype)
        return torch.where(computed.detach().any(1, keepdim=True), computed, rest)

    def tensors(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """The logits."""
        return (outputs,)
