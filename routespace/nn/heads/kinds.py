"""Every kind of head by its name: one entry here lets networks with it be saved and loaded.

A head's module is imported when it is asked for: detectors load torchvision, and with it torch's compiler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from routespace.errors import BundleError, SpecError
from routespace.grid.spec import GridSpec
from routespace.nn.heads.base import Head
from routespace.nn.heads.regions import ComputeRegions

if TYPE_CHECKING:
    from routespace.nn.heads.detector import Detector

# kind → the module, and the class there
HEADS = {
    "classify": ("routespace.nn.heads.classify", "Classifier"),
    "maps": ("routespace.nn.heads.base", "Maps"),
    "semantic": ("routespace.nn.heads.semantic", "PixelClassifier"),
    "detect": ("routespace.nn.heads.detect", "DetectHead"),
    "instance": ("routespace.nn.heads.instance", "InstanceHead"),
}


def head_class(kind: str) -> type[Head]:
    """The class of a kind that HEADS has."""
    module, name = HEADS[kind]
    found: type[Head] = getattr(import_module(module), name)
    return found


def make_head(spec: GridSpec, data: Any) -> Head:
    """The head that `head_data` described, with fresh weights.

    Raises:
        SpecError: an unknown kind, or settings that do not fit.
    """
    if not isinstance(data, Mapping) or data.get("kind") not in HEADS:
        kind = data.get("kind") if isinstance(data, Mapping) else data
        raise SpecError(f"head.kind: {kind!r:.40} is not known; this version knows {', '.join(HEADS)}")
    settings = {name: value for name, value in data.items() if name != "kind"}
    with torch.inference_mode(False):  # whoever loads it at inference may train it later
        return head_class(data["kind"]).build(spec, settings)


def decoder_of(rates: Any, data: Any, regions: Mapping[str, ComputeRegions] | None = None) -> Detector:
    """What makes objects of the raw tensors of an exported file, by what the file tells; it needs no weights.

        decoder = decoder_of(json.loads(metadata["rates"]), json.loads(metadata["head"]), file.region_runs())
        decoder.detections_of(file.run(images), [(H, W)] * B)

    Args:
        rates: of the grid's output maps.
        data: as the file tells it: as `head_data`, and `reached` where the network reaches only some of the rates.
        regions: of Mask R-CNN, which computes on from its tensors: `boxes` and `masks`, as the files beside the
            first one hold them.

    Raises:
        SpecError: no detector, or its regions are missing.
    """
    from routespace.nn.heads.detect import DetectHead
    from routespace.nn.heads.instance import BOXES, MASKS, InstanceHead

    kind = data.get("kind") if isinstance(data, Mapping) else data
    if kind not in (DetectHead.kind, InstanceHead.kind) or not isinstance(rates, Sequence):
        raise SpecError(f"head: kind {kind!r:.40} makes no boxes; give a file of a detector")
    settings = {name: value for name, value in data.items() if name not in ("kind", "reached")}
    reached = data.get("reached", rates)
    if kind == DetectHead.kind:
        return DetectHead.decoder(rates, settings).over(reached)
    missing = [name for name in (BOXES, MASKS) if name not in (regions or {})]
    if missing:
        raise SpecError(
            f"head: a file of kind 'instance' ends at the proposals, and there is nothing that computes their "
            f"{' and '.join(missing)}; export the network again, or give the run or bundle that it came from"
        )
    return InstanceHead.decoder(rates, settings, regions or {}).over(reached)


def is_known(head: Head) -> bool:
    """Whether a network with this head can be loaded again."""
    kind = getattr(head, "kind", None)
    return kind in HEADS and head_class(kind) is type(head)


def head_data(head: Head) -> dict[str, Any]:
    """Kind and settings of a head as JSON data; raises BundleError for a module that is no known head."""
    if not is_known(head):
        raise BundleError(f"head: a {type(head).__name__} cannot be loaded again; give one of {', '.join(HEADS)}")
    return {"kind": head.kind, **head.settings()}
