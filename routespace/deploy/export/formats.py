"""Every format that a network can be exported to, in one table. No torch: names are known without it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from routespace.deploy.export.base import Exporter
from routespace.deploy.export.onnx import onnx_exporter
from routespace.deploy.export.pt2 import PT2
from routespace.errors import SpecError

EXPORTERS: Mapping[str, Exporter] = {exporter.name: exporter for exporter in (onnx_exporter(), PT2)}


def exporter_named(name: str) -> Exporter:
    """The format of a name; raises SpecError for others."""
    if name not in EXPORTERS:
        raise SpecError(f"format: {name!r:.80} is not known; give one of {', '.join(EXPORTERS)}")
    return EXPORTERS[name]


def exporter_of(path: Path | str) -> Exporter:
    """The format that a file's ending names; raises SpecError for others."""
    suffix = Path(path).suffix
    for exporter in EXPORTERS.values():
        if exporter.suffix == suffix:
            return exporter
    endings = ", ".join(exporter.suffix for exporter in EXPORTERS.values())
    raise SpecError(f"path: {Path(path).name!r:.80} has the ending of no known format; give one of {endings}")
