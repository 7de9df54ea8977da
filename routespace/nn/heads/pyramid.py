"""The feature pyramid (FPN) that detectors stand on: maps of one width, and some that are coarser than the grid's.

Shape legend: B images · C channels of a rate's map · D channels of the pyramid · H, W of a rate's map.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

from routespace.grid.families.base import FLOAT_BYTES, EdgeCost
from routespace.grid.spec import GridSpec, map_size

MULTIPLYING = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
Work = tuple[nn.Module, int]  # a module, and how many places its weights are applied at


class Beyond(LastLevelP6P7):  # type: ignore[misc]  # torchvision tells no types
    """torchvision's two maps beyond the last one, each a convolution of the one before it.

    The first is made of the pyramid's last map, or of the backbone's own, as RetinaNet has it in the papers'
    tables (mmdetection's `add_extra_convs='on_input'`; torchvision's way wherever the two widths differ). Where
    the backbone's is never reached, it is every second place of the pyramid's last one instead.

    Args:
        width: channels of the map that the first is made of.
        out: D.
        of_backbone: it is the backbone's.
    """

    def __init__(self, width: int, out: int, *, of_backbone: bool) -> None:
        super().__init__(width, out)
        self.use_P5 = not of_backbone

    def drop_input(self) -> None:
        """Do without the backbone's last map, in place; what was for it alone goes."""
        if not self.use_P5:
            self.p6 = nn.Identity()

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Maps of the pyramid and of the backbone, and names of the former → the pyramid's with two more."""
        if not isinstance(self.p6, nn.Identity):
            made: tuple[list[Tensor], list[str]] = super().forward(p, c, names)
            return made
        first = every_second(p[-1])
        return [*p, first, self.p7(F.relu(first))], [*names, "p6", "p7"]


def every_second(x: Tensor) -> Tensor:
    """(B, D, H, W) → every second place, as torchvision's `LastLevelMaxPool` takes it."""
    return F.max_pool2d(x, kernel_size=1, stride=2)


