"""Sandwich training: in each step the largest network, the smallest, and some between them, over the same weights.

The largest learns from the data (and from a teacher, where there is one); each of the others learns from the data
and from what the largest says, as BigNAS and AlphaNet do. Gradients of all add up before they are clipped. Each
pass goes back before the next begins, so that one network's activations are held at a time.

Which parts a step trains is a function of the seed, the epoch and the step: a resumed training draws the same.

Shape legend: B images of one process and step · C channels · H, W pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from timm.layers.drop import DropPath

from routespace.errors import BudgetError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost, batch_cost
from routespace.grid.count import cheapest
from routespace.grid.sample import architectures_of, sample_static_bits
from routespace.nn.families.base import Block
from routespace.nn.task_net import TaskNet
from routespace.train.data.skipping import Group
from routespace.train.passes import Runner
from routespace.train.recipe.recipe import Recipe
from routespace.train.step_loss import Losses

KEPT_PARTS = 128  # ready to run; making one takes a few milliseconds
LOW_END_FRAC = 0.05  # of the window, in which its smallest part is looked for
LOW_END_DRAWS = 256


class Ends:
    """What a supernet's sandwich lies between.

    Args:
        space: the supernet's architecture.
        window: shares of the MACs of everything computed.

    Attributes:
        largest: everything computed.
        smallest: the cheapest part inside the window (above its low end: of those that were drawn there).
        low_macs, high_macs: the window.

    Raises:
        BudgetError: nothing lies in the window.
    """

    def __init__(self, space: Architecture, window: tuple[float, float]) -> None:
        self.space = space
        self.largest = space.opened()
        most = architecture_cost(self.largest).macs
        self.low_macs, self.high_macs = (share * most for share in window)
        self.smallest = self._smallest()

    def _smallest(self) -> Architecture:
        least = cheapest(self.space)
        if architecture_cost(least).macs >= self.low_macs:
            return least
        width = LOW_END_FRAC * (self.high_macs - self.low_macs)
        top = self.low_macs + width
        while top <= self.high_macs:
            try:
                found = self.draw(LOW_END_DRAWS, seed=0, high_macs=top)
            except BudgetError:
                top += width
                continue
            return architectures_of(self.space.grid, found[[batch_cost(self.space.grid, found).argmin()]])[0]
        found = self.draw(LOW_END_DRAWS, seed=0)
        return architectures_of(self.space.grid, found[[batch_cost(self.space.grid, found).argmin()]])[0]

    def draw(self, count: int, *, seed: int, high_macs: float | None = None) -> np.ndarray:
        """bool (count, edges): parts of the window, uniform among all that there are."""
        high = self.high_macs if high_macs is None else high_macs
        return sample_static_bits(self.space, count, low_macs=self.low_macs, high_macs=high, seed=seed)


class Sandwich:
    """The passes of one step of a sandwich training.

    Args:
        run: makes a pass.
        net: the supernet.
        recipe: seed, window, number of parts.
        steps: optimiser steps of one epoch.

    Raises:
        SpecError: a network without gates.
        BudgetError: no part lies in the window.
    """

    teaches = True

    def __init__(self, run: Runner, net: TaskNet, recipe: Recipe, steps: int) -> None:
        if net.architecture.is_static:
            raise SpecError("train.mode: 'sandwich' needs gates to choose by; this network has none, use 'plain'")
        spec = recipe.train
        self.run, self.net, self.seed, self.steps, self.count = run, net, recipe.seed, steps, spec.sandwich_parts
        self.ends = Ends(net.architecture, spec.sandwich_window)
        self.largest = net.restrict(self.ends.largest)
        self._parts: OrderedDict[Architecture, TaskNet] = OrderedDict()
        self._epoch, self._drawn = -1, np.zeros((0, 0), dtype=np.bool_)

    def __call__(self, batch: Sequence[Group], progress: float, step: int) -> Losses:
        """See Passes; task loss and score are the largest's, the soft loss the mean of the others'.

        `loss` and `macs` are the sums over all passes.
        """
        self.largest.train()
        told = self.run.told(batch)
        first = self.run(batch, progress, taught=told, part=self.largest, last=False)
        parts = [self.ends.smallest, *self.drawn(step)]
        soft, loss, macs = 0.0 * first.losses.loss.detach(), first.losses.loss.detach(), first.losses.macs
        for number, architecture in enumerate(parts, 1):
            part, last = self._part(architecture), number == len(parts)
            losses = self.run(batch, progress, taught=first.outputs, part=part, last=last).losses
            soft, loss, macs = soft + losses.soft_loss, loss + losses.loss.detach(), macs + losses.macs
        return first.losses._replace(loss=loss, soft_loss=soft / len(parts), macs=macs)

    def drawn(self, step: int) -> list[Architecture]:
        """The parts between the ends that a step trains; `step` counts from the training's first."""
        epoch, place = divmod(step, self.steps)
        if epoch != self._epoch:
            seed = (self.seed << 20) + epoch
            self._epoch, self._drawn = epoch, self.ends.draw(self.count * self.steps, seed=seed)
        return architectures_of(self.ends.space.grid, self._drawn[place * self.count : (place + 1) * self.count])

    def _part(self, architecture: Architecture) -> TaskNet:
        """A part of the network, ready to be trained."""
        found = self._parts.pop(architecture, None)
        if found is None:
            found = without_drop_path(self.net.restrict(architecture).train())
        self._parts[architecture] = found  # the last to go
        if len(self._parts) > KEPT_PARTS:
            self._parts.popitem(last=False)
        return found


def without_drop_path(part: TaskNet) -> TaskNet:
    """Switch stochastic depth off in a part, in place; the network that it is of keeps it.

    A small network has no depth to spare.
    """
    for module in part.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, Block) and isinstance(getattr(module, "drop_path", None), float):
            module.drop_path = 0.0  # type: ignore[assignment]  # a number of ours, which torch takes for a module
    return part
