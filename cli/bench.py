"""`routespace bench`: in which mode a network is fastest on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from routespace.cli.options import CLOCKS, DTYPES, AsJson, ClockName, Device, ImageSize, SubjectName, Threads, Type
from routespace.files import json_text

if TYPE_CHECKING:
    from routespace.nn.task_net import TaskNet

NAME = "bench"
EXAMPLE = "routespace bench pvt_v2_b2 --batch 8 --keep 0.5,0.25"
KEEPS = "1,0.5,0.25"

Batch = Annotated[int, typer.Option(help="Images of a forward pass.")]
Keeps = Annotated[
    str | None, typer.Option("--keep", help="Shares of tokens that are kept, with commas; else 1,0.5,0.25.")
]
Compiled = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile", help="Time compiled blocks too, minutes more; by default where there are any."
    ),
]
Rounds = Annotated[int, typer.Option(help="Turns behind each median.")]


def run(
    source: SubjectName,
    batch: Batch = 1,
    keeps: Keeps = None,
    image_size: ImageSize = None,
    device: Device = "cpu",
    dtype: Type = "float32",
    compiled: Compiled = None,
    rounds: Rounds = 9,
    threads: Threads = 1,
    clock: ClockName = "wall",
    as_json: AsJson = False,
) -> None:
    """Time a network in each mode on this machine, and name the fastest.

    Dense (everything computed) and routed, eager and compiled. A GRID is timed as its staircase with gated rows, a
    RECIPE as what it trains, with first weights. Which tokens are kept is drawn at random. What counts is the
    fastest way to run the routed network over the fastest way to run it with everything computed.
    """
    from routespace.cli.arguments import one_of, parse_numbers, size_pair
    from routespace.cli.status import busy, loading
    from routespace.errors import SpecError

    one_of("dtype", dtype, DTYPES)
    processor_time = one_of("clock", clock, CLOCKS) == "cpu"
    kept, size = parse_numbers(keeps or KEEPS, "keep", float), size_pair(image_size)
    if batch < 1:
        raise SpecError(f"batch: {batch} is not allowed; give at least 1")
    with loading():
        import torch

        from routespace.deploy.latency.device import this_device
        from routespace.workflow.modes import mode_times
    net = load(source, device).to(getattr(torch, dtype))
    if keeps is not None and net.architecture.is_static:
        raise SpecError("keep: the network is static and computes every token; leave it out, or give a routed one")
    net.compile_blocks(bool(compiled)).compile_blocks(False)  # a family that cannot is refused before the work
    size = size or net.spec.image_size
    with busy("measuring"):
        times = mode_times(
            net,
            torch.randn(batch, net.spec.in_channels, *size, generator=torch.Generator().manual_seed(0)),
            keeps=kept,
            compiled=compiled is not False,
            rounds=rounds,
            threads=threads,
            processor_time=processor_time,
        )
    report: dict[str, Any] = {
        "device": this_device(next(net.parameters()).device, threads).name,
        "threads": threads,
        "batch": batch,
        "image_size": list(size),
        "dtype": dtype,
        "clock": clock,
        "rounds": rounds,
        "torch": torch.__version__,
        **times.as_data(),
    }
    print(json_text(report)) if as_json else show(report)


def load(source: str, device: str) -> TaskNet:
    """The network that is timed: a folder's own, or one with first weights."""
    from routespace.grid.architecture import Architecture
    from routespace.nn.route_net import RouteNet
    from routespace.nn.running import pick_device
    from routespace.nn.task_net import TaskNet
    from routespace.workflow.artifacts import load_artifact
    from routespace.workflow.subjects import is_folder, load_subject

    if is_folder(source):
        return load_artifact(source, device=device).net
    found = load_subject(source)
    backbone = RouteNet(found.architecture or Architecture.routed(found.grid, "depth"), found.gates)
    return TaskNet(backbone, found.make_head(found.grid.spec)).eval().to(pick_device(device))


def show(report: dict[str, Any]) -> None:
    """Print all modes, and which is the fastest."""
    from routespace.cli.render import table

    threads = report["threads"]
    where = f"{report['device']}, {threads} thread{'s' if threads > 1 else ''}, batch {report['batch']}"
    fastest = min(report["dense_ms"].values())
    rows = [("everything", mode, f"{ms:.2f}", f"{ms / fastest:.3f}") for mode, ms in report["dense_ms"].items()]
    for part in report["routed"]:
        rows += [
            (f"{part['keep']:g}", mode, f"{ms:.2f}", f"{ms / fastest:.3f}") for mode, ms in part["ms"].items()
        ]
    title = f"{where}, {report['dtype']}, {'×'.join(map(str, report['image_size']))} px"
    table(("tokens", "mode", "ms", "of the fastest dense"), rows, title=title, left=("mode",))
    print(f"\nfastest with everything computed: {report['best']}")
    for part in report["routed"]:
        print(f"fastest at {part['keep']:g} of the tokens: {part['best']}, {part['ratio']:.3f} of that")
