"""`routespace export`: files that run without routespace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from routespace.errors import SpecError

NAME = "export"
EXAMPLE = "routespace export small/ -o exported/ --format onnx"
FORMATS = ("onnx", "pt2")


def run(
    source: Annotated[Path, typer.Argument(metavar="BUNDLE|RUN", help="An extracted or trained network.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for model.onnx or model.pt2.")],
    form: Annotated[str, typer.Option("--format", help="onnx, pt2, or both with a comma.")] = "onnx",
    image_size: Annotated[str | None, typer.Option(help="Side in pixels, or HxW; else the grid's own.")] = None,
) -> None:
    """Write a network as ONNX or as torch's .pt2, with a free batch size, and check it against the original.

    A file is kept only when ONNX Runtime (or the loaded program) gives the network's own numbers.
    """
    from routespace.cli.arguments import parse_size
    from routespace.cli.render import mega
    from routespace.workflow.artifacts import load_artifact

    forms = form.split(",")
    if not forms or set(forms) - set(FORMATS):
        raise SpecError(f"format: {form!r:.40} is not allowed; give {' or '.join(FORMATS)}")
    net = load_artifact(source).net
    from routespace.deploy.export.base import export_onnx, export_pt2

    writers = {"onnx": export_onnx, "pt2": export_pt2}
    side = None if image_size is None else parse_size(image_size)
    for name in forms:
        report = writers[name](net, out / f"model.{name}", image_size=(side[0], side[1]) if side else None)
        print(
            f"{report.path}  {mega(report.bytes)}B, {sum(report.operators.values())} operators, "
            f"largest difference {report.max_difference:.1e}"
        )
