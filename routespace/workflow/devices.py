"""Where a network runs: the device that a word names."""

from __future__ import annotations

import torch

from routespace.errors import SpecError

WORDS = "auto, cpu, cuda or a numbered one such as cuda:1"


def pick_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:1` names; `auto` is a GPU where there is one.

    Raises:
        SpecError: another word, or a GPU that is not there.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if there else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()) or (kind == "cpu" and number):
        raise SpecError(f"device: {name!r:.40} is not allowed; give {WORDS}")
    if kind == "cuda" and int(number or 0) >= there:
        found = "no GPU that torch can use" if not there else f"GPUs cuda:0 to cuda:{there - 1}"
        raise SpecError(f"device: {name!r:.40} is not there; this machine has {found}; give auto or cpu")
    return torch.device(name)
