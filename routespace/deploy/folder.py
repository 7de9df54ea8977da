"""Folders as places: what a bundle is, where one may be written, where a network lies. No torch: asked first."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from routespace import file_names
from routespace.errors import BundleError, command_line
from routespace.files import require_place


def is_bundle(folder: Path | str) -> bool:
    """True for a folder that holds a bundle's card."""
    return (Path(folder) / file_names.CARD).is_file()


def is_series(folder: Path | str) -> bool:
    """True for a folder that holds the table of several bundles."""
    return (Path(folder) / file_names.SERIES).is_file()


def require_bundle_place(folder: Path | str, *, overwrite: bool = False) -> None:
    """Raise BundleError when no bundle can be saved there: asked before the work that makes it.

    Args:
        folder: where to; it must not exist, be empty, or be a bundle to overwrite.
        overwrite: replace an existing bundle.
    """
    _require_place(Path(os.path.abspath(folder)), "bundle", is_bundle, overwrite=overwrite)


def require_series_place(folder: Path | str, *, overwrite: bool = False) -> None:
    """Raise BundleError when no series of bundles can be saved there: asked before the work that makes it.

    Args:
        folder: where to; it must not exist, be empty, or be a series to overwrite.
        overwrite: replace an existing series.
    """
    _require_place(Path(os.path.abspath(folder)), "series", is_series, overwrite=overwrite)


def _require_place(folder: Path, kind: str, is_one: Callable[[Path], bool], *, overwrite: bool) -> None:
    """Raise BundleError unless nothing is there, or one of this kind to overwrite."""
    if not os.path.lexists(folder):
        require_place(folder)
        return
    if not folder.is_dir():
        raise BundleError(f"{folder}: is a file; give a folder for the {kind}")
    try:
        empty = not any(folder.iterdir())
    except OSError as error:
        raise BundleError(f"{folder}: cannot be read ({error.strerror}); choose another folder") from error
    if empty:
        return
    if not is_one(folder):
        raise BundleError(f"{folder}: exists and is no {kind}; it is not replaced, give a new folder")
    if not overwrite:
        raise BundleError(
            f"{folder}: holds a {kind} already; give a new folder, or replace it with --overwrite (overwrite=True)"
        )


def series_hint(folder: Path) -> str:
    """What to give in place of a series."""
    first = next(iter(sorted(place.parent for place in folder.glob(f"*/{file_names.CARD}"))), folder / "NAME")
    return f"is a series of networks; give one of them, such as {first}"


def require_export_place(folder: Path | str, suffixes: Iterable[str], *, overwrite: bool = False) -> None:
    """Raise BundleError when exported files cannot be written, or would replace others: asked before the work.

    Args:
        folder: where to.
        suffixes: of the formats, such as `.onnx`.
        overwrite: replace what is there.
    """
    for suffix in suffixes:
        first = Path(folder) / f"model{suffix}"
        there = sorted(first.parent.glob(f"model*{suffix}"))  # a file of a detector has others beside it
        if there and not overwrite:
            raise BundleError(
                f"{there[0]}: exists; give another folder, or replace it with --overwrite (overwrite=True)"
            )
        require_place(first)


def net_folder(folder: Path) -> Path:
    """Where a run (`net/`) or a bundle (itself) keeps its network.

    Raises:
        BundleError: neither; the message tells what is there instead.
    """
    for place in (folder / file_names.NET, folder):
        if (place / file_names.NETWORK).exists():
            return place
    if (folder / file_names.RECIPE).exists():
        again = command_line("train", folder, "--resume")
        raise BundleError(f"{folder}: the run is not finished; it goes on with: {again}")
    if is_series(folder):
        raise BundleError(f"{folder}: {series_hint(folder)}")
    if (folder / file_names.STUDY).exists():
        trial = folder / "trials" / "0000"
        raise BundleError(f"{folder}: is a study; give one of its trials' folders, such as {trial}")
    state = "is a file" if folder.is_file() else "has no network" if folder.exists() else "does not exist"
    raise BundleError(f"{folder}: {state}; give the folder of a finished run or of a bundle")
