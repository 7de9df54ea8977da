"""Measured usage: which share of each edge a network computes, over a pass of images.

Shape legend: B images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from routespace.checked import checked
from routespace.errors import DataError
from routespace.grid.usage import ALL_USED, EdgeUsage, SizedUsage
from routespace.nn.module import unwrap
from routespace.nn.route_net import RouteNet
from routespace.nn.routing.routes import Routes
from routespace.nn.running import as_input, evaluating, placed
from routespace.nn.task_net import AnyNet, TaskNet

UsageBatch = Tensor | Sequence[Tensor]  # images, or images first: (images, labels)


Size = tuple[int, int]
SAME_SIZE: Size = (1, 1)  # of batches whose size was not told
WHOLLY = torch.tensor(ALL_USED, dtype=torch.float64)  # of an edge that computed everything


@dataclass
class _Sums:
    """Of the batches of one image size.

    Attributes:
        images: how many.
        shares: edge name → (4,) float64 sums of the shares of an EdgeUsage, each of an image.
        seen: edge name → images of the batches in which the edge was listed.
    """

    images: int = 0
    shares: dict[str, Tensor] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)

    def add(self, images: int, shares: Mapping[str, Tensor], seen: Mapping[str, int]) -> None:
        """Add other sums."""
        self.images += images
        for name, share in shares.items():
            self.shares[name] = self.shares[name] + share if name in self.shares else share
            self.seen[name] = self.seen.get(name, 0) + seen[name]

    def totals(self) -> dict[str, Tensor]:
        """Edge name → sums on the CPU, with the batches that did not list the edge: it computed everything."""
        if not self.shares:
            return {}
        rows = torch.stack(list(self.shares.values())).cpu()
        found = zip(self.shares, rows, strict=True)
        return {name: row + (self.images - self.seen[name]) * WHOLLY for name, row in found}


class UsageMeter:
    """Sums the shares of each batch, weighted by its images, and by their area where sizes differ.

        meter = UsageMeter()
        for images in batches:
            meter.update(net(images).routes, len(images))
        usage = meter.usage()

    An edge that is absent from a batch's routes computed everything in it.
    """

    def __init__(self) -> None:
        self._sizes: dict[Size, _Sums] = {}

    @property
    def images(self) -> int:
        """How many were added."""
        return sum(sums.images for sums in self._sizes.values())

    @torch.no_grad()
    def update(self, routes: Routes, images: int, *, size: Sequence[int] = SAME_SIZE) -> None:
        """Add the decisions of a batch.

        Args:
            routes: of the batch.
            images: how many it has; may be none.
            size: their height and width in pixels; may be left out where all batches have the same.
        """
        if not images:
            return
        shares = {}
        for name, route in routes.items():
            parts = torch.stack([torch.as_tensor(s, device=route.kept.device) for s in route.usage()])
            shares[name] = parts.double() * images
        height, width = size
        self._sizes.setdefault((height, width), _Sums()).add(images, shares, dict.fromkeys(shares, images))

    def gathered(self) -> UsageMeter:
        """The sums of all processes of a distributed run; itself where there is one process."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self
        mine = [
            (size, sums.images, {name: share.cpu() for name, share in sums.shares.items()}, sums.seen)
            for size, sums in self._sizes.items()
        ]
        parts = [mine] * dist.get_world_size()
        dist.all_gather_object(parts, mine)
        total = UsageMeter()
        for part in parts:
            for size, images, shares, seen in part:
                total._sizes.setdefault(size, _Sums()).add(images, shares, seen)
        return total

    def usage(self) -> dict[str, EdgeUsage]:
        """Edge name → average shares as floats, for edges that did not compute everything; empty of no images.

        Tokens and gate decisions are shares of all there were: larger images count for more.
        """
        totals = {size: sums.totals() for size, sums in self._sizes.items()}
        first = math.prod(next(iter(totals), (1, 1)))
        areas = {size: math.prod(size) / first for size in totals}  # 1 where there is one size
        whole = sum(areas[size] * sums.images for size, sums in self._sizes.items())
        found = {}
        for name in dict.fromkeys(name for rows in totals.values() for name in rows):
            by_area = by_image = torch.zeros_like(WHOLLY)
            for size, rows in totals.items():
                row = rows[name] if name in rows else self._sizes[size].images * WHOLLY
                by_area, by_image = by_area + areas[size] * row, by_image + row
            tokens, _, asked, skipped = (by_area / whole).clamp(0, 1).tolist()
            found[name] = EdgeUsage(tokens, (by_image[1] / self.images).clamp(0, 1).item(), asked, skipped)
        return found

    def by_size(self, own: Size) -> tuple[SizedUsage, ...]:
        """What the images of each size used; `own` (H, W) is the grid's, as is a size that was not told."""
        found = []
        for size, sums in self._sizes.items():
            alone = UsageMeter()
            alone._sizes[size] = sums
            found.append(SizedUsage(sums.images, alone.usage(), None if size in (SAME_SIZE, own) else size))
        return tuple(found)


@checked
def measure_usage(
    net: AnyNet, batches: Iterable[UsageBatch], *, device: str | torch.device | None = None
) -> dict[str, EdgeUsage]:
    """Run a network on images and average what its edges computed.

    Decisions are the ones of inference: evaluation mode, hard, EMA gate weights. Each image counts the same,
    also those of a smaller last batch. The network is left in the mode in which it came.

    Args:
        net: the network, or a wrapper of one such as torch.compile's; images are moved to its device and type.
        batches: images (B, C, H, W), alone or first of a tuple.
        device: where to run; None where the network is.

    Returns:
        Edge name → shares, as floats, for each transformer and patch_embed edge that did not simply compute
        everything.

    Raises:
        DataError: there is no batch.
        SpecError: the module is neither a TaskNet nor a RouteNet, or no such device.
    """
    net = unwrap(net, wanted=(TaskNet, RouteNet))
    with placed(net, device), evaluating(net), net.deciding_as(held=None), torch.inference_mode():
        meter = metered(net, batches)
    if not meter.images:
        raise DataError("batches: no images to measure usage on; give at least one batch")
    return meter.usage()


def metered(
    net: AnyNet, batches: Iterable[UsageBatch], watch: Callable[[Routes], None] | None = None
) -> UsageMeter:
    """What a network as it is, in its mode and on its device, computes of images; `watch` sees each batch's."""
    meter = UsageMeter()
    for batch in batches:
        images = batch if isinstance(batch, Tensor) else batch[0]
        routes = net(as_input(net, images)).routes
        meter.update(routes, images.shape[0], size=images.shape[-2:])
        if watch is not None and len(images):
            watch(routes)
    return meter
