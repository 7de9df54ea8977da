"""Writing a network to a file of any format, and the check that every file passes.

Whatever the format, a network without a task gives its feature maps, fine to coarse, and a gated network computes
densely: every decision is taken, nothing is saved. A file is written next to its place and moved there once it
gives, loaded again, the network's own numbers.

Shape legend: N images · C channels · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from routespace.deploy.examples import example_images, image_shape
from routespace.deploy.export.base import Exporter, LoadedNet, Prepared
from routespace.deploy.export.formats import exporter_of
from routespace.deploy.export.packages import first_line, pass_interrupts, require
from routespace.deploy.tolerance import CONVERTED, coarsest_type, difference, tolerance_for, type_name
from routespace.errors import RoutespaceError, SpecError
from routespace.files import json_text, replaced
from routespace.nn.heads.kinds import head_data, is_known
from routespace.nn.module import PlainModule, unwrap
from routespace.nn.route_net import RouteNet
from routespace.nn.running import evaluating
from routespace.nn.task_net import AnyNet, TaskNet, as_task_net

TRACED_BATCH = 2  # a batch of one would be taken for a constant
CHECKED_BATCHES = (1, 3)

Say = Callable[[str], None]  # is told what is being done, a few words at a time


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the file.
        max_difference: greatest absolute difference to the network over the checked batches, over its greatest
            output where that is above 1.
        operators: operator → how often it stands in the graph.
        bytes: size of the file.
        dtype: element type of the network.
        tolerance: the difference that was allowed.
    """

    path: Path
    max_difference: float
    operators: Mapping[str, int]
    bytes: int
    dtype: str
    tolerance: float


def export(
    net: AnyNet,
    path: Path | str,
    *,
    image_size: tuple[int, int] | int | None = None,
    tolerance: float | None = None,
    metadata: Mapping[str, str] | None = None,
    say: Say | None = None,
) -> ExportReport:
    """Write a network in the format that the file's ending names, and check it.

    Arguments and errors are those of `export_as`.
    """
    return export_as(
        exporter_of(path), net, path, image_size=image_size, tolerance=tolerance, metadata=metadata, say=say
    )


def export_as(
    exporter: Exporter,
    net: AnyNet,
    path: Path | str,
    *,
    image_size: tuple[int, int] | int | None = None,
    tolerance: float | None = None,
    metadata: Mapping[str, str] | None = None,
    say: Say | None = None,
) -> ExportReport:
    """Write a file of one format with a free batch size, and check it as loaded again.

    Args:
        exporter: the format.
        net: a static network, or a gated one, which then computes densely; or a wrapper such as torch.compile's.
            It is left in the mode in which it came.
        path: the file; its ending must be the format's.
        image_size: height and width in pixels of the images, or one number; the spec's own by default. Where it is
            free (`Head.free_size`) any multiple of the coarsest rate goes, from two tokens of the coarsest map on.
        tolerance: greatest difference allowed, over the greatest output where that is above 1; by default that of
            the network's element type.
        metadata: what the file shall tell beside grid, architecture, image size and outputs: key → text.
        say: is called with what is being done.

    Raises:
        SpecError: another ending, an image size that the network cannot take, a type that the format cannot hold.
        MissingDependencyError: a package that the format needs is not installed.
        BundleError: the file cannot be written.
        RoutespaceError: torch cannot export the network, or the file does not give its numbers.
    """
    path, net = Path(path), as_task_net(unwrap(net, wanted=(TaskNet, RouteNet)))
    if path.suffix != exporter.suffix:
        raise SpecError(f"path: {path.name!r:.80} does not end in {exporter.suffix}; rename it")
    dtype = coarsest_type(net)
    if type_name(dtype) not in exporter.types:
        raise SpecError(
            f"{exporter.name}: the network is in {type_name(dtype)}, which this format's runtime does not "
            f"compute; give one in {' or '.join(exporter.types)}, such as net.float()"
        )
    allowed, say = tolerance_for(dtype, CONVERTED, tolerance), say or _silent
    say("running the network")
    with _dense(net) as module, torch.no_grad():
        pairs = []
        sizes = _sizes(net, image_size)
        for batch, fed in zip(CHECKED_BATCHES, sizes, strict=True):  # an image size that does not fit ends here
            images = example_images(net, batch, fed, seed=batch)
            pairs.append((images, _by_name(module, module(images))))
        require(exporter.needs, f"export to {exporter.name}")
        traced = example_images(net, TRACED_BATCH, sizes[-1])
        prepared = Prepared(
            module, traced, _about(net, sizes[0], metadata or {}), step=_step(net), least=_least(net)
        )
        with replaced(path) as partial:
            say(f"writing {path.name}")
            with _explained(path):
                operators = exporter.write(prepared, partial)
                say(f"checking {path.name}")
                worst = _difference(exporter.load(partial), pairs)
            if worst > allowed:
                raise RoutespaceError(
                    f"{path}: the exported network differs from the original by {worst:.1e} (allowed in "
                    f"{type_name(dtype)}: {allowed:.0e}); nothing was written, please report recipe and versions"
                )
            size = partial.stat().st_size
    return ExportReport(path, worst, dict(sorted(operators.items())), size, type_name(dtype), allowed)


