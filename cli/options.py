"""Options that several commands share: one meaning, one help text, one spelling."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from routespace.checked import device_word

DEVICES = "auto (a GPU where there is one), cpu, cuda or cuda:1"

DTYPES = ("float32", "bfloat16", "float16")  # that networks are timed with
CLOCKS = ("wall", "cpu")

SubjectName = Annotated[
    str,
    typer.Argument(
        metavar="GRID|RECIPE|BUNDLE|RUN",
        help="A preset such as dit_b2, a grid's JSON file, a recipe's name or file, a bundle's or run's folder.",
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b=c", help="Change a field of the recipe. Repeatable."),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="A folder of images, ROOT/train/<class>/… or ROOT/<class>/…, a table (.csv), or annotations: "
        "in COCO's format (.json or a folder), or label maps beside images/."
    ),
]
DataRecipe = Annotated[
    str | None, typer.Option("--recipe", help="Recipe of the data, by name or file; else the folder's own.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ImageSize = Annotated[str | None, typer.Option(help="Side in pixels, or HxW; else the grid's own.")]
Latency = Annotated[Path | None, typer.Option(help="A table of `profile`, for this grid: predicts milliseconds.")]


def _device(name: str) -> str:
    """The word itself; raises SpecError for one that names no device, before torch is imported."""
    device_word(name)
    return name


Device = Annotated[str, typer.Option(help=f"Where to run: {DEVICES}.", callback=_device)]

Type = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Threads = Annotated[int, typer.Option(help="Threads of torch on a CPU.")]
ClockName = Annotated[str, typer.Option(help="wall, or cpu: processor time, for a busy machine.")]


def overwriting(what: str) -> Any:
    """The option `--overwrite`.

    Args:
        what: is replaced.
    """
    return typer.Option("--overwrite", help=f"Replace {what}.")


def out(what: str) -> Any:
    """The option `-o`, `--out`.

    Args:
        what: is written there.
    """
    return typer.Option("-o", "--out", help=what)
