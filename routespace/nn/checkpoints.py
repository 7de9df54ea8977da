"""Weights as others hand them out: a module, its state dict, or the checkpoint of a training around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from routespace.errors import SpecError
from routespace.nn.families.base import StateDict
from routespace.nn.module import unwrap

# Where training scripts keep a network's state dict, the averaged one first, as timm prefers it.
LEVELS = ("state_dict_ema", "model_ema", "state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and DDP; of torch.compile
SHOWN_KEYS = 3


def state_dict_of(weights: nn.Module | Mapping[str, Any]) -> StateDict:
    """The tensors of a network by their plain names.

    Args:
        weights: a module, wrapped or not; a state dict; or a checkpoint that holds either under one of LEVELS.
            What is no tensor in it (an epoch, an optimizer) is left out.

    Raises:
        SpecError: it is neither a module nor a mapping.
    """
    found = _opened(weights)
    if isinstance(found, nn.Module):
        found = found.state_dict()
    if not isinstance(found, Mapping):
        raise SpecError(
            f"weights: a {type(found).__name__} was given; give a module or its state dict, for example "
            f"torch.load(file, weights_only=True)"
        )
    return {_plain(str(key)): tensor for key, tensor in found.items() if isinstance(tensor, Tensor)}


def module_of(weights: nn.Module | Mapping[str, Any]) -> nn.Module | None:
    """The module that `state_dict_of` takes its tensors from; None where a state dict was given."""
    found = _opened(weights)
    return found if isinstance(found, nn.Module) else None


def _opened(weights: Any) -> Any:
    """What lies at the bottom of a checkpoint, out of its wrappers."""
    found = weights
    while isinstance(found, Mapping):
        inner = [found[name] for name in LEVELS if isinstance(found.get(name), Mapping | nn.Module)]
        if not inner:
            break
        found = inner[0]
    return unwrap(found) if isinstance(found, nn.Module) else found


def _plain(key: str) -> str:
    """A key without the wrappers' prefixes, at any depth."""
    while key.startswith(PREFIXES):
        key = key.split(".", 1)[1]
    return key


def some_keys(state: Mapping[str, Tensor]) -> str:
    """Some keys of a state dict, for a message."""
    if not state:
        return "it holds no tensors"
    return f"keys: {', '.join(list(state)[:SHOWN_KEYS])}{', …' if len(state) > SHOWN_KEYS else ''}"


def adapted_input(weight: Tensor, channels: int) -> Tensor:
    """The kernel of a first convolution for images of another number of channels, by timm's rule.

    One channel gets the sum of the kernels. More of them repeat the kernels in turn, scaled so that an image whose
    channels are repeated in the same way gives the old result.

    Args:
        weight: (C, old channels, k, k).
        channels: new ones, at least 1.

    Returns:
        (C, channels, k, k).
    """
    old = weight.shape[1]
    if old == channels:
        return weight
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))  # half kernels add up in full precision
    if channels == 1:
        return wide.sum(1, keepdim=True).to(weight.dtype)
    repeated = wide.repeat(1, -(-channels // old), 1, 1)[:, :channels]
    return (repeated * (old / channels)).to(weight.dtype)
