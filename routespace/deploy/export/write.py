"""Writing a network to a file of any format, and the check that every file passes.

Whatever the format, a network without a task gives its feature maps, fine to coarse, and a gated network computes
densely: every decision is taken, nothing is saved. A file is written next to its place and moved there once it
gives, loaded again, the network's own numbers. What a head computes of regions (`Head.region_graphs`) is written
into files beside the first: all are moved to their places together, or none.

Shape legend: N images · C channels · H, W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from routespace.checked import checked
from routespace.deploy.examples import example_images
from routespace.deploy.export.base import Exporter, LoadedNet, Prepared, Say, Trace, silent
from routespace.deploy.export.formats import exporter_of
from routespace.deploy.export.packages import first_line, pass_interrupts, require
from routespace.deploy.export.region_files import FIRST, NETWORK, REGION, REGIONS, region_path
from routespace.deploy.export.sides import checked_sizes, least_side, least_steps, side_step
from routespace.deploy.export.steady import steady_images
from routespace.deploy.tolerance import CONVERTED, coarsest_type, difference, tolerance_for, type_name
from routespace.errors import RoutespaceError, SpecError
from routespace.files import json_text, replaced, require_place
from routespace.nn.heads.kinds import head_data, is_known
from routespace.nn.module import PlainModule, unwrap
from routespace.nn.route_net import RouteNet
from routespace.nn.running import evaluating
from routespace.nn.task_net import AnyNet, TaskNet, as_task_net
from routespace.versions import versions_of

TRACED_BATCH = 2  # a batch of one would be taken for a constant
CHECKED_BATCHES = (1, 3, 2)
FEW_TOKENS = 10  # times the tolerance is allowed of the least images: norms over two tokens enlarge roundings
FORMAT = "routespace.export/1"
TRACING = ": tracing what is computed, operator by operator"
OWN = "network"  # the first graph's name; those of regions have names of their own
Traces = dict[str, list[Trace]]  # by graph: none or one


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the file.
        max_difference: greatest absolute difference to the network over the checked batches, over its greatest
            output where that is above 1; of the least images, where sizes are free, a tenth of it.
        operators: operator → how often it stands in the graph.
        bytes: size of the file.
        dtype: element type of the network.
        tolerance: the difference that was allowed: more than what was asked for where decisions hang on rounding.
        regions: of the files beside it, with what is computed of regions.
    """

    path: Path
    max_difference: float
    operators: Mapping[str, int]
    bytes: int
    dtype: str
    tolerance: float
    regions: tuple[ExportReport, ...] = ()

    @property
    def all(self) -> tuple[ExportReport, ...]:
        """This one, and those of the files beside it."""
        return self, *self.regions


@dataclass(frozen=True)
class _Graph:
    """What becomes one file.

    Attributes:
        path: its place.
        prepared: what is written.
        pairs: images, and what the graph gave for them by name.
        dtype: of its weights.
        tolerance: the difference that is allowed.
    """

    path: Path
    prepared: Prepared
    pairs: Sequence[tuple[Tensor, dict[str, Tensor]]]
    dtype: torch.dtype
    tolerance: float


@checked
def export(
    net: AnyNet,
    path: Path | str,
    *,
    image_size: tuple[int, int] | int | None = None,
    tolerance: float | None = None,
    metadata: Mapping[str, str] | None = None,
    say: Say | None = None,
    traces: Traces | None = None,
) -> ExportReport:
    """Write a network in the format that the file's ending names, and check it.

    Arguments and errors are those of `export_as`.
    """
    return export_as(
        exporter_of(path),
        net,
        path,
        image_size=image_size,
        tolerance=tolerance,
        metadata=metadata,
        say=say,
        traces=traces,
    )


