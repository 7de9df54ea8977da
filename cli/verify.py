"""`routespace verify`: is this bundle the part of that network which it says it is?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from routespace.cli.options import Device, ImageSize
from routespace.errors import SpecError

NAME = "verify"
EXAMPLE = "routespace verify small/ --against runs/digits_tiny"
DIFFERENT = 1


def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The extracted network.")],
    against: Annotated[Path, typer.Option(help="The run or bundle that it was taken from.")],
    image_size: ImageSize = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Largest difference of outputs; else by their element type.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Check that an extracted network computes what the one does that it came from.

    Outputs, weights, parameters and MACs are compared. Exit code 0 when they agree and 1 when not. A network that
    was fine-tuned since does not agree.
    """
    from routespace.cli.arguments import size_pair
    from routespace.cli.status import busy, loading
    from routespace.deploy.folder import net_folder

    size = size_pair(image_size)
    if tolerance is not None and not 0 <= tolerance < float("inf"):  # nan is neither
        raise SpecError(f"tolerance: {tolerance} is not allowed; give a number from 0 up, such as 1e-6")
    for folder in (bundle, against):
        net_folder(folder)
    with loading():
        from routespace.deploy.verify import verify
        from routespace.workflow.artifacts import load_artifact
    small, whole = (load_artifact(folder, device=device).net for folder in (bundle, against))
    with busy("comparing"):
        report = verify(whole, small.architecture, small, image_size=size, tolerance=tolerance)
    if whole.spec.image_size != small.spec.image_size:
        of_small, of_whole = (f"{net.spec.image_size[0]}x{net.spec.image_size[1]} px" for net in (small, whole))
        print(f"image size   {of_small}, to which the other network was moved from {of_whole}")
    print("\n".join(report.lines()))
    print("the same network" if report.ok else "NOT the same network")
    if not report.ok:
        raise typer.Exit(DIFFERENT)
