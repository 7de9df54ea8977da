"""What decides in place of the gates while the blocks learn: everything is computed, or the staircase."""

from __future__ import annotations

from routespace.grid.architecture import Architecture
from routespace.nn.task_net import TaskNet
from routespace.train.phases import Phase


class Holding:
    """What the gates of a network are held to.

    Args:
        net: that trains.
    """

    def __init__(self, net: TaskNet) -> None:
        self._whole = net.architecture
        self._held: Architecture | None = None

    def at(self, phase: Phase, progress: float) -> Architecture | None:
        """What decides after a share `progress` of the training; None where the gates do."""
        if not phase.clock.held and progress >= phase.recipe.budget.open_frac:
            return None
        if self._held is None:
            stairs = phase.recipe.train.start == "staircase"
            self._held = Architecture.staircase(self._whole.grid) if stairs else self._whole.opened()
        return self._held

    def as_meant(self, net: TaskNet, phase: Phase) -> TaskNet:
        """The network as the phase means it: one that is held to its end is a plain one."""
        held = self.at(phase, 0.0) if phase.clock.held and not net.architecture.is_static else None
        return net if held is None else net.restrict(held)
