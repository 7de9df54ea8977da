"""GridSpec: every choice that fixes a routing grid and the shape of its blocks.

A layer is a column of the grid, a rate is the number of input pixels per token side (4, 8, 16, 32). Widths,
heads, MLP and reduction ratios belong to the rate; the number of blocks belongs to the layer (DiT, section 3).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from routespace.checked import checked
from routespace.errors import SpecError
from routespace.grid.families.base import Family, PerRate, Shape
from routespace.grid.families.lookup import allow_families, find_family, known_families
from routespace.grid.families.pvt_v2 import PVT_V2
from routespace.grid.families.shape import read_parameters, resolve_shape
from routespace.grid.presets import preset_fields
from routespace.values import Value

MAX_LAYERS = MAX_DEPTH = 1000
MAX_WIDTH = 1 << 16
MAX_IMAGE_PX = 1 << 14
Positive = Annotated[int, Field(strict=True, ge=1)]
Depth = Annotated[Positive, Field(le=MAX_DEPTH)]


def _is_power_of_two(value: int) -> bool:
    return value >= 1 and value & (value - 1) == 0


def _square(value: Any) -> Any:
    """One number means a square image."""
    if not isinstance(value, int | list | tuple):
        raise ValueError("give a side in pixels, or [height, width]")
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


ImageSize = Annotated[
    tuple[Annotated[Positive, Field(le=MAX_IMAGE_PX)], Annotated[Positive, Field(le=MAX_IMAGE_PX)]],
    BeforeValidator(_square),
]
_IMAGE_SIZE: TypeAdapter[tuple[int, int]] = TypeAdapter(ImageSize)
# A file holds a family's name; in Python the object stays, so that a spec can be made from another's fields.
FamilyField = Annotated[
    Family, PlainValidator(find_family), PlainSerializer(str, return_type=str, when_used="json")
]
# Hashes of grids hold these two whatever the family: they were fields of every grid once.
_ALWAYS_HASHED = {"sr_ratios": None, "window": None}


class GridSpec(Value):
    """The routing grid as a frozen value: layers × downsampling rates, and what stands on each edge.

    Beside the fields below a grid has the parameters of its family, such as `sr_ratios` of pvt_v2 (one per rate)
    and `window` of swin_v2 (one for all rates, or one per rate); see `Family.parameters`. It may also be given
    `preset`, the name of a grid whose fields the others replace.

    Args:
        layers: number of columns L; nodes stand at columns 0…L.
        max_down: coarsest downsampling rate, a power of two times `stem_down`.
        stem_down: input pixels per token side after the stem.
        depths: blocks per transformer edge, one number for all layers or one per layer.
        embed_layers: columns in which patch embeddings stand: "all" (0…L) or a list.
        family: `pvt_v2`, `swin_v2`, or a Family of your own.
        size: named size of the family; its widths serve up to four rates.
        widths, heads, mlp_ratios: per rate, fine to coarse; each overrides the size's own.
        outputs: `coarsest` (one map, for classification) or `pyramid` (the last map of each rate).
        image_size: input height and width in pixels, or one number for a square.
        in_channels: image channels.
        num_classes: classes of the classifier on the coarsest map; 0 for none.

    Raises:
        SpecError: naming the field and what is allowed.
    """

    model_config = ConfigDict(extra="allow")  # the family's parameters, which `_read` has checked

    layers: Annotated[Positive, Field(le=MAX_LAYERS)]
    max_down: Positive = 32
    stem_down: Literal[4] = 4
    depths: Depth | tuple[Depth, ...] = 1
    embed_layers: Literal["all"] | tuple[Annotated[int, Field(strict=True, ge=0)], ...] = "all"
    family: FamilyField = PVT_V2
    size: str | None = None
    widths: tuple[Annotated[Positive, Field(le=MAX_WIDTH)], ...] | None = None
    heads: tuple[Positive, ...] | None = None
    mlp_ratios: tuple[Annotated[float, Field(gt=0, le=64)], ...] | None = None
    outputs: Literal["coarsest", "pyramid"] = "coarsest"
    image_size: ImageSize = (224, 224)
    in_channels: Positive = 3
    num_classes: Annotated[int, Field(strict=True, ge=0)] = 1000

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        """Put a preset's fields in its place, and check the names and values of the family's parameters."""
        if not isinstance(data, Mapping):
            return data
        fields = {name: value for name, value in data.items() if name != "preset"}
        if "preset" in data:
            fields = preset_fields(str(data["preset"])) | fields
        family = find_family(fields.get("family", PVT_V2))
        own = {name: fields.pop(name) for name in list(fields) if name not in cls.model_fields}
        return fields | read_parameters(family, own, known=known_families().values(), fields=cls.field_names())

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
        self.family.check(self)
        self._require_image(self.image_size)
        return self

    def _require_image(self, size: tuple[int, int]) -> None:
        """Raise SpecError for images that are too small for some map."""
        if min(size) < self.least_image_px:
            raise SpecError(
                f"image_size: {size[0]}x{size[1]} px is too small for this grid of family {self.family}; "
                f"give at least {self.least_image_px} px a side"
            )

    @cached_property
    def rates(self) -> tuple[int, ...]:
        """Downsampling rates, fine to coarse: stem_down, 2·stem_down, …, max_down."""
        count = (self.max_down // self.stem_down).bit_length()
        return tuple(self.stem_down << i for i in range(count))

    @property
    def given(self) -> Mapping[str, PerRate]:
        """The family's own parameters that were given for this grid, rather than by its size."""
        return self.model_extra or {}

    @cached_property
    def shape(self) -> Shape:
        """Per-rate numbers, resolved from `size` and the explicit fields.

        Raises:
            SpecError: a size that the family lacks, or too few numbers for the rates.
        """
        given = {"widths": self.widths, "heads": self.heads, "mlp_ratios": self.mlp_ratios, **self.given}
        return resolve_shape(self.family, self.size, given, self.rates)

    def own(self, name: str, rate: int) -> int:
        """The family's own parameter `name` at `rate`."""
        value = self.shape.own.get(name, self.family.parameters[name].default)
        assert value is not None  # `shape` refuses a parameter that is missing
        return value if isinstance(value, int) else value[self.index(rate)]

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
    def least_image_px(self) -> int:
        """The shortest side of an image that all maps of the grid can be computed from."""
        tokens = ((rate, self.family.least_tokens(self, rate)) for rate in self.rates)
        return max(self.max_down, *((least - 1) * rate + 1 for rate, least in tokens))

    def at(self, image_size: tuple[int, int] | int) -> GridSpec:
        """The same grid for images of another size, all other numbers as they are.

        Args:
            image_size: height and width in pixels, or one number for a square.

        Raises:
            SpecError: no such size, or one that is too small for some map.
        """
        try:
            size = _IMAGE_SIZE.validate_python(image_size)
        except ValidationError as error:
            raise SpecError(
                f"image_size: {image_size!r:.60} is not allowed; give a side from 1 to {MAX_IMAGE_PX} px, or two"
            ) from error
        self._require_image(size)
        fields: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_construct(**{**fields, **self.given, "image_size": size})

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
        data = self.model_dump(mode="json", exclude={"size", *self.given}) | _ALWAYS_HASHED
        data |= {"widths": self.shape.widths, "heads": self.shape.heads, **self.shape.own}
        data["depths"] = [self.depth(layer) for layer in range(self.layers)]
        data["embed_layers"] = sorted(self.embed_columns)
        data["mlp_ratios"] = [float(ratio) for ratio in self.shape.mlp_ratios]
        return data

    @cached_property
    def hash(self) -> str:
        """Twelve hex digits, equal for equal grids on every machine."""
        return content_hash(self.canonical())

    @classmethod
    def parse(cls, data: Any, *, name: str = "", families: Iterable[Family] = ()) -> Self:
        """Validate a mapping.

        Args:
            data: field → content, as JSON or YAML give it.
            name: what errors put before the field.
            families: of your own, which the mapping may name.

        Raises:
            SpecError: one line: the field, what was given, what is allowed.
        """
        with allow_families(*families):
            return super().parse(data, name=name)

    @classmethod
    @checked
    def preset(cls, name: str, **overrides: Any) -> Self:
        """A named grid: see `routespace.grid.presets`; keyword arguments replace fields."""
        return cls.parse({"preset": name} | overrides)

    @classmethod
    def field_names(cls) -> list[str]:
        """What a mapping may hold: the fields, every known family's parameters, and `preset`."""
        own = [name for family in known_families().values() for name in family.parameters]
        return [*super().field_names(), *dict.fromkeys(own), "preset"]


def map_size(image_size: tuple[int, int], rate: int) -> tuple[int, int]:
    """Height and width in tokens of the map at `rate`, of an image of (H, W) pixels; or of a coarser map of a map.

    The stem and every patch embedding halve with rounding up (padded strided convolutions), so odd sizes and
    images that the rate does not divide are allowed.
    """
    return (image_size[0] - 1) // rate + 1, (image_size[1] - 1) // rate + 1


def content_hash(data: Any) -> str:
    """Twelve hex digits of the canonical JSON of `data`."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
