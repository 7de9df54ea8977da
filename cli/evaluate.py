"""`routespace evaluate`: accuracy, cost both ways, and whether routing is really faster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from routespace.errors import SpecError
from routespace.files import json_text

if TYPE_CHECKING:
    from routespace.nn.route_net import RouteNet
    from routespace.train.data.loaders import Loaders

NAME = "evaluate"
EXAMPLE = "routespace evaluate runs/digits_tiny --json"
SPLITS = ("test", "val")
TIMED_IMAGES = 32
PAINTED_IMAGES = 6


def run(
    source: Annotated[Path, typer.Argument(metavar="RUN|BUNDLE", help="A finished run, or an extracted network.")],
    split: Annotated[
        str, typer.Option(help="test (default), or val: what training and search looked at.")
    ] = "test",
    recipe: Annotated[str | None, typer.Option(help="Recipe of the data; else the folder's own.")] = None,
    data: Annotated[Path | None, typer.Option(help="A folder of images, instead of the recipe's data.")] = None,
    speed: Annotated[bool, typer.Option(help="Time a routed network against all of it computed.")] = True,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Time both with compiled blocks: a minute more.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Draw which tokens of the first images were computed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Evaluate a trained network on the test split.

    MACs are told as counted (from the decisions taken), as expected (what the budget loss saw) and with everything
    computed; for a routed network the measured speed-up stands next to the counted one.
    """
    from routespace.cli.networks import load_found
    from routespace.train.data.loaders import make_loaders

    if split not in SPLITS:
        raise SpecError(f"split: {split!r:.40} is not allowed; give {' or '.join(SPLITS)}")
    found = load_found(source, recipe)
    chosen = found.require_recipe()
    if data is not None:
        chosen = chosen.override({"data.kind": "folder", "data.root": str(data)})
    if picture is not None:
        from routespace.draw.canvas import require_format

        require_format(picture)
        if found.net.architecture.is_static:
            raise SpecError("picture: the network is static and computes every token; give a routed one")
    found.net.compile_blocks(compiled).compile_blocks(False)  # a family that cannot is refused before the work
    loaders = make_loaders(chosen)
    report = measure(found.net, loaders, split, speed=speed, compiled=compiled)
    if picture is not None:
        paint(found.net, loaders, split, picture)
    if as_json:
        print(json_text(report))
    else:
        show(report)


def measure(
    net: RouteNet, loaders: Loaders, split: str, *, speed: bool = True, compiled: bool = False
) -> dict[str, Any]:
    """Evaluate a network; JSON data.

    Args:
        net: on the device that it shall run on.
        loaders: of the recipe of its data.
        split: test or val.
        speed: also time a routed network.
        compiled: time it with compiled blocks.
    """
    from routespace.cli.timing import routed_times
    from routespace.grid.cost import architecture_cost
    from routespace.train.run import evaluate

    loader = loaders.test if split == "test" else loaders.val
    result = evaluate(net, loader)
    cost = architecture_cost(net.architecture, gates=net.gate_spec)
    report = {
        "split": split,
        "images": result["images"],
        "accuracy": result["accuracy"],
        "loss": result["loss"],
        "params": cost.params,
        "macs": int(cost.macs),
        "counted_macs": result["counted_macs"],
        "expected_macs": result["expected_macs"],
        "images_per_s": result["images_per_s"],
        "usage": result["usage"],
    }
    if speed and not net.architecture.is_static:
        images = next(iter(loader))[0][:TIMED_IMAGES].to(next(net.parameters()).device)
        times = routed_times(net, images, compiled=compiled)
        report["speed"] = {
            "batch": len(images),
            "compiled": compiled,
            "dense_ms": 1e3 * times["dense"],
            "routed_ms": 1e3 * times["routed"],
            "measured_speedup": times["dense"] / times["routed"],
            "counted_speedup": cost.macs / result["counted_macs"],
        }
    return report


def paint(net: RouteNet, loaders: Loaders, split: str, path: Path) -> Path:
    """Draw which tokens of the split's first images are computed, with their labels and what was answered."""
    import torch

    from routespace.draw.tokens import draw_tokens
    from routespace.train.data.digits import MEAN, STD

    images, labels = next(iter(loaders.test if split == "test" else loaders.val))
    images = images[:PAINTED_IMAGES].to(next(net.parameters()).device)
    with torch.inference_mode():
        out = net(images)
    assert out.logits is not None  # a recipe's network has classes
    answers = out.logits.argmax(1).tolist()
    words = [f"{label} → {answer}" for label, answer in zip(labels.tolist(), answers, strict=False)]
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
    return draw_tokens(net.architecture, images * std + mean, out.routes, path=path, labels=words)


def show(report: dict[str, Any]) -> None:
    """Print an evaluation."""
    from routespace.cli.render import giga, mega, pairs, percent

    macs, counted, expected = report["macs"], report["counted_macs"], report["expected_macs"]
    routed = "speed" in report or counted < macs
    rows: list[tuple[str, object]] = [
        ("accuracy", f"{percent(report['accuracy'])} of {report['images']} {report['split']} images"),
        ("loss", f"{report['loss']:.4f}"),
        ("parameters", mega(report["params"])),
        ("MACs", giga(macs) + (" with everything computed" if routed else "")),
    ]
    if routed:
        rows.append(("MACs, counted", f"{giga(counted)} ({percent(counted / macs)})"))
        rows.append(("MACs, expected", f"{giga(expected)} ({percent(expected / macs)})"))
    if "speed" in report:
        speed = report["speed"]
        rows.append(
            ("speed-up", f"{speed['measured_speedup']:.2f}× measured, {speed['counted_speedup']:.2f}× counted")
        )
        rows.append(
            (
                "",
                f"batch {speed['batch']}: routed {speed['routed_ms']:.1f} ms, everything computed "
                f"{speed['dense_ms']:.1f} ms, one thread" + (", compiled" if speed["compiled"] else ""),
            )
        )
    pairs(rows)
