"""A network as a folder: `model.safetensors` and `network.json` (architecture, gates, head). No pickles.

Each file is written next to its place and moved there when it is whole, and the weights name the architecture
that they belong to: a crash or a full disk leaves the old network or an error, never a mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from routespace import file_names
from routespace.errors import BundleError, RoutespaceError
from routespace.files import read_json, write_bytes, write_json
from routespace.grid.architecture import Architecture
from routespace.grid.families.base import Family
from routespace.grid.gate_spec import GateSpec
from routespace.nn.drawing import undrawn
from routespace.nn.heads.kinds import head_data, make_head
from routespace.nn.module import unwrap
from routespace.nn.route_net import RouteNet
from routespace.nn.routing.deciding import Execution
from routespace.nn.task_net import AnyNet, TaskNet, as_task_net, present_keys

FORMAT = "routespace.network/2"
FORMAT_1 = "routespace.network/1"  # flat keys, and always the classifier of the grid's `num_classes`

Net = TypeVar("Net", RouteNet, TaskNet)


def save_net(net: AnyNet, folder: Path) -> None:
    """Write a network into an existing folder; a bare backbone as a network whose outputs are its maps.

    Raises:
        BundleError: the folder is missing or read-only, the disk is full, or the network was changed in a way
            that its architecture does not tell (another head, for example), so that it could not be loaded.
        SpecError: the module is neither a TaskNet nor a RouteNet, nor one in a wrapper such as torch.compile's.
    """
    net = as_task_net(unwrap(net, wanted=(TaskNet, RouteNet)))
    check_loads(net)
    if not folder.is_dir():
        raise BundleError(f"{folder}: cannot be written (no such folder); make it first")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    metadata = {"format": FORMAT, "architecture": net.architecture.hash}
    data = {
        "format": FORMAT,
        "architecture": net.architecture.to_json(),
        "gates": net.gate_spec.model_dump(mode="json"),
        "head": head_data(net.head),
    }
    write_bytes(folder / file_names.WEIGHTS, safetensors.torch.save(state, metadata=metadata))
    write_json(folder / file_names.NETWORK, data)


def check_loads(net: TaskNet) -> None:
    """Raise BundleError, in one line, for a network that could not be made again from its architecture."""
    empty = next((name for name, tensor in net.state_dict().items() if tensor.is_meta), None)
    if empty is not None:
        raise BundleError(f"net: its {empty} is on the meta device, which holds no numbers; load weights first")
    with torch.inference_mode(False), torch.device("meta"), undrawn():  # shapes alone, nothing is computed
        head = make_head(net.spec, head_data(net.head))
        made = TaskNet(RouteNet(net.architecture, net.gate_spec), head).state_dict()
    state = net.state_dict()
    for name in {**state, **made}:
        given, wanted = (None if name not in one else tuple(one[name].shape) for one in (state, made))
        if given == wanted:
            continue
        found = "is missing" if given is None else f"has shape {given}"
        rule = "knows no such weight" if wanted is None else f"gives it {wanted}"
        raise BundleError(
            f"net: {name} {found}, but its architecture {rule}, so the network could not be loaded again; "
            f"undo the change, or make the network of a spec that has it (num_classes for a head)"
        )


def load_net(folder: Path, *, families: Iterable[Family] = ()) -> TaskNet:
    """The network that `save_net` wrote, with its weights in the types that were saved.

    A network with gates computes by `auto`, so that what its gates skip is not computed.

    Args:
        folder: where it lies.
        families: block families of your own that it may be made of; a file alone imports none.

    Raises:
        BundleError: a file is missing, truncated, or weights and architecture do not belong together.
    """
    data = read_json(folder / file_names.NETWORK, wanted="the folder of a run or bundle")
    if not isinstance(data, dict) or data.get("format") not in (FORMAT, FORMAT_1):
        raise BundleError(
            f"{folder / file_names.NETWORK}: not a {FORMAT} file; give a folder that routespace wrote"
        )
    try:
        architecture = Architecture.from_json(data.get("architecture"), families=families)
        gates = GateSpec.parse(data.get("gates"), name="gates")
        flat = data["format"] == FORMAT_1
        head = {"kind": "classify" if architecture.spec.num_classes else "maps"} if flat else data.get("head")
    except RoutespaceError as error:
        raise BundleError(f"{folder / file_names.NETWORK}: {str(error).splitlines()[0]}") from error
    state = _read(folder / file_names.WEIGHTS, owner=architecture.hash)
    try:
        return filled(lambda: _make_net(architecture, gates, head), present_keys(state) if flat else state)
    except RoutespaceError as error:
        raise BundleError(f"{folder / file_names.NETWORK}: {error}") from error
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise BundleError(
            f"{folder / file_names.WEIGHTS}: weights are of another architecture ({reason:.200})"
        ) from error


def _make_net(architecture: Architecture, gates: GateSpec, head: Any) -> TaskNet:
    execution: Execution = "dense" if architecture.is_static else "auto"
    return TaskNet(RouteNet(architecture, gates, execution=execution), make_head(architecture.spec, head))


def filled(make: Callable[[], Net], state: Mapping[str, Tensor]) -> Net:
    """A new network with the given weights copied into it: their types and device, but its own memory formats.

    Adopting the tensors themselves would be quicker, but they lie as a file or another network has them, and
    convolutions of token maps are fast only on kernels that are channels-last. Parameters are ordinary ones
    under `torch.inference_mode` too, so that the network can be trained on. The random state is untouched.

    Args:
        make: gives the network; its weights are not drawn.
        state: its whole state dict.

    Raises:
        RuntimeError: keys or shapes differ, in torch's words.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        with _on_the_cpu(), undrawn():
            net = make()
        _adapt(net, state)
        net.load_state_dict(state, strict=True)
    return net


def _on_the_cpu() -> AbstractContextManager[object]:
    """Where modules are made on the CPU, whatever the default device; a context that changes none is dear."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def _adapt(net: AnyNet, state: Mapping[str, Tensor]) -> None:
    """Give a network's tensors the types and devices of those that are to be copied into them."""
    types = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    devices = {tensor.device for tensor in state.values()}
    own = [*net.parameters(), *net.buffers()]
    if len(devices) == 1 and {tensor.device for tensor in own} != devices:
        net.to(devices.pop())
    if len(types) == 1 and {tensor.dtype for tensor in own if tensor.is_floating_point()} != types:
        net.to(types.pop())  # buffers that are not saved follow
    for name, tensor in net.state_dict(keep_vars=True).items():
        given = state.get(name, tensor)
        if (tensor.device, tensor.dtype) != (given.device, given.dtype):
            tensor.data = tensor.data.to(given.device, given.dtype)


def _read(path: Path, *, owner: str) -> dict[str, Tensor]:
    """The tensors of a file, which must be of the architecture `owner`."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("architecture")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, safetensors.SafetensorError) as error:
        raise BundleError(f"{path}: missing or truncated ({str(error).splitlines()[0]}); copy it again") from error
    if found != owner:
        raise BundleError(
            f"{path}: its weights are of architecture {found or 'unknown'}, {file_names.NETWORK} is of {owner}; "
            f"the two files come from different networks"
        )
    return state
