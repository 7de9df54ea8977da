"""torch's own `.pt2` (torch.export). What the file tells of the network is its extra file `metadata.json`."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routespace.deploy.export.base import Exporter, LoadedNet, Prepared
from routespace.files import json_text
from routespace.logs import quieted

if TYPE_CHECKING:
    from torch import Tensor

METADATA = "metadata.json"


def _write(prepared: Prepared, path: Path) -> Mapping[str, int]:
    """See Exporter."""
    import torch

    program = prepared.traced().program
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about channels-last weights, which are written as they are
        content = io.BytesIO()  # torch's own writer ends the whole process where a disk is full
        torch.export.save(program, content, extra_files={METADATA: json_text(dict(prepared.metadata))})
    path.write_bytes(content.getbuffer())
    calls = (node for node in program.graph.nodes if node.op == "call_function")
    return Counter(str(node.target).removeprefix("aten.") for node in calls)


def _load(path: Path, device: str | None = None) -> LoadedNet:
    """The program as torch runs it; without a device on the one that it was traced on. Images are moved there."""
    import torch
    from torch.export.passes import move_to_device_pass

    from routespace.nn.running import pick_device

    extra = {METADATA: ""}
    # Of a damaged file torch also logs what it raises, with a traceback; here it is raised alone.
    with quieted("torch.export", logging.CRITICAL):
        program = torch.export.load(path, extra_files=extra)
    if device is not None:
        program = move_to_device_pass(program, pick_device(device))
    # Guards hold what was true of the traced images, such as that a map has two tokens a side; `export` has run
    # the smallest images without them. Sizes that the file does not take are refused all the same.
    metadata, module = json.loads(extra[METADATA] or "{}"), program.module(check_guards=False)
    weight = next(module.parameters())

    def run(images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            found = module(images.to(weight.device, weight.dtype))
        return (found,) if isinstance(found, torch.Tensor) else tuple(found)

    return LoadedNet(tuple(json.loads(metadata.get("outputs", "[]"))), metadata, run, _batch(program))


def _batch(program: Any) -> int | None:
    """How many images a program takes at once; None for any number."""
    inputs = program.graph_signature.user_inputs
    fed = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs)
    count = fed.meta["val"].shape[0]
    return count if isinstance(count, int) else None


PT2 = Exporter(
    name="pt2",
    suffix=".pt2",
    needs=(),
    runs_with=(),
    types=("float32", "bfloat16", "float16", "float64"),
    write=_write,
    load=_load,
)
