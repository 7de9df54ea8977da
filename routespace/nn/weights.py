"""A network as a folder: `model.safetensors` and `network.json` (architecture and gates). No pickles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from routespace.errors import BundleError, RoutespaceError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.nn.route_net import RouteNet

FORMAT = "routespace.network/1"
WEIGHTS_FILE = "model.safetensors"
NETWORK_FILE = "network.json"


def save_net(net: RouteNet, folder: Path) -> None:
    """Write a network into an existing folder."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": FORMAT, "architecture": net.architecture.hash})
    data = {
        "format": FORMAT,
        "architecture": net.architecture.to_json(),
        "gates": net.gate_spec.model_dump(mode="json"),
    }
    (folder / NETWORK_FILE).write_text(json.dumps(data, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in a file; raises BundleError when it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: cannot be read ({error.__class__.__name__}); give a run or bundle") from error
    except json.JSONDecodeError as error:
        raise BundleError(f"{path}: is not JSON ({error}); the file is damaged") from error


def load_net(folder: Path) -> RouteNet:
    """The network that `save_net` wrote.

    Raises:
        BundleError: a file is missing, truncated, or weights and architecture do not belong together.
    """
    data = read_json(folder / NETWORK_FILE)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BundleError(f"{folder / NETWORK_FILE}: not a {FORMAT} file")
    try:
        architecture = Architecture.from_json(data.get("architecture"))
        gates = GateSpec.model_validate(data.get("gates"))
    except (RoutespaceError, ValidationError) as error:
        raise BundleError(f"{folder / NETWORK_FILE}: {str(error).splitlines()[0]}") from error
    net = RouteNet(architecture, gates)
    load_weights(net, folder / WEIGHTS_FILE)
    return net


def load_weights(net: nn.Module, path: Path) -> None:
    """Fill a module strictly from a safetensors file; raises BundleError when it does not fit."""
    try:
        net.load_state_dict(load_file(path))
    except (OSError, safetensors.SafetensorError) as error:
        raise BundleError(f"{path}: missing or truncated ({error})") from error
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise BundleError(f"{path}: weights are of another architecture ({reason})") from error
