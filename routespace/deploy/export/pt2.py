"""torch's own `.pt2` (torch.export). What the file tells of the network is its extra file `metadata.json`."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from routespace.deploy.export.base import Exporter, LoadedNet, Prepared
from routespace.files import json_text

if TYPE_CHECKING:
    from torch import Tensor

METADATA = "metadata.json"


def _write(prepared: Prepared, path: Path) -> Mapping[str, int]:
    """See Exporter."""
    import torch

    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(prepared.module, (prepared.images,), dynamic_shapes=shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about channels-last weights, which are written as they are
        torch.export.save(program, path, extra_files={METADATA: json_text(dict(prepared.metadata))})
    calls = (node for node in program.graph.nodes if node.op == "call_function")
    return Counter(str(node.target).removeprefix("aten.") for node in calls)


def _load(path: Path) -> LoadedNet:
    """The program as torch runs it, on the device that it was traced on, where images are moved."""
    import torch

    extra = {METADATA: ""}
    module = torch.export.load(path, extra_files=extra).module()
    metadata, weight = json.loads(extra[METADATA] or "{}"), next(module.parameters())

    def run(images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            found = module(images.to(weight.device, weight.dtype))
        return (found,) if isinstance(found, torch.Tensor) else tuple(found)

    return LoadedNet(tuple(json.loads(metadata.get("outputs", "[]"))), metadata, run)


PT2 = Exporter(
    name="pt2",
    suffix=".pt2",
    needs=(),
    types=("float32", "bfloat16", "float16", "float64"),
    write=_write,
    load=_load,
)
