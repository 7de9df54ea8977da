"""Measured usage: which share of each edge a network computes, over a pass of images.

Shape legend: B images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from routespace.errors import DataError
from routespace.grid.usage import EdgeUsage
from routespace.nn.module import unwrap
from routespace.nn.route_net import RouteNet
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import AnyNet, TaskNet

Batch = Tensor | Sequence[Tensor]  # images, or images first: (images, labels)


class UsageMeter:
    """Sums the shares of each batch, weighted by its images.

        meter = UsageMeter()
        for images in batches:
            meter.update(net(images).routes, len(images))
        usage = meter.usage()

    An edge that is absent from a batch's routes computed everything in it.
    """

    def __init__(self) -> None:
        self.images = 0
        self._sums: dict[str, Tensor] = {}
        self._seen: dict[str, int] = {}

    @torch.no_grad()
    def update(self, routes: Routes, images: int) -> None:
        """Add the decisions of a batch of `images` images, which may be none."""
        if not images:
            return
        self.images += images
        for name, route in routes.items():
            shares = torch.stack([torch.as_tensor(s, device=route.kept.device) for s in route.usage()])
            added = shares.double() * images
            self._sums[name] = self._sums[name] + added if name in self._sums else added
            self._seen[name] = self._seen.get(name, 0) + images

    def gathered(self) -> UsageMeter:
        """The sums of all processes of a distributed run; itself where there is one process."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self
        mine = self.images, {name: sums.cpu() for name, sums in self._sums.items()}, self._seen
        parts: list[tuple[int, dict[str, Tensor], dict[str, int]]] = [mine] * dist.get_world_size()
        dist.all_gather_object(parts, mine)
        total = UsageMeter()
        for images, sums, seen in parts:
            total.images += images
            for name in sums:
                total._sums[name] = total._sums.get(name, torch.zeros(3, dtype=torch.float64)) + sums[name]
                total._seen[name] = total._seen.get(name, 0) + seen[name]
        return total

    def usage(self) -> dict[str, EdgeUsage]:
        """Edge name → average shares as floats, for edges that did not compute everything; empty of no images."""
        found = {}
        for name, sums in self._sums.items():
            rest = self.images - self._seen[name]  # images of batches in which the edge was not listed
            tokens, images, asked = ((sums + rest) / self.images).clamp(0, 1).tolist()
            found[name] = EdgeUsage(tokens, images, asked)
        return found


def measure_usage(net: AnyNet, batches: Iterable[Batch]) -> dict[str, EdgeUsage]:
    """Run a network on images and average what its edges computed.

    Decisions are the ones of inference: evaluation mode, hard, EMA gate weights. Each image counts the same,
    also those of a smaller last batch. The network is left in the mode in which it came.

    Args:
        net: the network, or a wrapper of one such as torch.compile's; images are moved to its device.
        batches: images (B, C, H, W), alone or first of a tuple.

    Returns:
        Edge name → shares, as floats, for each transformer and patch_embed edge that did not simply compute
        everything.

    Raises:
        DataError: there is no batch.
        SpecError: the module is neither a TaskNet nor a RouteNet.
    """
    net = unwrap(net, wanted=(TaskNet, RouteNet))
    meter, device, training, seen = UsageMeter(), next(net.parameters()).device, net.training, 0
    net.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                images = batch if isinstance(batch, Tensor) else batch[0]
                meter.update(net(images.to(device)).routes, images.shape[0])
                seen += images.shape[0]
    finally:
        net.train(training)
    if not seen:
        raise DataError("batches: no images to measure usage on; give at least one batch")
    return meter.usage()
