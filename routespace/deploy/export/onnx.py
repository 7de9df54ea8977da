"""ONNX, for ONNX Runtime and many others. What the file tells of the network stands in its `metadata_props`."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routespace.deploy.export.base import Exporter, LoadedNet, Prepared

if TYPE_CHECKING:
    from torch import Tensor

ERRORS_ONLY = 3  # of ONNX Runtime's levels of logging


def _write(prepared: Prepared, path: Path, *, opset: int | None) -> Mapping[str, int]:
    """See Exporter."""
    import onnx
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # Fused attention lays its result out differently from the plain products into which the exporter takes it
    # apart, and the views behind it would no longer fit (SwinV2); so it is traced as plain products.
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about its own internals
        program = torch.onnx.export(
            prepared.module,
            (prepared.images,),
            input_names=["images"],
            output_names=list(prepared.module.names),
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            opset_version=opset,
            dynamo=True,
            verbose=False,
            external_data=False,
        )
    assert program is not None
    program.model.metadata_props.update(prepared.metadata)
    program.save(str(path), external_data=False)
    return Counter(node.op_type for node in _nodes(onnx.load(str(path)).graph))


def _nodes(graph: Any) -> Iterator[Any]:
    """Every node of an ONNX graph, those of sub-graphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _load(path: Path) -> LoadedNet:
    """The network as ONNX Runtime computes it on the CPU."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    dtype = torch.float16 if session.get_inputs()[0].type == "tensor(float16)" else torch.float32

    def run(images: Tensor) -> tuple[Tensor, ...]:
        fed = {"images": images.to("cpu", dtype).numpy()}
        return tuple(torch.from_numpy(found) for found in session.run(None, fed))

    names = tuple(output.name for output in session.get_outputs())
    return LoadedNet(names, dict(session.get_modelmeta().custom_metadata_map), run)


def onnx_exporter(*, opset: int | None = None) -> Exporter:
    """The format, of an ONNX operator set; torch's default without a number."""
    return Exporter(
        name="onnx",
        suffix=".onnx",
        needs=("onnx", "onnxscript", "onnxruntime"),
        types=("float32", "float16"),  # it has no convolutions of others on a CPU
        write=partial(_write, opset=opset),
        load=_load,
    )
