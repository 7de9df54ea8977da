"""The files beside an exported file, which hold what its network computes of regions. No torch.

    model.onnx  model.boxes.onnx  model.masks.onnx

The first names the others in its metadata, and all of them name the network whose weights they hold, so that a
file of another one is not taken for theirs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from routespace.deploy.export.base import LoadedNet
from routespace.errors import BundleError

NETWORK = "network"  # metadata of all: a digest of its weights
REGIONS = "regions"  # of the first: name → file
REGION, FIRST = "region", "first"  # of the others: its name, and the first file's


def region_path(path: Path, name: str) -> Path:
    """The place of the file of some regions beside that of the image's graph."""
    return path.with_name(f"{path.stem}.{name}{path.suffix}")


def is_region_file(path: Path) -> bool:
    """Whether a file is named like one beside an exported file that is there."""
    first = Path(path.stem)
    return bool(first.suffix) and path.with_name(f"{first.stem}{path.suffix}").is_file()


def require_first(path: Path, metadata: Mapping[str, str]) -> None:
    """Raise BundleError for a file that holds only what is computed of regions."""
    if REGION in metadata:
        first = path.with_name(Path(metadata.get(FIRST, "")).name)
        raise BundleError(
            f"{path}: holds only what a network computes of regions ({metadata[REGION]:.40}); give {first}"
        )


def load_regions(
    path: Path, metadata: Mapping[str, str], load: Callable[[Path], LoadedNet]
) -> dict[str, LoadedNet]:
    """What lies beside a file, by name; of most files nothing.

    Args:
        path: the first file.
        metadata: of it.
        load: reads one of the others.

    Raises:
        BundleError: one is not there, is damaged, or belongs to another network.
    """
    if REGIONS not in metadata:
        return {}
    try:
        names = {str(name): str(file) for name, file in dict(json.loads(metadata[REGIONS])).items()}
    except (ValueError, TypeError) as error:
        raise BundleError(f"{path}: its metadata cannot be read ({error}); export it again") from error
    found = {}
    for name, file in names.items():
        beside = path.with_name(Path(file).name)  # a file names no place elsewhere
        if not beside.is_file():
            raise BundleError(
                f"{path}: its file of {name}, {beside.name}, is not beside it; copy both, or export it again"
            )
        loaded = load(beside)
        if (loaded.metadata.get(NETWORK), loaded.metadata.get(REGION)) != (metadata.get(NETWORK), name):
            raise BundleError(
                f"{beside}: is not the file of {name} that belongs to {path.name}, but of another network; copy "
                f"both from one place, or export it again"
            )
        found[name] = loaded
    return found