@checked
def export_as(
    exporter: Exporter,
    net: AnyNet,
    path: Path | str,
    *,
    image_size: tuple[int, int] | int | None = None,
    tolerance: float | None = None,
    metadata: Mapping[str, str] | None = None,
    say: Say | None = None,
    traces: Traces | None = None,
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
        traces: what was traced of this very network at this size for other formats, which saves doing it again;
            an empty dictionary is filled.

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
    allowed, say = tolerance_for(dtype, CONVERTED, tolerance), say or silent
    say("running the network")
    with _dense(net) as module, torch.no_grad():
        sizes = checked_sizes(net, image_size)
        checked = zip(CHECKED_BATCHES, sizes, strict=False)  # an image size that does not fit ends here
        fed = [steady_images(net, batch, size, seed=batch) for batch, size in checked]
        pairs = [(images, _by_name(module.names, module(images))) for images, _ in fed]
        require(exporter.needs, f"export to {exporter.name}")
        regions = _of_regions(net, path, tolerance)
        about = _about(net, sizes[0], regions) | dict(metadata or {})
        traced = example_images(net, TRACED_BATCH, sizes[1])
        prepared = Prepared(module, module.names, traced, about, step=side_step(net), least=least_steps(net))
        first = _Graph(path, prepared, pairs, dtype, allowed + max(slack for _, slack in fed))
        return _written(exporter, {OWN: first} | regions, say, {} if traces is None else traces)


def _of_regions(net: TaskNet, first: Path, tolerance: float | None) -> dict[str, _Graph]:
    """The head's graphs of regions by name, whose places are beside the first file's.

    Their weights are in float32, whatever the network's are in.
    """
    graphs = net.head.region_graphs()
    if not graphs:
        return {}
    device, dtype, digest, found = next(net.parameters()).device, torch.float32, _digest(net), {}
    allowed = tolerance_for(dtype, CONVERTED, tolerance)
    for name, graph in graphs.items():
        drawn = torch.Generator().manual_seed(0)
        counts = *CHECKED_BATCHES[:2], TRACED_BATCH
        *fed, traced = (
            torch.randn(count, *graph.shape, generator=drawn, device="cpu").to(device) for count in counts
        )
        pairs = [(regions, _by_name(graph.names, graph(regions))) for regions in fed]
        told = {
            "format": FORMAT,
            NETWORK: digest,
            REGION: name,
            FIRST: first.name,
            "outputs": json_text(list(graph.names), indent=None),
        }
        prepared = Prepared(graph, graph.names, traced, told, fed="regions")
        found[name] = _Graph(region_path(first, name), prepared, pairs, dtype, allowed)
    return found


def _digest(net: TaskNet) -> str:
    """What tells a network from others: of its weights, by name, and of what its head is told."""
    found = hashlib.sha256(json_text(net.head.settings()).encode())
    for name, weight in net.state_dict().items():
        found.update(name.encode())
        found.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def _written(exporter: Exporter, graphs: Mapping[str, _Graph], say: Say, traces: Traces) -> ExportReport:
    """Write and check all graphs; the first takes its place last, so that what it names is there."""
    for graph in list(graphs.values())[1:]:
        require_place(graph.path)
    with ExitStack() as places:
        partials = [places.enter_context(replaced(graph.path)) for graph in graphs.values()]
        told = [
            replace(graph, prepared=replace(graph.prepared, say=say, kept=traces.setdefault(name, [])))
            for name, graph in graphs.items()
        ]
        reports = [_checked(exporter, *one) for one in zip(told, partials, strict=True)]
    return replace(reports[0], regions=tuple(reports[1:]))


def _checked(exporter: Exporter, graph: _Graph, partial: Path) -> ExportReport:
    """Write one graph, and hold what the file gives against what the network gave."""
    path, dtype, allowed, prepared = graph.path, type_name(graph.dtype), graph.tolerance, graph.prepared
    prepared.say(f"writing {path.name}" + ("" if prepared.kept else TRACING))
    with _explained(path):
        operators = exporter.write(prepared, partial)
        prepared.say(f"checking {path.name}")
        worst = _difference(exporter.load(partial), graph.pairs)
    if worst > allowed:
        raise RoutespaceError(
            f"{path}: the exported network differs from the original by {worst:.1e} (allowed in {dtype}: "
            f"{allowed:.0e}); nothing was written, please report recipe and versions"
        )
    return ExportReport(path, worst, dict(sorted(operators.items())), partial.stat().st_size, dtype, allowed)


def _difference(loaded: LoadedNet, pairs: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> float:
    """The greatest difference of what a file gives to what the network gave, over images and outputs.

    Of the least images (see `checked_sizes`) a tenth of it counts.
    """
    found = [dict(zip(loaded.names, loaded.run(images), strict=True)) for images, _ in pairs]
    differ = [difference(expected, given) for (_, expected), given in zip(pairs, found, strict=True)]
    return max(*differ[:2], *(one / FEW_TOKENS for one in differ[2:]))


def _by_name(names: Sequence[str], outputs: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
    given = outputs if isinstance(outputs, tuple) else (outputs,)
    return dict(zip(names, given, strict=True))


def _about(net: TaskNet, size: tuple[int, int], regions: Mapping[str, _Graph]) -> dict[str, str]:
    """What every first file tells."""
    step = side_step(net)
    more = {} if step is None else {"side_step": str(step), "least_side": str(least_side(net))}
    if regions:
        files = {name: graph.path.name for name, graph in regions.items()}
        digest = next(iter(regions.values())).prepared.metadata[NETWORK]
        more |= {REGIONS: json_text(files, indent=None), NETWORK: digest}
    return {
        "format": FORMAT,
        "grid": net.spec.hash,
        "architecture": net.architecture.hash,
        "image_size": json_text(list(size), indent=None),
        **more,
        "outputs": json_text(list(net.head.names), indent=None),
        "versions": json_text(_versions(), indent=None),
        "rates": json_text(list(net.spec.output_rates), indent=None),
        **({"head": json_text(_head_data(net), indent=None)} if is_known(net.head) else {}),
    }


def _versions() -> dict[str, str]:
    """What wrote the file, as cards have it: another torch may not read a `.pt2`."""
    return versions_of("routespace") | {"torch": str(torch.__version__)}


def _head_data(net: TaskNet) -> dict[str, Any]:
    """The head, and the rates that are reached where some are not: boxes are made of raw tensors by them."""
    architecture = net.architecture
    reached = {"reached": list(architecture.output_rates)} if architecture.missing_rates else {}
    return head_data(net.head) | reached


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
