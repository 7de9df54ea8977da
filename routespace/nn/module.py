"""A routed network among other torch modules: as a plain one, and taken out of the wrappers of others.

    net.as_module()                              # images → logits: for exporters, tracers, counters, Grad-CAM
    unwrap(torch.compile(net)) is net            # so are DataParallel, DistributedDataParallel, averaged copies

Shape legend: B images · C channels · H, W pixels, or of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, cast

from torch import Tensor, nn

from routespace.errors import SpecError

Module = TypeVar("Module", bound=nn.Module)
# The only child of a wrapper: of torch.compile; of DataParallel, DistributedDataParallel, and of the averaged
# copies that torch and timm make.
WRAPPED = ("_orig_mod", "module")


def unwrap(net: Module, *, wanted: type[nn.Module] | tuple[type[nn.Module], ...] = nn.Module) -> Module:
    """The network inside the wrappers of `torch.compile`, DataParallel, DDP and averaged copies, at any depth.

    Args:
        net: a network, wrapped or not. Type checkers take a wrapper for what it wraps.
        wanted: the class, or the classes, that it must be of.

    Raises:
        SpecError: it is of another class.
    """
    found: nn.Module = net
    while isinstance(found, nn.Module):
        children = list(found.named_children())
        if len(children) != 1 or children[0][0] not in WRAPPED:
            break
        found = children[0][1]
    if not isinstance(found, wanted):
        allowed = wanted if isinstance(wanted, tuple) else (wanted,)
        names = " or ".join(kind.__name__ for kind in allowed)
        raise SpecError(f"net: a {type(found).__name__} was given; give a {names}, wrapped or not")
    return cast(Module, found)


class _Net(Protocol):
    """What a plain module asks of the network in it."""

    training: bool

    def __call__(self, images: Tensor) -> Any: ...

    def tensors(self, output: Any) -> tuple[Tensor, ...]: ...


class PlainModule(nn.Module):
    """A network as other tools expect a module: images in, a tensor or a tuple of tensors out.

    Made by `TaskNet.as_module` and `RouteNet.as_module`, over the same weights, modes and decisions.

    Args:
        net: a TaskNet or a RouteNet.
        names: of the outputs, as exported files call them.
        several: return a tuple even of one tensor.

    Attributes:
        names: the same.
    """

    names: tuple[str, ...]

    def __init__(self, net: nn.Module, names: Sequence[str], *, several: bool) -> None:
        super().__init__()
        self.net = net
        self.names = tuple(names)
        self.several = several
        self.training = net.training

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(B, in_channels, H, W) → (B, classes) logits, or the tensors that `names` names, each (B, …)."""
        net = cast(_Net, self.net)
        found = net.tensors(net(images))
        return found if self.several or len(found) != 1 else found[0]
