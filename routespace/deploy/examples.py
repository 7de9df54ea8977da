"""Random images that fit a network, for comparing and counting.

Shape legend: B images · C channels · H, W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from routespace.nn.running import place_of
from routespace.nn.task_net import AnyNet

ImageSize = tuple[int, int] | int | None  # (H, W), one number for a square, or None for the spec's own


def image_shape(net: AnyNet, image_size: ImageSize = None) -> tuple[int, int, int]:
    """(C, H, W) of one image; raises SpecError for a size that the network cannot take."""
    spec = net.spec if image_size is None else net.spec.at(image_size)
    return spec.in_channels, *spec.image_size


def example_images(net: AnyNet, batch: int, image_size: ImageSize = None, *, seed: int = 0) -> Tensor:
    """(B, C, H, W) random images of the network's element type, on its device; the same for the same seed.

    Raises:
        SpecError: a size that the network cannot take.
    """
    shape = batch, *image_shape(net, image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), device="cpu").to(*place_of(net))
