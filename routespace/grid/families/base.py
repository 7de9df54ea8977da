"""What a block family tells a grid: its sizes, its parameters and what everything costs. No torch.

A family is the one thing that a third kind of block has to bring: see `docs/new-family.md`. Its modules live in
another file (or below, in the same one), which is imported when a network is built.

Shape legend: H, W map height and width in tokens · N = H·W tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from routespace.errors import SpecError

FLOAT_BYTES = 4  # of a number that is moved or kept

PerRate = int | tuple[int, ...]
"""One whole number for all rates, or one per rate, fine to coarse."""


def norm_params(width: int) -> int:
    """Scale and shift of a LayerNorm."""
    return 2 * width


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
    """Per-rate numbers of one family size, one entry per rate from fine to coarse.

    Attributes:
        widths, heads, mlp_ratios: what every family has.
        own: the family's own parameters by name; see `Family.parameters`.
    """

    widths: tuple[int, ...]
    heads: tuple[int, ...]
    mlp_ratios: tuple[float, ...]
    own: Mapping[str, PerRate] = {}


@dataclass(frozen=True)
class Parameter:
    """Whole numbers that a family asks for beside widths, heads and MLP ratios, one per rate.

    Attributes:
        help: what it is, as the command line tells it.
        one_for_all: whether a single number may stand for all rates.
        least: the smallest number allowed.
        default: what stands where neither the grid nor its size gives a number; None: one must be given.
    """

    help: str
    one_for_all: bool = False
    least: int = 1
    default: int | None = None

    def read(self, name: str, value: Any) -> PerRate:
        """A given value, checked.

        Raises:
            SpecError: it is no whole number, or list of such; `name` is the parameter's.
        """
        numbers = value if isinstance(value, list | tuple) else [value] if self.one_for_all else [None]
        if not all(type(number) is int and number >= self.least for number in numbers):
            wanted = "one whole number" if self.one_for_all else "whole numbers"
            more = ", or one per rate" if self.one_for_all else ", one per rate"
            raise SpecError(f"{name}: {value!r:.60} is not allowed; give {wanted} from {self.least} up{more}")
        return tuple(value) if isinstance(value, list | tuple) else value


class GridNumbers(Protocol):
    """What a family may read of a grid; a `GridSpec` is one.

    Attributes:
        image_size: input height and width in pixels.
        in_channels: image channels.
        stem_down, max_down: the finest and the coarsest rate.
        rates: all rates, fine to coarse.
        shape: numbers per rate, for these rates.
        given: the family's own parameters that were given for this grid, rather than by its size.
    """

    @property
    def image_size(self) -> tuple[int, int]: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def stem_down(self) -> int: ...
    @property
    def max_down(self) -> int: ...
    @property
    def rates(self) -> tuple[int, ...]: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def given(self) -> Mapping[str, PerRate]: ...

    def index(self, rate: int) -> int:
        """Position of `rate` in `rates`."""

    def width(self, rate: int) -> int:
        """Channels of a token at `rate`."""

    def map_size(self, rate: int) -> tuple[int, int]:
        """Height and width in tokens of the map at `rate`."""

    def own(self, name: str, rate: int) -> int:
        """The family's own parameter `name` at `rate`."""


class Family(ABC):
    """A block family: its named sizes, the price of each edge kind and where its modules are.

    Every cost is a pure function of the grid's numbers. Families are equal when their class and name are.

    Attributes:
        name: what specs, files and messages call it.
        sizes: size name → per-rate numbers; the first is the default.
        depths: size name → blocks per stage of the family's plain network.
        parameters: name → what the family asks for beside widths, heads and MLP ratios. Each is a field of a
            grid: `GridSpec(…, window=8)`, `grid: {window: 8}` in a recipe.
        nn_module: import name of the module with the torch side, which has `MODULES`; see
            `routespace.nn.families.base`.
        image_size: the family's usual input, in pixels.
        alternates: after how many blocks of a row the kinds of blocks repeat; 1 where all are alike.
        free_size: whether exported files can take images of any size. Blocks that pad maps to whole windows do
            other things at other sizes.
    """

    name: str
    sizes: Mapping[str, Shape]
    depths: Mapping[str, tuple[int, ...]]
    nn_module: str
    parameters: Mapping[str, Parameter] = {}
    image_size: int = 224
    alternates: int = 1
    free_size: bool = False

    @abstractmethod
    def stem_cost(self, spec: GridNumbers) -> EdgeCost:
        """The price of image → finest map."""

    @abstractmethod
    def block_cost(self, spec: GridNumbers, rate: int) -> EdgeCost:
        """The price of one transformer block at `rate`."""

    @abstractmethod
    def patch_embed_cost(self, spec: GridNumbers, rate: int) -> EdgeCost:
        """The price of the patch embedding from `rate` to 2·`rate`."""

    @abstractmethod
    def output_cost(self, spec: GridNumbers, rate: int) -> EdgeCost:
        """The price of what stands between the last node of `rate` and the heads (a norm)."""

    @abstractmethod
    def check(self, spec: GridNumbers) -> None:
        """Raise SpecError for per-rate numbers that this family cannot build."""

    @abstractmethod
    def least_tokens(self, spec: GridNumbers, rate: int) -> int:
        """The fewest tokens a side that a map of `rate` may have, whatever the image; 1 for no demand."""

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<family {self.name}>"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Family) and self.name == other.name

    def __hash__(self) -> int:
        return hash((type(self), self.name))
