"""GridSpec: every choice that fixes a routing grid and the shape of its blocks.

A layer is a column of the grid, a rate is the number of input pixels per token side (4, 8, 16, 32). Widths,
heads, MLP and reduction ratios belong to the rate; the number of blocks belongs to the layer (DiT, section 3).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from routespace.errors import SpecError
from routespace.grid.families.base import Family, Shape, get_family
from routespace.grid.presets import preset_fields
from routespace.values import Value

MAX_LAYERS = 1000
MAX_WIDTH = 1 << 16
MAX_IMAGE_PX = 1 << 14
Positive = Annotated[int, Field(strict=True, ge=1)]


def _is_power_of_two(value: int) -> bool:
    return value >= 1 and value & (value - 1) == 0


def _square(value: Any) -> Any:
    """One number means a square image."""
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _sides(value: Any) -> Any:
    """One window side, or one per rate."""
    if value is None:
        return None
    sides = value if isinstance(value, list | tuple) else [value]
    if not all(type(side) is int and side >= 1 for side in sides):
        raise ValueError("give one side in tokens from 1 up, or one per rate")
    return value


Window = Annotated[int | tuple[int, ...] | None, BeforeValidator(_sides)]
ImageSize = Annotated[
    tuple[Annotated[Positive, Field(le=MAX_IMAGE_PX)], Annotated[Positive, Field(le=MAX_IMAGE_PX)]],
    BeforeValidator(_square),
]


class GridSpec(Value):
    """The routing grid as a frozen value: layers × downsampling rates, and what stands on each edge.

    A mapping that is parsed may also hold `preset`, the name of a grid whose fields the others replace.

    Args:
        layers: number of columns L; nodes stand at columns 0…L.
        max_down: coarsest downsampling rate, a power of two times `stem_down`.
        stem_down: input pixels per token side after the stem.
        depths: blocks per transformer edge, one number for all layers or one per layer.
        embed_layers: columns in which patch embeddings stand: "all" (0…L) or a list.
        family: `pvt_v2`, `swin_v2`, or your own as "package.module:FAMILY".
        size: named size of the family; its widths serve up to four rates.
        widths, heads, mlp_ratios, sr_ratios: per rate, fine to coarse; each overrides the size's own.
        window: window side in tokens (swin_v2), one for all rates or one per rate, fine to coarse. A map that is
            smaller than its window has one window of its own size.
        outputs: `coarsest` (one map, for classification) or `pyramid` (the last map of each rate).
        image_size: input height and width in pixels, or one number for a square.
        in_channels: image channels.
        num_classes: classes of the classifier on the coarsest map; 0 for none.

    Raises:
        SpecError: naming the field and what is allowed.
    """

    layers: Annotated[Positive, Field(le=MAX_LAYERS)]
    max_down: Positive = 32
    stem_down: Literal[4] = 4
    depths: Positive | tuple[Positive, ...] = 1
    embed_layers: Literal["all"] | tuple[Annotated[int, Field(strict=True, ge=0)], ...] = "all"
    family: str = "pvt_v2"
    size: str | None = None
    widths: tuple[Annotated[Positive, Field(le=MAX_WIDTH)], ...] | None = None
    heads: tuple[Positive, ...] | None = None
    mlp_ratios: tuple[Annotated[float, Field(gt=0, le=64)], ...] | None = None
    sr_ratios: tuple[Positive, ...] | None = None
    window: Window = None
    outputs: Literal["coarsest", "pyramid"] = "coarsest"
    image_size: ImageSize = (224, 224)
    in_channels: Positive = 3
    num_classes: Annotated[int, Field(strict=True, ge=0)] = 1000

    @model_validator(mode="before")
    @classmethod
    def _resolve_preset(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "preset" not in data:
            return data
        return preset_fields(str(data["preset"])) | {key: data[key] for key in data if key != "preset"}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not _is_power_of_two(self.max_down) or self.max_down < self.stem_down:
            raise ValueError(
                f"max_down: {self.max_down} is not allowed; give a power of two from {self.stem_down} up"
            )
        if isinstance(self.depths, tuple) and len(self.depths) != self.layers:
            raise ValueError(
                f"depths: {len(self.depths)} numbers for {self.layers} layers; give one number, or one per layer"
            )
        if isinstance(self.embed_layers, tuple):
            if any(column > self.layers for column in self.embed_layers):
                raise ValueError(
                    f"embed_layers: {max(self.embed_layers)} is past the last column; allowed: 0 to {self.layers}"
                )
            if list(self.embed_layers) != sorted(set(self.embed_layers)):
                raise ValueError(
                    f"embed_layers: {list(self.embed_layers)} must be distinct and in increasing order"
                )
        if min(self.image_size) < self.max_down:
            raise ValueError(
                f"image_size: {self.image_size[0]}x{self.image_size[1]} px is smaller than one token of rate "
                f"{self.max_down}; give at least {self.max_down} px a side or a smaller max_down"
            )
        _ = self.shape  # resolves and checks widths and their companions
        self.block_family.check(self)
        return self

    @cached_property
    def rates(self) -> tuple[int, ...]:
        """Downsampling rates, fine to coarse: stem_down, 2·stem_down, …, max_down."""
        count = (self.max_down // self.stem_down).bit_length()
        return tuple(self.stem_down << i for i in range(count))

    @cached_property
    def block_family(self) -> Family:
        """The family object that `family` names."""
        return get_family(self.family)

    @cached_property
    def shape(self) -> Shape:
        """Per-rate numbers, resolved from `size` and the explicit fields.

        Raises:
            SpecError: a size that the family lacks, or too few numbers for the rates.
        """
        family, n = self.block_family, len(self.rates)
        size = self.size
        if size is None and self.widths is None:
            size = next(iter(family.sizes))
        if size is not None and size not in family.sizes:
            raise SpecError(f"size: family {family.name} has no size {size!r}; allowed: {', '.join(family.sizes)}")
        base = family.sizes[size] if size is not None else None
        return Shape(
            widths=self._per_rate("widths", self.widths, base and base.widths, n),
            heads=self._per_rate("heads", self.heads, base and base.heads, n),
            mlp_ratios=self._per_rate("mlp_ratios", self.mlp_ratios, base and base.mlp_ratios, n),
            sr_ratios=self._sr_ratios(base, n),
            window=self._window(base and base.window, n),
        )

    def _window(self, base: int | tuple[int, ...] | None, n: int) -> int | tuple[int, ...] | None:
        """One number where all rates have the same, so that both ways to write it are the same grid."""
        window = base if self.window is None else self.window
        if not isinstance(window, tuple):
            return window
        sides: tuple[int, ...] = self._per_rate("window", self.window, base, n)
        return sides[0] if len(set(sides)) == 1 else sides

    def _sr_ratios(self, base: Shape | None, n: int) -> tuple[int, ...] | None:
        default = next(iter(self.block_family.sizes.values())).sr_ratios
        if self.sr_ratios is None and default is None:
            return None
        return self._per_rate("sr_ratios", self.sr_ratios, base and base.sr_ratios, n)

    def _per_rate(self, field: str, given: Any, base: Any, n: int) -> Any:
        values = given if given is not None else base
        if values is None:
            raise SpecError(f"{field}: missing; without a size give {n} numbers, one per rate {list(self.rates)}")
        if len(values) < n or (given is not None and len(values) != n):
            origin = "given" if given is not None else f"in size {self.size or 'default'}"
            raise SpecError(
                f"{field}: {len(values)} numbers {origin} for {n} rates {list(self.rates)}; give {n}, one per rate"
            )
        return tuple(values[:n])

    def depth(self, layer: int) -> int:
        """Blocks of a transformer edge in column `layer`."""
        return self.depths if isinstance(self.depths, int) else self.depths[layer]

    def blocks_before(self, layer: int) -> int:
        """Blocks of one row in the columns before `layer`."""
        return sum(self.depth(earlier) for earlier in range(layer))

    def index(self, rate: int) -> int:
        """Position of `rate` in `rates`."""
        return self.rates.index(rate)

    def width(self, rate: int) -> int:
        """Channels of a token at `rate`."""
        return self.shape.widths[self.index(rate)]

    def map_size(self, rate: int) -> tuple[int, int]:
        """Height and width in tokens of the map at `rate`."""
        return map_size(self.image_size, rate)

    @cached_property
    def embed_columns(self) -> frozenset[int]:
        """Columns in which patch embeddings stand."""
        return frozenset(range(self.layers + 1) if self.embed_layers == "all" else self.embed_layers)

    @property
    def output_rates(self) -> tuple[int, ...]:
        """Rates whose last node is an output, fine to coarse."""
        return self.rates if self.outputs == "pyramid" else self.rates[-1:]

    def canonical(self) -> dict[str, Any]:
        """Everything that fixes the grid, with sizes resolved to numbers: equal grids give equal dicts."""
        data = self.model_dump(mode="json", exclude={"size"})
        data |= self.shape._asdict()
        data["depths"] = [self.depth(layer) for layer in range(self.layers)]
        data["embed_layers"] = sorted(self.embed_columns)
        data["mlp_ratios"] = [float(ratio) for ratio in self.shape.mlp_ratios]
        return data

    @cached_property
    def hash(self) -> str:
        """Twelve hex digits, equal for equal grids on every machine."""
        return content_hash(self.canonical())

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> GridSpec:
        """A named grid: see `routespace.grid.presets`; keyword arguments replace fields."""
        return cls.parse({"preset": name} | overrides)

    @classmethod
    def field_names(cls) -> list[str]:
        """What a mapping may hold: the fields, and `preset` for those of a named grid."""
        return [*super().field_names(), "preset"]


def map_size(image_size: tuple[int, int], rate: int) -> tuple[int, int]:
    """Height and width in tokens of the map at `rate`, of an image of (H, W) pixels; or of a coarser map of a map.

    The stem and every patch embedding halve with rounding up (padded strided convolutions), so odd sizes and
    images that the rate does not divide are allowed.
    """
    return -(-image_size[0] // rate), -(-image_size[1] // rate)


def content_hash(data: Any) -> str:
    """Twelve hex digits of the canonical JSON of `data`."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
