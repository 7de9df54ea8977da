"""Measured usage of a network: which share of each edge it computes, over a pass of images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from routespace.errors import DataError
from routespace.grid.usage import EdgeUsage
from routespace.nn.route_net import RouteNet
from routespace.nn.usage_meter import UsageMeter

Batch = Tensor | Sequence[Tensor]  # images, or images first: (images, labels)


def measure_usage(net: RouteNet, batches: Iterable[Batch]) -> dict[str, EdgeUsage]:
    """Run a network on images and average what its edges computed.

    Decisions are the ones of inference: evaluation mode, hard, EMA gate weights. Each image counts the same,
    also those of a smaller last batch. The network is left in the mode in which it came.

    Args:
        net: the network; images are moved to its device.
        batches: images (B, C, H, W), alone or first of a tuple.

    Returns:
        Edge name → shares, as floats, for each transformer and patch_embed edge that did not simply compute
        everything.

    Raises:
        DataError: there is no batch.
    """
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
