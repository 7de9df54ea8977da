"""`routespace export`: files that run without routespace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from routespace.cli.options import Device, ImageSize, out

NAME = "export"
EXAMPLE = "routespace export small/ -o exported/ --format onnx"
FORMATS = ("onnx", "pt2")


def run(
    source: Annotated[Path, typer.Argument(metavar="BUNDLE|RUN", help="An extracted or trained network.")],
    folder: Annotated[Path, out("Folder for model.onnx or model.pt2.")],
    form: Annotated[str, typer.Option("--format", help="onnx, pt2, or both with a comma.")] = "onnx",
    image_size: ImageSize = None,
    device: Device = "cpu",
) -> None:
    """Write a network as ONNX or as torch's .pt2, with a free batch size, and check it against the original.

    A file is kept only when ONNX Runtime (or the loaded program) gives the network's own numbers.
    """
    from routespace.cli.arguments import several_of, size_pair
    from routespace.cli.render import mega
    from routespace.cli.status import busy, loading
    from routespace.files import require_place
    from routespace.workflow.subjects import net_folder

    forms, size = several_of("format", form, FORMATS), size_pair(image_size)
    net_folder(source)
    for name in forms:
        require_place(folder / f"model.{name}")
    with loading():
        from routespace.deploy.export.base import export_onnx, export_pt2
        from routespace.workflow.artifacts import load_artifact
    writers = {"onnx": export_onnx, "pt2": export_pt2}
    net = load_artifact(source, device=device).net
    for name in forms:
        with busy(f"exporting {name}"):
            report = writers[name](net, folder / f"model.{name}", image_size=size)
        print(
            f"{report.path}  {mega(report.bytes)}B, {sum(report.operators.values())} operators, "
            f"largest difference {report.max_difference:.1e}"
        )
