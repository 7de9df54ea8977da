"""ONNX, for ONNX Runtime and many others. What the file tells of the network stands in its `metadata_props`."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routespace.deploy.export.base import Exporter, LoadedNet, Prepared
from routespace.errors import SpecError
from routespace.logs import quieted

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

ERRORS_ONLY = 3  # of ONNX Runtime's levels of logging
CONVERTING = 2.3  # what follows takes so many times as long as the tracing
TOLD_S = 5  # and more: shorter waits need no word


def _write(prepared: Prepared, path: Path, *, opset: int | None) -> Mapping[str, int]:
    """See Exporter."""
    import onnx
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # Fused attention lays its result out differently from the plain products into which the exporter takes it
    # apart, and the views behind it would no longer fit (SwinV2). A trace has it whole, however it was run.
    with sdpa_kernel(SDPBackend.MATH), quieted("onnxscript"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the exporter and its optimiser say of their own internals
        traced, seconds = prepared.traced()
        calls = sum(node.op == "call_function" for node in traced.graph.nodes)
        rest = CONVERTING * seconds
        more = f", which takes about {rest:.0f} s" if rest >= TOLD_S else ""  # true however often it is told
        prepared.say(f"turning {calls} operators into those of ONNX{more}")
        program = torch.onnx.export(
            traced,
            (prepared.images,),
            input_names=[prepared.fed],
            output_names=list(prepared.names),
            dynamic_shapes=prepared.free(),
            opset_version=opset,
            dynamo=True,
            verbose=False,
            external_data=False,
            optimize=False,
        )
        assert program is not None
        _simplify(program.model)
    program.model.metadata_props.update(prepared.metadata)
    program.save(str(path), external_data=False)
    return Counter(node.op_type for node in _nodes(onnx.load(str(path)).graph))


def _simplify(model: Any) -> None:
    """Fold what is constant and drop what is there twice or not read, in place.

    The exporter's own optimiser also tries its rewriting rules on every node, which takes seven times as long.
    ONNX Runtime has such rules itself, and the networks take the same time without them.
    """
    from onnx_ir.passes import Sequential, common
    from onnxscript.optimizer import fold_constants

    common.InlinePass()(model)
    fold_constants(model, onnx_shape_inference=True)
    Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]  # onnx_ir's
        common.RemoveUnusedOpsetsPass(),
        common.IdentityEliminationPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def _nodes(graph: Any) -> Iterator[Any]:
    """Every node of an ONNX graph, those of sub-graphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _load(path: Path, device: str | None = None) -> LoadedNet:
    """The network as ONNX Runtime computes it on the CPU."""
    if device not in (None, "auto", "cpu"):
        raise SpecError(f"device: {device!r:.40} is not there for .onnx files; they run on the cpu here")
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (fed,) = session.get_inputs()
    dtype = np.float16 if fed.type == "tensor(float16)" else np.float32
    batch = fed.shape[0] if isinstance(fed.shape[0], int) else None  # a free one has a name

    def compute(images: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(session.run(None, {fed.name: images.astype(dtype, copy=False)}))

    def run(images: Tensor) -> tuple[Tensor, ...]:
        import torch

        numbers = images.cpu().float().numpy()
        return tuple(torch.from_numpy(found) for found in compute(numbers))

    names = tuple(output.name for output in session.get_outputs())
    return LoadedNet(names, dict(session.get_modelmeta().custom_metadata_map), run, batch, compute)


def onnx_exporter(*, opset: int | None = None) -> Exporter:
    """The format, of an ONNX operator set; torch's default without a number."""
    return Exporter(
        name="onnx",
        suffix=".onnx",
        needs=("onnx", "onnxscript", "onnxruntime"),
        runs_with=("onnxruntime",),
        types=("float32", "float16"),  # it has no convolutions of others on a CPU
        write=partial(_write, opset=opset),
        load=_load,
    )
