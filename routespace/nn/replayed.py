"""Inference on a GPU as CUDA graphs: one for each shape of images that comes again.

    fast = Replayed(net)
    logits = fast(images).logits        # as net(images).logits

Shape legend: B images · C channels · H, W pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from routespace.checked import checked
from routespace.nn.tape import SAME, CudaTape, Tape
from routespace.nn.task_net import TaskNet, TaskOutput

MOST_SHAPES = 8  # each graph keeps the memory of its maps


class _Recording(NamedTuple):
    """A recorded call: the images that it reads, what it gives, and what runs it."""

    images: Tensor
    output: TaskOutput
    replay: Callable[[], None]


class Replayed:
    """A network in evaluation mode on a GPU, called by graphs; elsewhere it is called as it is.

    Kernel by kernel a single image takes as long as Python takes to call them, 10 to 20 ms for PVTv2-b2; as a
    graph it takes about one. The first `SAME` calls of a shape run as ever, then it is recorded. That is done with
    static networks, those in `dense` execution, and those of which the host knows how many tokens they keep
    (`gates.capacity`), under heads that call the same kernels for all images; others run as ever.

    It is for one thread at a time. Weights may change in place. A network that is moved, cast, or made to decide
    otherwise needs another Replayed.

    Args:
        net: the network.
        tape: that records; None for CUDA graphs, on a GPU.

    Raises:
        SpecError: something else than a network.
    """

    @checked
    def __init__(self, net: TaskNet, *, tape: Tape | None = None) -> None:
        device = next(net.parameters()).device
        self.net = net
        self._tape = CudaTape(device) if tape is None and device.type == "cuda" else tape
        self._calls: OrderedDict[Hashable, int] = OrderedDict()
        self._recorded: OrderedDict[Hashable, _Recording] = OrderedDict()

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> TaskOutput:
        """(B, C, H, W) → the network's output; its tensors hold it until the next call of this shape.

        Raises:
            SpecError: images that do not fit.
        """
        output: TaskOutput
        tape = self._tape
        if tape is None or self.net.training or not self.net.head.recordable:
            output = self.net(images)
            return output
        kind = images.shape, images.dtype
        if kind in self._recorded:
            self._recorded.move_to_end(kind)
            return self._replay(self._recorded[kind], images)
        output = tape.live(lambda: self.net(images))
        self._calls[kind] = self._calls.pop(kind, 0) + 1
        if self._calls[kind] >= SAME and is_steady(self.net, output):
            own = images.clone()
            self._recorded[kind] = _Recording(own, *tape.record(lambda: self.net(own)))
        for kept in (self._calls, self._recorded):
            if len(kept) > MOST_SHAPES:
                kept.popitem(last=False)
        return output

    def _replay(self, recording: _Recording, images: Tensor) -> TaskOutput:
        recording.images.copy_(images)
        recording.replay()
        return recording.output


def is_steady(net: TaskNet, output: TaskOutput) -> bool:
    """Whether a network calls the same kernels for all images of a shape, by what it gave for some."""
    return net.execution == "dense" or all(route.per_image is not None for route in output.routes.values())
