"""Teaching gates by the dense pass (`gates.teach: dense`): which tokens are worth their block is there to be seen.

While all gates are held open every token x of a row becomes y = T(x), and the backward pass brings dL/dy. What the
loss would have noticed of leaving a token out is about ⟨dL/dy, y − x⟩. Its sign is noise, but its size

    worth = ‖dL/dy‖ · ‖y − x‖, divided by its mean over the image

finds objects. The best `gates.teach_share` of a batch's tokens are labelled 1, and the gate learns to tell them
by a binary cross-entropy on its margins before they are smoothed, with a backward pass of its own that reaches
nothing but the gate. It costs next to nothing, as the gradient is there. When gates are let go, nothing teaches
them any more. A scout's labels are those of 2×2 squares of tokens, by what their surroundings are worth.

Shape legend: B images · N tokens of a map · C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from routespace.errors import SpecError
from routespace.grid.spec import map_size
from routespace.nn.packing.maps import pool, spread
from routespace.nn.routing.gates import Gate
from routespace.nn.routing.margins import share_cut, smoothed
from routespace.nn.task_net import TaskNet
from routespace.train.recipe.recipe import Recipe

LABEL_GROUP = 2  # side in tokens of what a scout is taught as one
WORTH_SIDE = 3  # squares across whose mean worth labels the middle one
LEAST_MEAN = 1e-12  # of an image whose tokens change nothing at all


class DensePass(NamedTuple):
    """What a row's blocks read and gave in a dense pass: x and y (B, N, C), and the map's height and width."""

    x: Tensor
    y: Tensor
    hw: tuple[int, int]


def check_teaching(recipe: Recipe, *, gated: bool) -> None:
    """Raise SpecError for new gates that are to be taught while they are held open, but never are."""
    if gated and recipe.gates.teach == "dense" and recipe.budget.open_frac == 0 and recipe.train.epochs:
        raise SpecError(
            "gates.teach: 'dense' teaches while all gates are held open, but budget.open_frac is 0; give it a "
            "share of the training, such as 0.2"
        )


class GateTeacher:
    """Teaches the row gates of a network.

    Args:
        net: the network.
    """

    def __init__(self, net: TaskNet) -> None:
        self._share = net.gate_spec.teach_share
        self._gates: dict[str, Gate] = {}
        for name, gate in net.gates.items():
            if net.gate_spec.teach == "dense" and isinstance(gate, Gate) and gate.group == 1 and gate.learned:
                self._gates[name] = gate
        self._edges = {name: net.edges[name] for name in self._gates}
        self._passes: dict[str, DensePass] = {}

    @contextmanager
    def watching(self, *, on: bool) -> Iterator[None]:
        """A forward pass of which taught rows' inputs and outputs are kept, where `on`: gates are held open."""
        self._passes.clear()
        hooks = [self._watch(name, edge) for name, edge in self._edges.items()] if on else []
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _watch(self, name: str, edge: nn.Module) -> Any:
        def keep(_: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> None:
            if y.requires_grad:
                y.retain_grad()
                self._passes[name] = DensePass(inputs[0].detach(), y, inputs[1])

        return edge.register_forward_hook(keep)

    def teach(self, accelerator: Accelerator) -> None:
        """After the backward pass: give the gates the gradients of their labels; settle those that are done.

        With several processes each labels the best of its own part of the batch, and the gradients are averaged.
        """
        if not self._passes:
            for gate in self._gates.values():
                gate.update_ema(0.0)  # it learns no more: inference shall decide by what it has learned
            return
        for name, seen in self._passes.items():
            if seen.y.grad is None:
                continue
            gate = self._gates[name]
            margins = gate.margins(seen.x, seen.hw)
            wanted = labels(seen, seen.y.grad, self._share, squares=gate.scout is not None)
            loss = F.binary_cross_entropy_with_logits(margins, wanted)
            weights = [weight for weight in gate.parameters() if weight.requires_grad]
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                # Laid out as the weight is: `backward` sees to that, and a fused optimiser takes it for granted.
                mean = accelerator.reduce(gradient.contiguous(), "mean")
                weight.grad = mean if weight.grad is None else weight.grad + mean
        self._passes.clear()


@torch.no_grad()
def labels(seen: DensePass, gradient: Tensor, share: float, *, squares: bool = False) -> Tensor:
    """(B, N) floats: 1 for the share of the batch's tokens whose block is worth most.

    Args:
        seen: a row's dense pass.
        gradient: (B, N, C) the loss's, by y.
        share: of all tokens.
        squares: label 2×2 squares of tokens, by the mean worth of 3×3 of them, for a scout: a single token's worth
            is noisy, and what a scout looks for is larger than a square.
    """
    x, y = seen.x.float(), seen.y.float()
    worth: Tensor = gradient.float().norm(dim=2) * (y - x).norm(dim=2)
    worth = worth / worth.mean(1, keepdim=True).clamp(min=LEAST_MEAN)
    if squares:
        worth = over_squares(worth, seen.hw)
    best: Tensor = worth > share_cut(worth, share)
    return best.float()


def over_squares(worth: Tensor, hw: tuple[int, int]) -> Tensor:
    """(B, N) → (B, N): the mean worth of the 3×3 squares of 2×2 tokens around each token's own square."""
    squares = smoothed(pool(worth[..., None], hw, LABEL_GROUP)[..., 0], map_size(hw, LABEL_GROUP), WORTH_SIDE)
    return spread(squares, hw, LABEL_GROUP)
