"""Head: what a network's head is, and the head of a network without a task.

Shape legend: B images · C channels · H, W of a rate's map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from routespace.grid.families.base import EdgeCost
from routespace.grid.spec import GridSpec
from routespace.nn.heads.regions import RegionGraph
from routespace.nn.route_net import RouteOutput

NO_COST = EdgeCost(0, 0, 0, 0, 0)


class Head(nn.Module, ABC):
    """A head: a backbone's output → a task's outputs.

    Its parameters are saved under `head.*`; `kind` and `settings` let a saved network find its head again.

    Attributes:
        kind: its name in files.
        budgeted: whether its MACs are among those that a budget holds; heads of dense tasks stand beside it.
        free_size: whether exported files take images of any size, where the family can; else of one size.
        recordable: whether it calls the same kernels for all images of a size, so that a CUDA graph can hold it.
        names: of the tensors that `tensors` gives, as exported files call them.
    """

    kind: ClassVar[str]
    budgeted: ClassVar[bool] = False
    free_size: ClassVar[bool] = False
    recordable: ClassVar[bool] = False
    names: tuple[str, ...]

    @classmethod
    @abstractmethod
    def build(cls, spec: GridSpec, settings: Mapping[str, Any]) -> Self:
        """The head with fresh weights for a grid.

        Args:
            spec: widths, output rates and number of classes.
            settings: what `settings` of an equal head returned.
        """

    def settings(self) -> dict[str, Any]:
        """What `build` needs beside the grid's spec, as JSON data."""
        return {}

    def coarsest(self, spec: GridSpec) -> int:
        """The coarsest rate that it computes at; images of free size have two tokens a side there."""
        return spec.max_down

    def lines(self) -> tuple[str, ...]:
        """What a training tells of it before it begins, such as maps that it has to do without."""
        return ()

    def reads(self, spec: GridSpec) -> tuple[int, ...]:
        """Rates of the maps that it looks at; by default all that the grid puts out."""
        return spec.output_rates

    def over(self, rates: Sequence[int]) -> Self:
        """What is left of it over the maps of some rates alone, for architectures that never reach the others.

        Its weights are the same ones, and their keys are a subset; it is the head itself where it misses nothing.

        Args:
            rates: of the maps that there are, fine to coarse.

        Raises:
            SpecError: too little is left to stand on.
        """
        return self

    def cost(self, spec: GridSpec) -> EdgeCost:
        """The price of one image of the spec's size (a caller sets it to the real one); nothing by default."""
        return NO_COST

    @abstractmethod
    def forward(self, output: RouteOutput) -> Any:
        """The maps of B images (and which tokens are there) → the task's outputs."""

    def rest_macs(self, spec: GridSpec) -> int:
        """What of its price `forward` does not pay, but `rest`."""
        return 0

    def rest(self, outputs: Any) -> Any:
        """What a task computes from the outputs, in sizes that no image's content changes; nothing by default.

        Counters run it after `forward`: in training mode, what the loss keeps for the backward pass; in evaluation
        mode, what is multiplied on the way to the results. What it gives is of no use.
        """
        return None

    def region_graphs(self) -> Mapping[str, RegionGraph]:
        """What it computes in float32 of regions that only the outputs tell, by name; nothing by default.

        Exported files hold these beside the image's graph, since their number differs from image to image.
        """
        return {}

    @abstractmethod
    def tensors(self, outputs: Any) -> tuple[Tensor, ...]:
        """What `forward` returned as tensors, one for each of `names`: how it is compared and exported."""


class Maps(Head):
    """The head of a network without a task: its outputs are the maps themselves, rate → (B, C, H, W).

    Args:
        rates: of the maps, fine to coarse.
    """

    kind = "maps"
    recordable = True

    def __init__(self, rates: Sequence[int]) -> None:
        super().__init__()
        self.rates = tuple(rates)
        self.names = tuple(f"features_r{rate:02d}" for rate in rates)

    @classmethod
    def build(cls, spec: GridSpec, settings: Mapping[str, Any]) -> Self:
        """A head without parameters."""
        return cls(spec.output_rates)

    def reads(self, spec: GridSpec) -> tuple[int, ...]:
        """All that there are."""
        return self.rates

    def over(self, rates: Sequence[int]) -> Self:
        """The maps of these rates."""
        return self if set(self.rates) <= set(rates) else type(self)([r for r in self.rates if r in rates])

    def forward(self, output: RouteOutput) -> dict[int, Tensor]:
        """The maps, fine to coarse."""
        return output.maps

    def tensors(self, outputs: dict[int, Tensor]) -> tuple[Tensor, ...]:
        """The maps."""
        return tuple(outputs.values())


def listed(rates: Sequence[int]) -> str:
    """Rates as a line tells them."""
    return ", ".join(str(rate) for rate in rates)


def missing_maps(*, grid: Sequence[int], architecture: Sequence[int]) -> str:
    """Why a head does without the maps of some rates; nothing where it has them all.

    Args:
        grid: rates that the grid does not have.
        architecture: those that the architecture never reaches.
    """
    why = [f"the grid has no maps at rates {listed(grid)}"] if grid else []
    why += [f"the architecture never reaches rates {listed(architecture)}"] if architecture else []
    return " and ".join(why)
