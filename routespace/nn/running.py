"""Running a network from outside: on which device, on images of which type, in which mode, for how long.

    device = pick_device("auto")
    with evaluating(net):
        net(as_input(net, images))
    seconds = now(device)

Shape legend: B images · C channels · H, W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from routespace.checked import device_word
from routespace.errors import SpecError

Module = TypeVar("Module", bound=nn.Module)


def pick_device(name: str | torch.device) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:1` names; `auto` is a GPU where there is one.

    Raises:
        SpecError: another word, or a GPU that is not there.
    """
    name, there = str(name), torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind, number = device_word(name)
    if kind == "auto":
        return torch.device("cuda" if there else "cpu")
    if kind == "cuda" and number >= there:
        found = "no GPU that torch can use" if not there else f"GPUs cuda:0 to cuda:{there - 1}"
        raise SpecError(f"device: {name!r:.40} is not there; this machine has {found}; give auto or cpu")
    return torch.device(name)


def place_of(net: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and element type of a network's first layer: what its images must have."""
    weight = next(net.parameters())
    return weight.device, weight.dtype


def as_input(net: nn.Module, images: Tensor) -> Tensor:
    """(B, C, H, W) images on a network's device, in its element type; raises SpecError for what is no tensor."""
    if not isinstance(images, Tensor):
        raise SpecError(f"images: a {type(images).__name__} was given; give a tensor (B, C, H, W)")
    device, dtype = place_of(net)
    return images.to(device, dtype, non_blocking=True)


@contextmanager
def placed(net: Module, device: str | torch.device | None) -> Iterator[Module]:
    """A network on a device; afterwards, on errors too, it is where it was. None leaves it where it is.

    Raises:
        SpecError: no such device; see `pick_device`.
    """
    home = place_of(net)[0]
    there = home if device is None else pick_device(device)
    try:
        yield net.to(there)
    finally:
        net.to(home)


def evaluating(net: Module) -> AbstractContextManager[Module]:
    """A module in evaluation mode; afterwards, on errors too, each of its modules is in the mode it was in."""
    return in_mode(net, training=False)


@contextmanager
def in_mode(net: Module, *, training: bool) -> Iterator[Module]:
    """A module in training or evaluation mode; afterwards each of its modules is in the mode it was in."""
    modes = [(module, module.training) for module in net.modules()]
    net.train(training)
    try:
        yield net
    finally:
        for module, before in modes:
            module.training = before


def now(device: torch.device) -> float:
    """Seconds, when everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
