"""What a block family is: its widths, its costs and (lazily) its torch modules.

A family is the one thing that a third kind of block has to bring: see `docs/new-family.md`. The grid asks it
for numbers only, so importing a family must not import torch; `modules()` does that when a network is built.

Shape legend: H, W map height and width in tokens · N = H·W tokens.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from routespace.errors import SpecError

if TYPE_CHECKING:
    from routespace.grid.spec import GridSpec


class EdgeCost(NamedTuple):
    """What one part of a network costs for one image. Exact integers.

    One multiply-add counts as one MAC (papers of this field print that as FLOPs). Counted are convolutions,
    linear layers and the two matrix products of attention; biases, norms and activations are not, which is
    also what torch's FlopCounterMode counts (as two).

    Attributes:
        params: learned numbers.
        fixed_macs: MACs that are paid as soon as one token of the image is computed (the key/value side).
        routed_macs: MACs of all tokens together; a share k of computed tokens costs k times this.
        fixed_bytes: bytes moved for the fixed part, weights included (4 bytes a number).
        routed_bytes: bytes moved for all tokens together, scaling like `routed_macs`.
    """

    params: int
    fixed_macs: int
    routed_macs: int
    fixed_bytes: int
    routed_bytes: int

    @property
    def macs(self) -> int:
        """MACs with every token computed."""
        return self.fixed_macs + self.routed_macs

    @property
    def bytes(self) -> int:
        """Bytes moved with every token computed."""
        return self.fixed_bytes + self.routed_bytes


class Shape(NamedTuple):
    """Per-rate numbers of one family size, one entry per rate from fine to coarse; `window` may be one for all."""

    widths: tuple[int, ...]
    heads: tuple[int, ...]
    mlp_ratios: tuple[float, ...]
    sr_ratios: tuple[int, ...] | None = None
    window: int | tuple[int, ...] | None = None


class Family(ABC):
    """A block family: its named sizes, the price of each edge kind and the modules that compute them.

    Every cost is a pure function of the spec.

    Attributes:
        name: what `GridSpec.family` calls it.
        sizes: size name → per-rate numbers; the first is the default.
        depths: size name → blocks per stage of the family's plain network.
        nn_module: import name of the torch side.
        image_size: the family's usual input, in pixels.
        alternates: after how many blocks of a row the kinds of blocks repeat; 1 where all are alike.
    """

    name: str
    sizes: Mapping[str, Shape]
    depths: Mapping[str, tuple[int, ...]]
    nn_module: str
    image_size: int = 224
    alternates: int = 1

    @abstractmethod
    def stem_cost(self, spec: GridSpec) -> EdgeCost:
        """The price of image → finest map."""

    @abstractmethod
    def block_cost(self, spec: GridSpec, rate: int) -> EdgeCost:
        """The price of one transformer block at `rate`."""

    @abstractmethod
    def patch_embed_cost(self, spec: GridSpec, rate: int) -> EdgeCost:
        """The price of the patch embedding from `rate` to 2·`rate`."""

    @abstractmethod
    def output_cost(self, spec: GridSpec, rate: int) -> EdgeCost:
        """The price of what stands between the last node of `rate` and the heads (a norm)."""

    @abstractmethod
    def check(self, spec: GridSpec) -> None:
        """Raise SpecError for per-rate numbers that this family cannot build."""

    def modules(self) -> Any:
        """The torch side: the module `nn_module`, with `Stem`, `Stage`, `PatchEmbed` and `Output` classes.

        It is imported by name when a network is built, so that grids and costs need no torch.
        """
        return importlib.import_module(self.nn_module)


_BUILT_IN = {
    "pvt_v2": "routespace.grid.families.pvt_v2:PVT_V2",
    "swin_v2": "routespace.grid.families.swin_v2:SWIN_V2",
}


def get_family(name: str) -> Family:
    """The family called `name`: a built-in one, or `package.module:ATTRIBUTE` for one of your own.

    Raises:
        SpecError: no such family, or the attribute is not a Family.
    """
    target = _BUILT_IN.get(name, name)
    module_name, _, attribute = target.partition(":")
    allowed = f"allowed: {', '.join(_BUILT_IN)}, or your own as 'package.module:FAMILY'"
    if not attribute or module_name.startswith("."):
        raise SpecError(f"family: {name!r} is not known; {allowed}")
    try:
        family = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise SpecError(f"family: {name!r} cannot be imported ({error}); {allowed}") from error
    if not isinstance(family, Family):
        raise SpecError(f"family: {name!r} is a {type(family).__name__}, not a Family; {allowed}")
    return family
