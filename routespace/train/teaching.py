"""Teaching gates while all of them are held open (`gates.teach`): which tokens should open is there to be seen.

With `dense` the pass itself tells. Every token x of a row becomes y = T(x), and the backward pass brings dL/dy.
What the loss would have noticed of leaving a token out is about ⟨dL/dy, y − x⟩. Its sign is noise, but its size

    worth = ‖dL/dy‖ · ‖y − x‖, divided by its mean over the image

finds objects. The best `gates.teach_share` of a batch's tokens are labelled 1, and the gate learns to tell them
by a binary cross-entropy on its margins before they are smoothed, with a backward pass of its own that reaches
nothing but the gate. It costs next to nothing, as the gradient is there. A scout's labels are those of 2×2 squares
of tokens, by what their surroundings are worth.

With `objects` annotations tell: a token that touches an object's box is labelled 1.

When gates are let go, nothing teaches them any more.

Shape legend: B images · N tokens of a map · C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from routespace.errors import SpecError
from routespace.grid.leading import gated_rows
from routespace.grid.spec import map_size
from routespace.nn.packing.maps import pool, spread
from routespace.nn.routing.gates import Gate
from routespace.nn.routing.margins import share_cut, smoothed
from routespace.nn.task_net import TaskNet
from routespace.train.controls import touched_tokens
from routespace.train.data.skipping import Group
from routespace.train.recipe.recipe import Recipe

LABEL_GROUP = 2  # side in tokens of what a scout is taught as one
WORTH_SIDE = 3  # squares across whose mean worth labels the middle one
LEAST_MEAN = 1e-12  # of an image whose tokens change nothing at all


class DensePass(NamedTuple):
    """What a row's blocks read and gave in a dense pass: x and y (B, N, C), and the map's height and width."""

    x: Tensor
    y: Tensor
    hw: tuple[int, int]

    def bare(self) -> DensePass:
        """The same tensors, gradient too, without what they were computed from."""
        y = self.y.detach()
        y.grad = self.y.grad
        return DensePass(self.x, y, self.hw)


def check_teaching(recipe: Recipe, *, gated: bool) -> None:
    """Raise SpecError for new gates that are to be taught while they are held open, but never are."""
    if gated and recipe.gates.is_taught and recipe.budget.open_frac == 0 and recipe.train.epochs:
        raise SpecError(
            f"gates.teach: {recipe.gates.teach!r} teaches while all gates are held open, but budget.open_frac is "
            f"0; give it a share of the training, such as 0.2"
        )


class GateTeacher:
    """Teaches the row gates of a network.

    Args:
        net: the network.

    Attributes:
        is_watching: whether passes are being kept.
    """

    def __init__(self, net: TaskNet) -> None:
        self._spec = net.gate_spec
        self._gates: dict[str, Gate] = {}
        for name, gate in net.gates.items():
            if self._spec.is_taught and isinstance(gate, Gate) and gate.group == 1 and gate.learned:
                self._gates[name] = gate
        self._edges = {name: net.edges[name] for name in self._gates}
        self._rates = {row.name: row.rate for row in gated_rows(net.architecture)}
        self._passes: dict[str, list[DensePass]] = {}
        self._batch: Sequence[Group] = ()
        self.is_watching = False

    @contextmanager
    def watching(self, batch: Sequence[Group], *, on: bool) -> Iterator[None]:
        """Forward passes of which taught rows' inputs and outputs are kept, where `on`: gates are held open.

        Args:
            batch: the groups of images that come, one after the other.
            on: whether anybody watches.
        """
        self._passes, self._batch = {}, batch
        hooks = [self._watch(name, edge) for name, edge in self._edges.items()] if on else []
        self.is_watching = bool(hooks)
        try:
            yield
        finally:
            self.is_watching = False
            for hook in hooks:
                hook.remove()

    @contextmanager
    def apart(self) -> Iterator[dict[str, list[DensePass]]]:
        """A block whose passes go into what it gives, and not to those that teach; `add` brings them there."""
        before, self._passes = self._passes, {}
        try:
            yield self._passes
        finally:
            self._passes = before

    def add(self, passes: Mapping[str, Sequence[DensePass]]) -> None:
        """Teach by these passes too, edge name → what was read and given."""
        for name, seen in passes.items():
            self._passes.setdefault(name, []).extend(seen)

    def _watch(self, name: str, edge: nn.Module) -> Any:
        def keep(_: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> None:
            if self._spec.teach == "dense":
                if not y.requires_grad:
                    return
                y.retain_grad()
            self._passes.setdefault(name, []).append(DensePass(inputs[0].detach(), y, inputs[1]))

        return edge.register_forward_hook(keep)

    def teach(self, accelerator: Accelerator) -> None:
        """After the backward pass: give the gates the gradients of their labels; settle those that are done.

        With several processes each labels the tokens of its own part of the batch, and the gradients are averaged.
        """
        if not self._passes:
            for gate in self._gates.values():
                gate.update_ema(0.0)  # it learns no more: inference shall decide by what it has learned
            return
        for name, passes in self._passes.items():
            gate = self._gates[name]
            wanted = [self._labels(name, number, seen) for number, seen in enumerate(passes)]
            known = [(seen, label) for seen, label in zip(passes, wanted, strict=True) if label is not None]
            if not known:
                continue
            margins = torch.cat([gate.margins(seen.x, seen.hw).flatten() for seen, _ in known])
            loss = F.binary_cross_entropy_with_logits(margins, torch.cat([label.flatten() for _, label in known]))
            weights = [weight for weight in gate.parameters() if weight.requires_grad]
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                # Laid out as the weight is: `backward` sees to that, and a fused optimiser takes it for granted.
                mean = accelerator.reduce(gradient.contiguous(), "mean")
                weight.grad = mean if weight.grad is None else weight.grad + mean
        self._passes = {}

    def _labels(self, name: str, number: int, seen: DensePass) -> Tensor | None:
        """(B, N) floats: 1 for each token of a row's `number`-th pass that should open; None: nobody knows."""
        if self._spec.teach == "objects":
            group = self._batch[number % len(self._batch)]  # several parts of a network see the same groups
            size = (group.images.shape[-2], group.images.shape[-1])
            rate = self._rates[name]
            return torch.stack([touched_tokens(known, size, rate) for known in group.targets]).float()
        if seen.y.grad is None:  # nothing of the loss has come from it
            return None
        squares = self._gates[name].scout is not None
        return labels(seen, seen.y.grad, self._spec.teach_share, squares=squares)


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