class Pyramid(nn.Module):
    """torchvision's FPN over maps of a grid, with coarser maps behind the last one.

    Its parameters are called as those of torchvision's detectors: `fpn.inner_blocks.0.0.weight`, ….

    Args:
        widths: rate → C of the maps that it reads, fine to coarse.
        width: D.
        beyond: how maps beyond the last are made. `pyramid` and `backbone`: two, by convolutions, of the last map
            of either (RetinaNet, FCOS). None: one that is a quarter of the last (Mask R-CNN).

    Attributes:
        built: rates that it was made for, fine to coarse.
        read: those of them that the architecture reaches; all, unless `drop_to` told otherwise.
        levels: rates of its maps without those behind the last: `built` from the finest that is read.
        rates: of all its maps.
    """

    def __init__(
        self, widths: Mapping[int, int], width: int, *, beyond: Literal["pyramid", "backbone"] | None
    ) -> None:
        super().__init__()
        of_backbone, convolved = beyond == "backbone", beyond is not None
        last = list(widths.values())[-1] if of_backbone else width
        extra = Beyond(last, width, of_backbone=of_backbone) if convolved else LastLevelMaxPool()
        self.fpn = FeaturePyramidNetwork(list(widths.values()), width, extra_blocks=extra)
        self.built = self.read = self.levels = tuple(widths)
        self.rates = (*self.built, *(self.built[-1] << n for n in range(1, 3 if convolved else 2)))
        self.out_channels = width  # torchvision's detectors ask for it

    def drop_to(self, read: Sequence[int]) -> None:
        """Read the maps of these rates alone, in place; weights without a use go, the others keep their names.

        A rate between two that are read gets its map from the coarser one. Those behind the last are subsampled,
        and so is what would be made of the backbone's last map where that is not read. So anchors stay where they
        were; only rates that are finer than any that is read have no map.
        """
        self.read = tuple(read)
        self.levels = tuple(rate for rate in self.built if rate >= read[0])
        self.rates = tuple(rate for rate in self.rates if rate >= read[0])
        for place, rate in enumerate(self.built):
            if rate not in read:
                self.fpn.inner_blocks[place] = nn.Identity()
            if not read[0] <= rate <= read[-1]:
                self.fpn.layer_blocks[place] = nn.Identity()
        if isinstance(self.fpn.extra_blocks, Beyond) and read[-1] != self.built[-1]:
            self.fpn.extra_blocks.drop_input()

    def forward(self, maps: Mapping[int, Tensor]) -> list[Tensor]:
        """Rate → (B, C, H, W) → (B, D, H, W) of each of `rates`."""
        if self.read == self.built:
            return list(self.fpn({str(rate): maps[rate] for rate in self.read}).values())
        made = self._top_down(maps)
        for _ in range(len(self.levels) - len(made)):
            made.append(every_second(made[-1]))
        return list(self.fpn.extra_blocks(made, [maps[self.read[-1]]], [])[0])

    def _top_down(self, maps: Mapping[int, Tensor]) -> list[Tensor]:
        """torchvision's way from the coarsest map that is read to the finest, over gaps as well."""
        top: Tensor | None = None
        made: list[Tensor] = []
        finest = maps[self.read[0]].shape[-2:]
        for place, rate in reversed(list(enumerate(self.built))):
            if not self.read[0] <= rate <= self.read[-1]:
                continue
            size = map_size((finest[0], finest[1]), rate // self.read[0])
            above = None if top is None else F.interpolate(top, size=size, mode="nearest")
            if rate in self.read:
                lateral = self.fpn.inner_blocks[place](maps[rate])
                top = lateral if above is None else lateral + above
            else:
                top = above
            made.insert(0, self.fpn.layer_blocks[place](top))
        return made

    def work(self, spec: GridSpec) -> Iterable[Work]:
        """What is multiplied for one image of the spec's size."""
        places = dict(zip(self.rates, places_of(spec, self.rates), strict=True))
        for rate, inner, outer in zip(self.built, self.fpn.inner_blocks, self.fpn.layer_blocks, strict=True):
            if rate in places:  # what is not multiplied has no weights any more
                yield inner, places[rate]
                yield outer, places[rate]
        if isinstance(self.fpn.extra_blocks, Beyond):
            yield self.fpn.extra_blocks.p6, places[self.rates[-2]]
            yield self.fpn.extra_blocks.p7, places[self.rates[-1]]


class RateAnchors(AnchorGenerator):  # type: ignore[misc]  # torchvision tells no types
    """torchvision's anchors, with the rates as strides: exact for images that no rate divides.

    Args:
        rates: of the maps.
        scale: side of the smallest anchor of a map, over its rate.
        octaves: sizes of each map, equally spaced up to the next map's.
        ratios: height over width.
    """

    def __init__(self, rates: Sequence[int], *, scale: float, octaves: int, ratios: Sequence[float]) -> None:
        sizes = tuple(tuple(int(scale * rate * 2 ** (n / octaves)) for n in range(octaves)) for rate in rates)
        super().__init__(sizes, (tuple(ratios),) * len(sizes))
        self.rates = tuple(rates)

    def of(self, size: tuple[int, int], device: torch.device) -> list[Tensor]:
        """(H·W·A, 4) boxes of each map of an image of (H, W) pixels."""
        with torch.inference_mode(False):  # they are kept, and training may need them
            self.set_cell_anchors(torch.float32, device)
        grids = [list(map_size(size, rate)) for rate in self.rates]
        found: list[Tensor] = self.grid_anchors(grids, [[rate, rate] for rate in self.rates])
        return found

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The same for each image of a list, all maps in one; torchvision's modules ask in this way."""
        device = feature_maps[0].device
        return [torch.cat(self.of(size, device)) for size in image_list.image_sizes]


def places_of(spec: GridSpec, rates: Sequence[int]) -> list[int]:
    """Tokens of the map of each rate, for images of the spec's size."""
    sizes = [map_size(spec.image_size, rate) for rate in rates]
    return [height * width for height, width in sizes]


def cost_of(head: nn.Module, work: Iterable[Work]) -> EdgeCost:
    """What a head costs for one image: its parameters, and the convolutions and linear layers of its work.

    Args:
        head: with all its parameters.
        work: each part with the number of places at which its weights are applied.
    """
    params = sum(weight.numel() for weight in head.parameters())
    macs, moved = 0, 0
    for part, places in work:
        for module in part.modules():
            if isinstance(module, MULTIPLYING):
                macs += module.weight.numel() * places
                moved += (module.weight.shape[0] + module.weight.shape[1]) * places
    return EdgeCost(params, macs, 0, FLOAT_BYTES * (params + moved), 0)
