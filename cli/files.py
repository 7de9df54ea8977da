"""Reading and writing files so that an error is one clear line and nothing is left half-written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from routespace.errors import SpecError


def read_json(path: Path, wanted: str) -> Any:
    """The JSON in a file.

    Raises:
        SpecError: it cannot be read or is not JSON; `wanted` tells what was expected.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}); give {wanted}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(f"{path}: is not JSON ({reason}); give {wanted}") from error


def write_json(path: Path, data: Any) -> None:
    """Write data as JSON, completely or not at all."""
    with replaced(path) as partial:
        partial.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A new file next to `path` that takes its place when the block ends well, and vanishes when not.

    Raises:
        OSError: naming `path`, when its folder cannot be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; choose another output", str(path)) from error
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)  # mkstemp's files are for their owner only
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; nothing was written", str(path)) from error
    finally:
        partial.unlink(missing_ok=True)
