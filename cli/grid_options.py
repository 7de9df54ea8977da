"""The options that describe a grid, as one group: its fields, and the parameters of the built-in families.

@grid_options                                        adds --layers … --num-classes, --sr-ratios, --window
def run(macs: …, **fields: Any) -> None:             which arrive in **fields
    grid = RoutingGrid(GridSpec.parse(grid_fields(fields)))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from routespace.cli.families import Command, with_options
from routespace.grid.presets import FAMILIES

PLAIN: dict[str, tuple[type, str]] = {
    "layers": (int, "Number of layers (columns)."),
    "max_down": (int, "Coarsest downsampling rate, a power of two."),
    "preset": (str, "Start from a named grid, such as dit_b2."),
    "family": (str, f"{', '.join(FAMILIES)}, or one that --family-module allows."),
    "size": (str, "Named size of the family, such as b2."),
    "outputs": (str, "coarsest or pyramid."),
    "num_classes": (int, "Classes of the classifier; 0 for none."),
}
TEXTS = {  # several numbers, with commas between them
    "depths": "Blocks per layer: one number, or 3,4,6,3.",
    "widths": "Channels per rate, such as 32,64,160,256.",
    "heads": "Attention heads per rate.",
    "mlp_ratios": "MLP ratios per rate.",
    "embed_layers": "Columns of patch embeddings: all, or 0,1,2.",
    "image_size": "Side in pixels, or HxW.",
}


def grid_options(run: Command) -> Command:
    """A command with the options of a grid in place of its `**fields`; those not given are None."""
    own = {
        name: f"{parameter.help} ({family})."
        for family in FAMILIES.values()
        for name, parameter in family.parameters.items()
    }
    plain = {name: Annotated[kind | None, typer.Option(help=told)] for name, (kind, told) in PLAIN.items()}
    texts = {name: Annotated[str | None, typer.Option(help=told)] for name, told in (TEXTS | own).items()}
    return with_options(run, run, plain | texts, first=True)


def grid_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, as GridSpec takes them; raises SpecError for what is no number."""
    fields = {name: value for name, value in given.items() if value is not None}
    return {name: value if name in PLAIN else _parsed(name, value) for name, value in fields.items()}


def _parsed(name: str, text: str) -> Any:
    from routespace.cli.arguments import parse_numbers, parse_size

    if name == "image_size":
        return parse_size(text)
    if name == "embed_layers" and text == "all":
        return text
    numbers = parse_numbers(text, name, float if name == "mlp_ratios" else int)
    return numbers[0] if len(numbers) == 1 and name in {"depths", *_one_for_all()} else numbers


def _one_for_all() -> set[str]:
    """The parameters of built-in families for which one number may stand for all rates."""
    every = (item for family in FAMILIES.values() for item in family.parameters.items())
    return {name for name, parameter in every if parameter.one_for_all}