def _difference(loaded: LoadedNet, pairs: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> float:
    """The greatest difference of what a file gives to what the network gave, over images and outputs."""
    found = [dict(zip(loaded.names, loaded.run(images), strict=True)) for images, _ in pairs]
    return max(difference(expected, given) for (_, expected), given in zip(pairs, found, strict=True))


def _silent(_: str) -> None:
    """Tell nobody."""


def _by_name(module: PlainModule, outputs: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
    given = outputs if isinstance(outputs, tuple) else (outputs,)
    return dict(zip(module.names, given, strict=True))


def _step(net: TaskNet) -> int | None:
    """Pixels of which the images' sides may be any multiple; None where they are fixed."""
    return net.spec.max_down if net.head.free_size and net.spec.family.free_size else None


def _least(net: TaskNet) -> int:
    """Steps of a free side, at least: two tokens of the coarsest map, of which the second may be a part."""
    return net.head.coarsest(net.spec) // net.spec.max_down + 1


def _sizes(net: TaskNet, image_size: tuple[int, int] | int | None) -> list[tuple[int, int]]:
    """Of the checked images; where it is free, the size that is asked for as whole steps, and a larger one."""
    _, *asked = image_shape(net, image_size)
    step = _step(net)
    if step is None:
        return [(asked[0], asked[1])] * len(CHECKED_BATCHES)
    height, width = (max(_least(net), -(-side // step)) * step for side in asked)
    return [(height, width), (height + step, width + 2 * step)]


def _about(net: TaskNet, size: tuple[int, int], metadata: Mapping[str, str]) -> dict[str, str]:
    """What every file tells, and what else it shall tell."""
    step = _step(net)
    more = {} if step is None else {"side_step": str(step), "least_side": str(_least(net) * step)}
    return {
        "format": "routespace.export/1",
        "grid": net.spec.hash,
        "architecture": net.architecture.hash,
        "image_size": json_text(list(size), indent=None),
        **more,
        "outputs": json_text(list(net.head.names), indent=None),
        "rates": json_text(list(net.spec.output_rates), indent=None),
        **({"head": json_text(head_data(net.head), indent=None)} if is_known(net.head) else {}),
        **metadata,
    }


@contextmanager
def _dense(net: TaskNet) -> Iterator[PlainModule]:
    """The network as a plain module, dense and in evaluation mode; its own settings return afterwards."""
    with evaluating(net), net.deciding_as(held=None, execution="dense"):
        yield net.as_module()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What a tracer, a writer or a runtime raises, as one line; each has exceptions of its own."""
    try:
        yield
    except (RoutespaceError, OSError):  # a full disk is told by whoever moves the file to its place
        raise
    except Exception as error:
        pass_interrupts(error)
        raise RoutespaceError(
            f"{path}: torch {torch.__version__} cannot export this network ({first_line(error)}); "
            f"nothing was written"
        ) from error
