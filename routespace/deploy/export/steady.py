"""Images for comparing a gated network with its file, on which none of its decisions hangs on rounding.

A file rounds otherwise than the network. Where a gate's margin lies on its threshold, or two tokens that are
ranked are alike, the two may decide otherwise, and both are right. So images are looked for whose decisions stay
the same when their pixels move a little. Large maps decide about so many tokens that there may be none; then what
moving the pixels changes is what a file may differ by, too.

Shape legend: B images · C channels · H, W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from routespace.deploy.examples import example_images
from routespace.deploy.tolerance import difference
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import TaskNet

MOVED = 1e-5  # standard deviation of what is added to pixels of standard deviation 1: some hundred roundings
DRAWS = 2
TRIES = 8
NEXT_SEED = 101  # far from the seeds of other batches


class Steady(NamedTuple):
    """Images to compare on.

    Attributes:
        images: (B, C, H, W).
        slack: what the head's outputs may differ by where no images were found whose decisions are sure; else 0.
    """

    images: Tensor
    slack: float


@torch.no_grad()
def steady_images(net: TaskNet, batch: int, size: tuple[int, int], *, seed: int) -> Steady:
    """Random images on which a network in evaluation mode decides the same however they are rounded.

    Args:
        net: a static network, on which any images are steady, or a gated one.
        batch: number of images.
        size: their height and width in pixels.
        seed: of the first images that are tried.

    Raises:
        SpecError: a size that the network cannot take.
    """
    first = example_images(net, batch, size, seed=seed)
    if net.architecture.is_static:
        return Steady(first, 0.0)
    for attempt in range(TRIES):
        images = example_images(net, batch, size, seed=seed + attempt * NEXT_SEED)
        routes = net(images).routes
        if all(_same(routes, net(moved).routes) for moved in _moved(images)):
            return Steady(images, 0.0)
    expected = _given(net, first)
    return Steady(first, 2 * max(difference(expected, _given(net, moved)) for moved in _moved(first)))


def _moved(images: Tensor) -> list[Tensor]:
    """The images with noise added, and with it taken away, so that a margin moves to either side."""
    drawn = torch.Generator().manual_seed(0)
    found = []
    for _ in range(DRAWS):
        noise = (MOVED * torch.randn(images.shape, generator=drawn, device="cpu")).to(images)
        found += [images + noise, images - noise]
    return found


def _given(net: TaskNet, images: Tensor) -> dict[str, Tensor]:
    """What a file gives, by name: the maps below the head are no part of it."""
    return dict(zip(net.head.names, net.head.tensors(net(images).outputs), strict=True))


def _same(routes: Routes, others: Routes) -> bool:
    return all(torch.equal(route.kept, others[name].kept) for name, route in routes.items())
