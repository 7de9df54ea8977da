"""Reading an exported file again, whatever its format. No torch here: ONNX files run without it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from routespace.checked import checked
from routespace.deploy.export.base import LoadedNet
from routespace.deploy.export.formats import exporter_of
from routespace.deploy.export.packages import first_line, pass_interrupts, require
from routespace.deploy.export.region_files import load_regions
from routespace.errors import BundleError, RoutespaceError


@checked
def load_exported(path: Path | str, *, device: str | None = None) -> LoadedNet:
    """An exported network, to be called with images: (N, C, H, W) → logits (N, classes).

    Args:
        path: the file.
        device: where to run: `auto`, `cpu`, `cuda` or `cuda:1`; None for the format's own choice.

    Raises:
        SpecError: a file of no known format, or a device that its runtime does not compute on.
        MissingDependencyError: a package that the format needs is not installed.
        BundleError: the file cannot be read, or one that belongs to it (`LoadedNet.regions`).
    """
    loaded = _loaded(Path(path), device)
    regions = load_regions(Path(path), loaded.metadata, partial(_loaded, device=device))
    return replace(loaded, regions=regions) if regions else loaded


def _loaded(path: Path, device: str | None) -> LoadedNet:
    """One file by itself."""
    exporter = exporter_of(path)
    if not path.is_file():
        raise BundleError(f"{path}: no such file; give one that `export` wrote")
    require(exporter.runs_with, f"running {exporter.suffix} files")
    try:
        return exporter.load(path, device)
    except RoutespaceError:
        raise
    except Exception as error:  # each runtime has exceptions of its own
        pass_interrupts(error)
        raise BundleError(
            f"{path}: cannot be read ({first_line(error)}); it is damaged or another file"
        ) from error
