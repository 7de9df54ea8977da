"""Bundle folders as places: what one is, and where one may be written. No torch, so that it is asked first."""

from __future__ import annotations

import os
from pathlib import Path

from routespace import file_names
from routespace.errors import BundleError
from routespace.files import require_place


def is_bundle(folder: Path | str) -> bool:
    """True for a folder that holds a bundle's card."""
    return (Path(folder) / file_names.CARD).is_file()


def require_bundle_place(folder: Path | str, *, overwrite: bool = False) -> None:
    """Raise BundleError when no bundle can be saved there: asked before the work that makes it.

    Args:
        folder: where to; it must not exist, be empty, or be a bundle to overwrite.
        overwrite: replace an existing bundle.
    """
    folder = Path(os.path.abspath(folder))
    if not os.path.lexists(folder):
        require_place(folder)
        return
    if not folder.is_dir():
        raise BundleError(f"{folder}: is a file; give a folder for the bundle")
    try:
        empty = not any(folder.iterdir())
    except OSError as error:
        raise BundleError(f"{folder}: cannot be read ({error.strerror}); choose another folder") from error
    if empty:
        return
    if not is_bundle(folder):
        raise BundleError(f"{folder}: exists and is no bundle; it is not replaced, give a new folder")
    if not overwrite:
        raise BundleError(
            f"{folder}: holds a bundle already; give a new folder, or replace it with --overwrite (overwrite=True)"
        )
