"""Taking a network out of Python: ONNX and torch's own `.pt2`, checked against the network before they are kept.

    export_onnx(net, "net.onnx")     images (N, C, H, W) → logits (N, classes); any batch size
    export_pt2(net, "net.pt2")       the same as a torch.export program

A network without classes gives its feature maps, fine to coarse. Gated networks are exported as they compute
densely: every decision is taken, nothing is saved. Files are written next to their place and moved there once
ONNX Runtime (or the loaded program) gives the network's own numbers.
"""

from __future__ import annotations

import importlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from routespace.errors import MissingDependencyError, RoutespaceError, SpecError
from routespace.files import replaced
from routespace.nn.module import PlainModule
from routespace.nn.running import evaluating
from routespace.nn.task_net import AnyNet, as_task_net

TOLERANCE = 1e-4  # of the greatest output, in float32
TRACED_BATCH = 2  # a batch of one would be taken for a constant
CHECKED_BATCHES = (1, 3)
INSTALL = 'pip install "routespace[export]"'


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the file.
        max_difference: greatest absolute difference to the network over the checked batches, over its greatest
            output where that is above 1.
        operators: operator → how often it stands in the graph.
        bytes: size of the file.
    """

    path: Path
    max_difference: float
    operators: Mapping[str, int]
    bytes: int


def export_onnx(
    net: AnyNet,
    path: Path | str,
    *,
    image_size: tuple[int, int] | int | None = None,
    opset: int | None = None,
    tolerance: float = TOLERANCE,
) -> ExportReport:
    """Write an ONNX file with a free batch size, and check it with ONNX Runtime.

    Args:
        net: a static network, or a gated one, which then computes densely. Left in the mode in which it came.
        path: the file.
        image_size: height and width in pixels of the images, or one number; the spec's own by default.
        opset: ONNX operator set; torch's default without it.
        tolerance: greatest difference allowed, over the greatest output where that is above 1.

    Raises:
        MissingDependencyError: onnx, onnxscript or onnxruntime are not installed.
        BundleError: the file cannot be written.
        RoutespaceError: the exported network does not give the network's numbers.
    """
    onnx = _require("onnx", "onnxscript", "onnxruntime")["onnx"]
    path = Path(path)
    # Fused attention lays its result out differently from the plain products into which the exporter takes it
    # apart, and the views behind it would no longer fit (SwinV2); so it is traced as plain products.
    plain = sdpa_kernel(SDPBackend.MATH)
    with _deployed(net) as module, replaced(path) as partial, plain, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about its own internals
        images = example_images(net, TRACED_BATCH, image_size)
        program = _traced(
            path,
            torch.onnx.export,
            module,
            (images,),
            input_names=["images"],
            output_names=list(module.names),
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            opset_version=opset,
            dynamo=True,
            verbose=False,
            external_data=False,
        )
        assert program is not None
        program.save(str(partial), external_data=False)
        operators = Counter(node.op_type for node in _nodes(onnx.load(str(partial)).graph))
        run = _onnx_runtime(partial)
        gap = _compare(module, run, net, image_size, tolerance, path)
        size = partial.stat().st_size
    return ExportReport(path, gap, dict(sorted(operators.items())), size)


def export_pt2(
    net: AnyNet,
    path: Path | str,
    *,
    image_size: tuple[int, int] | int | None = None,
    tolerance: float = TOLERANCE,
) -> ExportReport:
    """Write a `.pt2` program (torch.export) with a free batch size, and check it as loaded.

    The loaded program's module takes images and returns the logits, or a tuple of maps where there are no classes.
    Arguments and errors are those of `export_onnx`, but nothing has to be installed, and the path must end in
    `.pt2` (SpecError), as torch asks.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise SpecError(f"path: {path.name!r} does not end in .pt2, which torch needs to load it; rename it")
    with _deployed(net) as module, replaced(path) as partial, torch.no_grad():
        images = example_images(net, TRACED_BATCH, image_size)
        shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
        program = _traced(path, torch.export.export, module, (images,), dynamic_shapes=shapes)
        torch.export.save(program, partial)
        loaded = torch.export.load(partial).module()
        gap = _compare(module, loaded, net, image_size, tolerance, path)
        calls = (node for node in program.graph.nodes if node.op == "call_function")
        operators = Counter(str(node.target).removeprefix("aten.") for node in calls)
        size = partial.stat().st_size
    return ExportReport(path, gap, dict(sorted(operators.items())), size)


def _traced(path: Path, exporter: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What torch's exporter makes of a module; raises RoutespaceError where it cannot."""
    try:
        return exporter(*arguments, **options)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RoutespaceError(
            f"{path}: torch {torch.__version__} cannot export this network ({reason:.200}); nothing was written"
        ) from error


def example_images(net: AnyNet, batch: int, image_size: tuple[int, int] | int | None = None) -> Tensor:
    """(batch, C, H, W) random images that fit the network, of its type and on its device."""
    size = net.spec.image_size if image_size is None else image_size
    height, width = (size, size) if isinstance(size, int) else size
    weight = next(net.parameters())
    images = torch.randn(
        (batch, net.spec.in_channels, height, width), generator=torch.Generator().manual_seed(batch)
    )
    return images.to(weight.device, weight.dtype)


def _require(*names: str) -> dict[str, Any]:
    """The optional packages; raises MissingDependencyError with the install command."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.import_module(name)
        except ImportError as error:
            raise MissingDependencyError(f"export to ONNX needs {name}; install it with: {INSTALL}") from error
    return found


def _nodes(graph: Any) -> Iterator[Any]:
    """Every node of an ONNX graph, those of sub-graphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _onnx_runtime(path: Path) -> Any:
    """A function from images to the outputs, computed by ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {"images": x.cpu().numpy()})]


@torch.no_grad()
def _compare(
    module: nn.Module,
    run: Callable[[Tensor], Any],
    net: AnyNet,
    image_size: tuple[int, int] | int | None,
    tolerance: float,
    path: Path,
) -> float:
    """The greatest difference of `run` to the module; raises when it is above the tolerance."""
    worst = 0.0
    for batch in CHECKED_BATCHES:
        images = example_images(net, batch, image_size)
        for expected, given in zip(_listed(module(images)), _listed(run(images)), strict=True):
            scale = max(1.0, float(expected.abs().max()))
            gap = float((expected.double().cpu() - given.double().cpu()).abs().max()) / scale
            worst = max(worst, gap) if gap == gap else float("inf")
    if worst > tolerance:
        raise RoutespaceError(
            f"{path}: the exported network differs from the original by {worst:.1e} (allowed: {tolerance:.0e}); "
            f"nothing was written, please report the recipe and the versions"
        )
    return worst


def _listed(outputs: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    """The outputs of a module that returns one or several."""
    return [outputs] if isinstance(outputs, Tensor) else outputs


@contextmanager
def _deployed(net: AnyNet) -> Iterator[PlainModule]:
    """The network as a plain module, dense and in evaluation mode; its own settings return afterwards."""
    with evaluating(net), net.deciding_as(held=None, execution="dense"):
        yield as_task_net(net).as_module().eval()
