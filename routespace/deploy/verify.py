"""Is the extracted network the supernet's part, and does it cost what was promised?

Two comparisons of outputs that do not share code: against `supernet.restrict(architecture)`, and against the
supernet itself with every gate's decision replaced by the architecture's choice. The second is only possible
where routing can express the architecture (see `static_routes`). Where gates are kept, both decide by the subnet's
threshold, which calibration may have moved, and what it decides is also computed packed.

Shape legend: B images · H, W image height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from routespace.checked import checked, require_seed
from routespace.deploy.counters import dense_usage, torch_macs
from routespace.deploy.examples import example_images, image_shape
from routespace.deploy.extract import resized
from routespace.deploy.tolerance import CONVERTED, VERIFIED, coarsest_type, difference, tolerance_for, type_name
from routespace.errors import GridError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import Node
from routespace.nn.cost import network_cost
from routespace.nn.module import unwrap
from routespace.nn.route_net import RouteNet
from routespace.nn.routing.routes import Routes
from routespace.nn.running import as_input, evaluating, place_of, placed
from routespace.nn.task_net import AnyNet, TaskNet, as_task_net, backbone_of

BATCH = 2


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        max_difference: greatest absolute difference of any output to the restricted supernet, relative to the
            greatest output where that is above 1.
        replay_difference: the same against the supernet under replayed decisions; None where not expressible.
        packed_difference: the same of the subnet, computed packed, to itself with everything computed and masked,
            under the same decisions; None where nothing is gated.
        thresholds: of the gates, of the subnet and of the supernet; None where nothing is gated.
        tolerance: the most allowed of the differences to the supernet.
        packed_tolerance: the most allowed of the packed one, whose kernels add up in another order.
        dtype: the coarser element type of the two networks.
        foreign_keys: keys of the subnet's state dict that the supernet lacks.
        shared_weights: keys whose memory the subnet shares with the supernet.
        keys: number of keys of the subnet and of the supernet.
        params: analytic, and of the subnet's module.
        macs: analytic, and of the subnet's module by torch's counter.
        unknown: operators that torch's counter has no formula for.
    """

    max_difference: float
    replay_difference: float | None
    packed_difference: float | None
    thresholds: tuple[float, float] | None
    tolerance: float
    packed_tolerance: float
    dtype: str
    foreign_keys: tuple[str, ...]
    shared_weights: tuple[str, ...]
    keys: tuple[int, int]
    params: tuple[int, int]
    macs: tuple[int, int]
    unknown: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Outputs agree."""
        same = max(self.max_difference, self.replay_difference or 0.0) <= self.tolerance
        return same and (self.packed_difference or 0.0) <= self.packed_tolerance

    @property
    def ok(self) -> bool:
        """Outputs agree, keys are a subset with memory of its own, params and MACs are as promised."""
        owned = not self.foreign_keys and not self.shared_weights
        exact = self.params[0] == self.params[1] and self.macs[0] == self.macs[1] and not self.unknown
        return self.equal and owned and exact

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The report as text, one finding a line."""
        allowed = f"(allowed {self.tolerance:.0e} in {self.dtype})"
        lines = [f"outputs      difference {self.max_difference:.2e} {allowed}"]
        if self.packed_difference is None:
            replay = "not expressible by routing"
            if self.replay_difference is not None:
                replay = f"difference {self.replay_difference:.2e} {allowed}"
            lines.append(f"replayed     {replay}")
        else:
            most = f"(allowed {self.packed_tolerance:.0e} in {self.dtype})"
            lines.append(f"packed       difference {self.packed_difference:.2e} {most} to masked")
        if self.thresholds is not None:
            own, other = self.thresholds
            moved = "" if own == other else f"; {other:.4g} in the network that it came from"
            lines.append(f"gates        threshold {own:.4g}{moved}")
        lines += [
            f"state dict   {self.keys[0]} keys of {self.keys[1]}",
            f"parameters   {self.params[1]:,d} (analytic {self.params[0]:,d})",
            f"MACs         {self.macs[1]:,d} (analytic {self.macs[0]:,d})",
        ]
        lines += [f"foreign key  {key}" for key in self.foreign_keys]
        lines += [f"shared       {key}" for key in self.shared_weights]
        lines += [f"not counted  {name}" for name in self.unknown]
        return lines


