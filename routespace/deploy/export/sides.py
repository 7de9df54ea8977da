"""Sizes of the images that an exported network takes: any that it is fed itself, in steps of the coarsest rate.

Shape legend: H, W pixels.
"""

from __future__ import annotations

from routespace.deploy.examples import image_shape
from routespace.nn.task_net import TaskNet


def side_step(net: TaskNet) -> int | None:
    """Pixels of which the images' sides may be any multiple; None where they are fixed."""
    return net.spec.max_down if net.head.free_size and net.spec.family.free_size else None


def least_steps(net: TaskNet) -> int:
    """Steps of a free side, at least: what the network itself takes."""
    return -(-net.spec.least_image_px // net.spec.max_down)


def least_side(net: TaskNet) -> int | None:
    """Pixels that a side of an exported network's images has at least; None where files take one size."""
    step = side_step(net)
    return None if step is None else least_steps(net) * step


def checked_sizes(net: TaskNet, image_size: tuple[int, int] | int | None) -> list[tuple[int, int]]:
    """Of the checked batches. The second is also traced.

    Where sizes are free they are the one that is asked for, as whole steps; a larger one, of two tokens of every
    map and more, as one would be taken for a constant; and one of the least side.
    """
    _, *asked = image_shape(net, image_size)
    step, least = side_step(net), least_side(net)
    if step is None or least is None:
        return [(asked[0], asked[1])] * 2
    height, width = (max(least, -(-side // step) * step) for side in asked)
    several = (net.head.coarsest(net.spec) // step + 1) * step
    return [(height, width), (max(height, several) + step, max(width, several) + 2 * step), (least, 2 * least)]
