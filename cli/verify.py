"""`routespace verify`: is this bundle the part of that network which it says it is?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "verify"
EXAMPLE = "routespace verify small/ --against runs/digits_tiny"
DIFFERENT = 1


def run(
    bundle: Annotated[Path, typer.Argument(help="The extracted network.")],
    against: Annotated[Path, typer.Option(help="The run or bundle that it was taken from.")],
    image_size: Annotated[str | None, typer.Option(help="Side in pixels, or HxW; else the grid's own.")] = None,
    tolerance: Annotated[float, typer.Option(help="Largest difference of outputs.")] = 1e-6,
) -> None:
    """Compare an extracted network with the one it came from: outputs, weights, parameters and MACs.

    Exit code 0 when they agree and 1 when not. A network that was fine-tuned since does not agree.
    """
    from routespace.cli.arguments import parse_size
    from routespace.deploy.verify import verify
    from routespace.workflow.artifacts import load_artifact

    small, whole = load_artifact(bundle).net, load_artifact(against).net
    size = None if image_size is None else parse_size(image_size)
    report = verify(
        whole, small.architecture, small, image_size=(size[0], size[1]) if size else None, tolerance=tolerance
    )
    print("\n".join(report.lines()))
    print("the same network" if report.ok else "NOT the same network")
    if not report.ok:
        raise typer.Exit(DIFFERENT)
