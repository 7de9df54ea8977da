"""`train.weights` of a recipe: where pretrained weights come from, and a line on what was loaded.

told = load_pretrained(net, "timm:pvt_v2_b2")        # or a file, a bundle, a run
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import safetensors.torch
import timm
import torch
from torch import nn

from routespace.errors import BundleError, RoutespaceError, SpecError
from routespace.logs import quieted
from routespace.nn.checkpoints import state_dict_of
from routespace.nn.heads.base import listed
from routespace.nn.pretrained import load_network_weights, load_timm_weights
from routespace.nn.task_net import TaskNet
from routespace.nn.weights import load_net
from routespace.train.given_weights import WEIGHTS_HINT, weights_place
from routespace.train.recipe.parts import TIMM

OUTPUT = "outputs.r"  # begins the names of the norms on the maps that a network gives


def load_pretrained(net: TaskNet, source: str) -> str:
    """Fill a new network with pretrained weights, in place.

    Args:
        net: the network; see `load_timm_weights` for which of its edges take what.
        source: `timm:NAME`, a file of a state dict or checkpoint, or the folder of a run or bundle.

    Returns:
        One line: what was loaded, and what has weights of its own still.

    Raises:
        SpecError: no such file, folder or network of timm.
        BundleError: the weights cannot be fetched or read, or do not fit the grid.
    """
    place = None if source.startswith(TIMM) else weights_place(Path(source).expanduser())
    try:
        if place is not None:
            given = load_net(place, families=[net.spec.family])
            kept, weights = load_network_weights(net, given), given.state_dict()
        else:
            found: nn.Module | Mapping[str, Any] = (
                timm_network(source) if source.startswith(TIMM) else _read(Path(source).expanduser())
            )
            weights = state_dict_of(found)
            kept = load_timm_weights(net, found)
    except RoutespaceError as error:
        raise type(error)(f"train.weights: {source}: {str(error).removeprefix('weights: ')}") from error
    millions = sum(tensor.numel() for tensor in weights.values() if tensor.is_floating_point()) / 1e6
    rates = [int(name.removeprefix(OUTPUT)) for name in kept if name.startswith(OUTPUT)]
    words = {"outputs": f"outputs (rate{'s' if rates[1:] else ''} {listed(rates)})"} if rates else {}
    if net.spec.num_classes:
        words["head"] = f"head ({net.spec.num_classes} classes)"
    new = dict.fromkeys(name.partition(".")[0] for name in kept)
    told = [words.get(part, part) for part in new]
    return f"weights: {source}, {millions:.3g} M parameters" + (f"; new: {', '.join(told)}" if told else "")


def timm_network(source: str) -> nn.Module:
    """timm's pretrained network of `timm:NAME`.

    Raises:
        SpecError: timm has no such network, or no weights of it.
        BundleError: they cannot be fetched.
    """
    name = source.removeprefix(TIMM)
    if not timm.is_model(name):
        raise SpecError("timm knows no network of that name; see timm.list_models(pretrained=True)")
    if not timm.list_pretrained(name.partition(".")[0] + "*"):
        raise SpecError("timm has no weights of it; see timm.list_models(pretrained=True)")
    try:
        with quieted("huggingface_hub.utils._http"):  # it tells each attempt; where all fail, the error does
            return timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever the hub's client raises without a network, of a tag that is not there, …
        reason = shorten((str(error).strip() or type(error).__name__).splitlines()[0], 160, placeholder=" …")
        raise BundleError(
            f"cannot be fetched ({reason}); try again with a network, or give a file of the weights"
        ) from error


def _read(path: Path) -> Mapping[str, Any]:
    """A state dict, or a checkpoint around one."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of torch's and pickle's many; `weights_only` runs no code of the file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(
            f"cannot be read ({reason:.120}); give a .safetensors file, or a .pth file of tensors alone"
        ) from error
    if not isinstance(found, Mapping):
        raise BundleError(f"holds a {type(found).__name__}, no state dict; {WEIGHTS_HINT}")
    return found
