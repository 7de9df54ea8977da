"""`routespace export`: files that run without routespace."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from routespace.cli.options import Device, ImageSize, out, overwriting
from routespace.deploy.export.formats import EXPORTERS

NAME = "export"
EXAMPLE = "routespace export small/ -o exported/ --format onnx"


def run(
    source: Annotated[Path, typer.Argument(metavar="BUNDLE|RUN", help="An extracted or trained network.")],
    folder: Annotated[Path, out("Folder for model.onnx, model.pt2 and so on.")],
    form: Annotated[
        str, typer.Option("--format", help=f"{', '.join(EXPORTERS)}, or several with commas.")
    ] = "onnx",
    image_size: ImageSize = None,
    device: Device = "cpu",
    overwrite: Annotated[bool, overwriting("files that are there")] = False,
) -> None:
    """Write a network as ONNX or as torch's .pt2, checked against the original.

    The batch size is free. Files that find objects or pixels take images of any size whose sides the coarsest rate
    divides; those of swin_v2 one size. Mask R-CNN comes as three files: model.boxes and model.masks compute what
    was proposed.

    A file is kept only when it gives, loaded again, the network's own numbers.
    """
    from routespace.cli.arguments import several_of, size_pair
    from routespace.cli.render import mega
    from routespace.cli.status import busy, loading
    from routespace.deploy.folder import net_folder, require_export_place

    formats, size = several_of("format", form, tuple(EXPORTERS)), size_pair(image_size)
    net_folder(source)
    require_export_place(folder, [EXPORTERS[name].suffix for name in formats], overwrite=overwrite)
    with loading():
        from routespace.workflow.artifacts import load_artifact
        from routespace.workflow.exporting import export_artifact
    artifact = load_artifact(source, device=device)
    with busy("exporting") as say:
        reports = export_artifact(artifact, folder, formats, image_size=size, overwrite=overwrite, say=say)
    for report in chain.from_iterable(found.all for found in reports):
        print(
            f"{report.path}  {mega(report.bytes)}B, {sum(report.operators.values())} operators, "
            f"largest difference {report.max_difference:.1e} in {report.dtype}"
        )
