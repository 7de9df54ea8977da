"""A network as a folder: `model.safetensors` and `network.json` (architecture and gates). No pickles.

Each file is written next to its place and moved there when it is whole, and the weights name the architecture
that they belong to: a crash or a full disk leaves the old network or an error, never a mixture.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from pydantic import ValidationError
from torch import Tensor, nn

from routespace.errors import BundleError, RoutespaceError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.spec import explain
from routespace.nn.module import unwrap
from routespace.nn.route_net import RouteNet

FORMAT = "routespace.network/1"
WEIGHTS_FILE = "model.safetensors"
NETWORK_FILE = "network.json"
FILE_MODE = 0o644  # temporary files are made for their owner only


def save_net(net: RouteNet, folder: Path) -> None:
    """Write a network into an existing folder.

    Raises:
        BundleError: the folder is missing or read-only, or the disk is full.
        SpecError: the module is no RouteNet, nor one in a wrapper such as torch.compile's.
    """
    net = unwrap(net, wanted=RouteNet)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    metadata = {"format": FORMAT, "architecture": net.architecture.hash}
    data = {
        "format": FORMAT,
        "architecture": net.architecture.to_json(),
        "gates": net.gate_spec.model_dump(mode="json"),
    }
    write_file(folder / WEIGHTS_FILE, safetensors.torch.save(state, metadata=metadata))
    write_file(folder / NETWORK_FILE, (json.dumps(data, indent=1) + "\n").encode())


def write_file(path: Path, content: bytes) -> None:
    """Write a file completely or not at all; raises BundleError when its folder or disk does not allow it."""
    partial: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        partial = Path(name)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.chmod(FILE_MODE)
        partial.replace(path)
    except OSError as error:
        if partial is not None:
            partial.unlink(missing_ok=True)
        raise BundleError(
            f"{path}: cannot be written ({error.strerror or error}); nothing was left behind, choose a folder "
            f"that is writable and has {len(content) / 1e6:.1f} MB free"
        ) from error


def read_json(path: Path) -> Any:
    """The JSON in a file; raises BundleError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error}); give a run or bundle") from error
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        reason = str(error).splitlines()[0]
        raise BundleError(f"{path}: is not JSON ({reason}); the file is damaged, save it again") from error


def load_net(folder: Path) -> RouteNet:
    """The network that `save_net` wrote, with its weights in the types that were saved.

    Raises:
        BundleError: a file is missing, truncated, or weights and architecture do not belong together.
    """
    data = read_json(folder / NETWORK_FILE)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BundleError(f"{folder / NETWORK_FILE}: not a {FORMAT} file; give a folder that routespace wrote")
    try:
        architecture = Architecture.from_json(data.get("architecture"))
        gates = GateSpec.model_validate(data.get("gates"))
    except ValidationError as error:
        reason = explain(error, known=GateSpec.model_fields)
        raise BundleError(f"{folder / NETWORK_FILE}: gates.{reason}") from error
    except RoutespaceError as error:
        raise BundleError(f"{folder / NETWORK_FILE}: {str(error).splitlines()[0]}") from error
    net = RouteNet(architecture, gates)
    _load(net, folder / WEIGHTS_FILE, owner=architecture.hash, assign=True)
    return net


def load_weights(net: nn.Module, path: Path) -> None:
    """Fill a module strictly from a safetensors file; raises BundleError when it does not fit."""
    _load(net, path, owner=None, assign=False)


def _load(net: nn.Module, path: Path, *, owner: str | None, assign: bool) -> None:
    """Load strictly; `owner` is the architecture that the file must be of, `assign` keeps the saved types."""
    try:
        state, found = _read(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise BundleError(f"{path}: missing or truncated ({str(error).splitlines()[0]}); copy it again") from error
    if owner is not None and found != owner:
        raise BundleError(
            f"{path}: its weights are of architecture {found or 'unknown'}, {NETWORK_FILE} is of {owner}; "
            f"the two files come from different networks"
        )
    try:
        net.load_state_dict(state, assign=assign)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise BundleError(f"{path}: weights are of another architecture ({reason:.200})") from error


def _read(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a file and the architecture that they are of."""
    with safetensors.safe_open(path, framework="pt") as file:
        found = (file.metadata() or {}).get("architecture")
        return {key: file.get_tensor(key).clone() for key in file.keys()}, found  # noqa: SIM118 (no mapping)