@checked
def verify(
    supernet: AnyNet,
    architecture: Architecture,
    subnet: AnyNet,
    *,
    image_size: tuple[int, int] | int | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> VerifyReport:
    """Compare an extracted network with the network it came from, on random images.

    Args:
        supernet: where the weights came from; for images of another size than the subnet's it is moved to that
            size first. Both networks are left as they came.
        architecture: the part that was taken, with or without gates.
        subnet: what `extract` made of it; its weights may be of another element type since.
        image_size: height and width in pixels, or one number; the spec's own by default.
        tolerance: greatest difference of outputs, in units of the greatest output when that is above 1; by default
            that of the coarser element type of the two, and more where they differ.
        seed: of the images.
        device: where to compare; None where both networks are.

    Raises:
        GridError: `architecture` is no part of the supernet's, `subnet` is of another architecture, or its head is
            another one, such as one of other classes.
        SpecError: a module is neither a TaskNet nor a RouteNet, nor one in a wrapper such as torch.compile's; or a
            tolerance that is no number of 0 or more, no such device, or two devices and none to compare on.
    """
    require_seed(seed)
    wanted = TaskNet, RouteNet
    supernet, subnet = unwrap(supernet, wanted=wanted), unwrap(subnet, wanted=wanted)
    if subnet.architecture != architecture:
        raise GridError(
            f"subnet: it is of architecture {subnet.architecture.hash}, not of {architecture.hash}; "
            f"verify the network that was extracted for it"
        )
    if type(subnet) is not type(supernet):
        kinds = type(subnet).__name__, type(supernet).__name__
        raise GridError(f"subnet: a {kinds[0]} is no part of a {kinds[1]}; give both with a head or none")
    _require_same_head(supernet, subnet)
    places = place_of(subnet)[0], place_of(supernet)[0]
    if device is None and places[0] != places[1]:
        raise SpecError(f"device: the networks are on {places[0]} and {places[1]}; say where to compare them")
    dtype = coarsest_type(supernet, subnet)
    same_type = place_of(supernet)[1] == place_of(subnet)[1]  # else the two round differently all the way
    allowed = tolerance_for(dtype, VERIFIED if same_type else CONVERTED, tolerance)
    whole, part = supernet.state_dict(), subnet.state_dict()
    supernet = _of_size(supernet, subnet)
    shared = tuple(key for key in part if key in whole and _same_memory(part[key], whole[key]))
    hw = image_shape(subnet, image_size)[1:]
    with placed(supernet, device), placed(subnet, device):
        images = example_images(supernet, BATCH, hw, seed=seed)
        same, replayed = _differences(supernet, subnet, images)
        packed = None if architecture.is_static else _packed_difference(subnet, images)
        # On a GPU layers may run as kernels that no counter knows; on the CPU counting what is run is quicker.
        counted = torch_macs(subnet, hw, meta=place_of(subnet)[0].type != "cpu")
    usage = dense_usage(subnet.architecture, subnet.gate_spec)
    cost = network_cost(subnet, usage=usage, image_size=hw)
    return VerifyReport(
        max_difference=same,
        replay_difference=replayed,
        packed_difference=packed,
        thresholds=None if packed is None else (subnet.gate_spec.open_above, supernet.gate_spec.open_above),
        tolerance=allowed,
        packed_tolerance=tolerance_for(dtype, CONVERTED, tolerance),
        dtype=type_name(dtype),
        foreign_keys=tuple(key for key in part if key not in whole),
        shared_weights=shared,
        keys=(len(part), len(whole)),
        params=(cost.params, sum(parameter.numel() for parameter in subnet.parameters())),
        macs=(int(cost.macs), counted.macs),
        unknown=tuple(sorted(counted.unknown)),
    )


def _of_size(supernet: AnyNet, subnet: AnyNet) -> AnyNet:
    """The supernet for images of the subnet's size, where nothing but that tells their grids apart."""
    ours, theirs = (net.spec.canonical() | {"image_size": None} for net in (supernet, subnet))
    size = subnet.spec.image_size
    if size == supernet.spec.image_size or ours != theirs:
        return supernet
    moved = resized(as_task_net(supernet), size)
    return moved if isinstance(supernet, TaskNet) else moved.backbone


def _require_same_head(supernet: AnyNet, subnet: AnyNet) -> None:
    """Raise GridError for two heads whose outputs cannot be compared; what else differs, `verify` measures."""
    if not (isinstance(supernet, TaskNet) and isinstance(subnet, TaskNet)):
        return
    one, other = subnet.head, supernet.head
    if one.kind != other.kind:
        raise GridError(
            f"subnet: has a head of task {one.kind!r}, the network to compare with one of {other.kind!r}; give "
            f"the network that it was extracted from"
        )
    theirs = other.state_dict()
    for name, tensor in one.state_dict().items():
        if name in theirs and theirs[name].shape != tensor.shape:
            raise GridError(
                f"subnet: head.{name} is {tuple(tensor.shape)}, in the network to compare with "
                f"{tuple(theirs[name].shape)}: a head of other classes or width; give the network that it was "
                f"extracted from"
            )


def _differences(supernet: AnyNet, subnet: AnyNet, images: Tensor) -> tuple[float, float | None]:
    """To the restricted supernet; and to the whole one under replayed decisions, where these can express it."""
    architecture = subnet.architecture
    routes = static_routes(supernet, architecture, images) if architecture.is_static else None
    small = outputs(subnet, images)
    part = supernet.restrict(architecture)
    if not architecture.is_static:  # calibration may have moved the threshold, and nothing else of the gates
        part.decide(gates=part.gate_spec.model_copy(update={"threshold": subnet.gate_spec.threshold}))
    same = difference(outputs(part, images), small)
    if routes is None:
        return same, None
    # Rows of rates that the part never reaches run on in the whole network; the part's head leaves them out.
    whole = TaskNet(backbone_of(supernet), part.head) if isinstance(part, TaskNet) else supernet
    return same, difference(
        {name: x for name, x in outputs(whole, images, routes).items() if name in small}, small
    )


@torch.no_grad()
def _packed_difference(subnet: AnyNet, images: Tensor) -> float:
    """Of a gated network, computed packed, to itself masked. Both take one set of decisions: in a second one a
    margin that lies on the threshold may fall to its other side by the rounding of what came before.
    """
    with subnet.deciding_as(execution="dense"):
        with evaluating(subnet):
            routes = subnet(as_input(subnet, images)).routes
        masked = outputs(subnet, images, routes)
    with subnet.deciding_as(execution="packed"):
        return difference(masked, outputs(subnet, images, routes))


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() and a.device.type != "meta"


@torch.no_grad()
def outputs(net: AnyNet, images: Tensor, routes: Routes | None = None) -> dict[str, Tensor]:
    """What the head gives and the maps, by name; in evaluation mode, the net's own type and device."""
    whole = as_task_net(net)
    with evaluating(whole):
        out = whole(as_input(whole, images), routes=routes, features=True)
    found = dict(zip(whole.head.names, whole.head.tensors(out.outputs), strict=True))
    return found | {f"r{rate:02d}": feature for rate, feature in (out.features or {}).items()}


def static_routes(supernet: AnyNet, architecture: Architecture, images: Tensor) -> Routes | None:
    """Decisions that make the supernet compute a static architecture; None where routing cannot express it.

    Routing decides between a transformer and its identity, and whether to go down as well. It cannot end a row:
    tokens that went down also run on beside it. That is harmless unless the architecture enters the row again
    further on, where they would be added. Open patch embeddings of the supernet cannot be dropped, and with
    early stopping an identity ends all that follows in its row.
    """
    if supernet.gate_spec.early_stop or not _expressible(supernet.architecture, architecture):
        return None
    places = supernet.gate_places(images.shape[-2:])
    return Routes.following(architecture, places, images=images.shape[0], device=images.device)


def _expressible(supernet: Architecture, architecture: Architecture) -> bool:
    entered: set[Node] = {architecture.grid.stem}
    entered |= {architecture.grid.edges[name].target for name in architecture.edges}
    stray: set[Node] = set()
    for name, state in supernet.edges.items():
        edge = supernet.grid.edges[name]
        if name in architecture.edges or edge.source not in entered | stray:
            continue
        if edge.kind == "patch_embed":
            if state == "open":
                return False
        elif str(edge.partner) not in architecture.edges:
            stray.add(edge.target)
    return not stray & entered
