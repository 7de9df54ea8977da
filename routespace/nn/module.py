"""A routed network among other torch modules: taken out of the wrappers that others put around it.

unwrap(torch.compile(net)) is net            # so are DataParallel, DistributedDataParallel, averaged copies
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

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
    return found  # type: ignore[return-value]
