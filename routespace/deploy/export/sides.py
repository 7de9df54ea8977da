"""Sizes of the images that an exported network takes: free ones in steps of the coarsest rate, from a least on.

Shape legend: H, W pixels.
"""

from __future__ import annotations

from routespace.deploy.examples import image_shape
from routespace.nn.task_net import TaskNet


def side_step(net: TaskNet) -> int | None:
    """Pixels of which the images' sides may be any multiple; None where they are fixed."""
    return net.spec.max_down if net.head.free_size and net.spec.family.free_size else None


def least_steps(net: TaskNet) -> int:
    """Steps of a free side, at least: two tokens of the coarsest map, of which the second may be a part."""
    return net.head.coarsest(net.spec) // net.spec.max_down + 1


def least_side(net: TaskNet) -> int | None:
    """Pixels that a side of an exported network's images has at least; None where files take one size."""
    step = side_step(net)
    return None if step is None else least_steps(net) * step


def checked_sizes(net: TaskNet, image_size: tuple[int, int] | int | None) -> list[tuple[int, int]]:
    """Of both checked batches; where it is free, the size that is asked for as whole steps, and a larger one."""
    _, *asked = image_shape(net, image_size)
    step = side_step(net)
    if step is None:
        return [(asked[0], asked[1])] * 2
    height, width = (max(least_steps(net), -(-side // step)) * step for side in asked)
    return [(height, width), (height + step, width + 2 * step)]
