"""What a head computes of regions that it found: graphs of their own, which files hold beside the image's graph.

    graphs = net.head.region_graphs()                # name → RegionGraph; none of most heads
    scores, deltas = graphs["boxes"](regions)        # regions cut out of the maps

Shape legend: R regions · D channels · S side of a region, in places of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

ComputeRegions = Callable[[Tensor], tuple[Tensor, ...]]  # (R, D, S, S) → tensors (R, …)


class RegionGraph(nn.Module):
    """Layers on regions, as exporters take them.

    Args:
        layers: (R, D, S, S) → a tensor (R, …), or a tuple of several.
        names: of these tensors.
        shape: (D, S, S) of a region.

    Attributes:
        names, shape: as given.
    """

    def __init__(self, layers: nn.Module, names: Sequence[str], shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.layers, self.names, self.shape = layers, tuple(names), shape

    def forward(self, regions: Tensor) -> tuple[Tensor, ...]:
        """(R, D, S, S) → the tensors that `names` names, each (R, …)."""
        found = self.layers(regions)
        return found if isinstance(found, tuple) else (found,)


class OutsideRegions(nn.Module):
    """Stands where a head has its layers on regions, and lets something else compute them: an exported file.

    Args:
        compute: regions → tensors; it may need one region at least.
    """

    def __init__(self, compute: ComputeRegions) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, regions: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(R, D, S, S) → a tensor (R, …), or a tuple of several, where the regions are."""
        some = regions if len(regions) else regions.new_zeros(1, *regions.shape[1:])
        found = tuple(part[: len(regions)].to(regions) for part in self.compute(some))
        return found if len(found) > 1 else found[0]
