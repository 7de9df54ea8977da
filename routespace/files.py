"""Every read and write of a file: whole or not at all, and an error of one line.

    write_json(path, data)                  JSON that every reader takes: what is not finite becomes null
    with replaced(path) as partial: …       a file that something else writes, such as a figure
    with replaced_folder(path) as partial: …    a folder of files that belong together
    read_json(path, wanted="a run's usage.json")

What is written stands beside its place first, is flushed to the disk and then renamed: after a full disk or an
interrupt there is the old file or the new one, never a half one, and nothing else is left behind.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from routespace.errors import BundleError, RoutespaceError

FILE_MODE = 0o644  # temporary files are made for their owner only
FOLDER_MODE = 0o755
SHOWN_NAME = 40  # letters of a file's name in that of the folder of what is not finished
ASKED = ".asked."  # begins the names of folders that are there for a moment, to see whether one can write


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file; raises BundleError when its folder or disk does not allow it."""
    with replaced(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path | str, text: str) -> None:
    """Write a text file as UTF-8; raises BundleError when its folder or disk does not allow it."""
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path | str, data: Any) -> None:
    """Write data as JSON; raises BundleError when its folder or disk does not allow it."""
    write_text(path, json_text(data) + "\n")


def json_text(data: Any, *, indent: int | None = 1) -> str:
    """Data as JSON. Numbers that are not finite become null: JSON has no words for them."""
    return json.dumps(_finite(data), indent=indent, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return data


def read_json(path: Path | str, *, wanted: str, error: type[RoutespaceError] = BundleError) -> Any:
    """The JSON in a file.

    Args:
        path: the file.
        wanted: what to give instead, for the message: "a run's usage.json".
        error: what to raise.

    Raises:
        RoutespaceError: of the type `error`, when the file cannot be read or is not JSON.
    """
    return _parsed(path, json.loads, "JSON", wanted, error)


def as_whole(number: Any) -> Any:
    """A number of JSON without a fraction as an int, such as 128.0; anything else as it is."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def read_text(path: Path | str, *, wanted: str, error: type[RoutespaceError] = BundleError) -> str:
    """The text in a UTF-8 file; `wanted` and `error` as in `read_json`.

    Raises:
        RoutespaceError: of the type `error`, when the file cannot be read or is no text.
    """
    return str(_parsed(path, str, "text", wanted, error))


def _parsed(
    path: Path | str, parse: Callable[[str], Any], kind: str, wanted: str, error: type[RoutespaceError]
) -> Any:
    try:
        return parse(Path(path).read_text(encoding="utf-8-sig"))  # some programs put a mark before the text
    except OSError as cause:
        raise error(f"{path}: cannot be read ({_reason(cause)}); give {wanted}") from cause
    except (ValueError, RecursionError) as cause:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        reason = str(cause).splitlines()[0]
        raise error(
            f"{path}: is not {kind} ({reason}), so it is damaged or another file; give {wanted}"
        ) from cause


@contextmanager
def replaced(path: Path | str) -> Iterator[Path]:
    """A path of the same name elsewhere, whose file takes the place of `path` when the block ends well.

    Missing parents are made. When the block fails, they go again and the old file stays.

    Raises:
        BundleError: the folder cannot be written, the disk is full, or `path` is not a file's.
    """
    path = Path(path)
    with _writing(path), _beside(path) as folder:
        partial = folder / path.name
        yield partial
        partial.chmod(FILE_MODE)
        _flush(partial)
        partial.replace(path)
        _flush_names(path.parent)


@contextmanager
def replaced_folder(path: Path | str) -> Iterator[Path]:
    """An empty folder elsewhere that takes the place of `path` when the block ends well.

    Whatever `path` held goes then: the caller has asked whether it may. When the block fails, it stays.

    Raises:
        BundleError: the folder's parent cannot be written, the disk is full, or `path` is a file.
    """
    path = Path(path)
    with _writing(path), _beside(path) as folder:
        partial = folder / path.name
        partial.mkdir()
        try:
            yield partial
        except BundleError as error:
            if isinstance(error.__cause__, OSError) and str(folder) in str(error):
                raise error.__cause__ from None  # of a file inside: nobody knows that place
            raise
        partial.chmod(FOLDER_MODE)
        _swap(partial, path, aside=folder / f"{path.name}.old")
        _flush_names(path.parent)


@contextmanager
def undone(folder: Path | str, *, unless: Path) -> Iterator[None]:
    """A block that makes a folder, or fills an empty one: when it fails, the folder is as it was.

    Args:
        folder: it must not exist, or be empty.
        unless: a path; once it exists, what is there is worth keeping.
    """
    folder = Path(folder)
    was_there, made = folder.is_dir(), _missing_parents(folder)
    try:
        yield
    except BaseException:
        if not unless.exists():
            for path in list(folder.iterdir()) if folder.is_dir() else []:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            _remove_empty([] if was_there else [folder, *made])
        raise


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """A block with a folder, made where it is not there; one that was made and stays empty goes again.

    Raises:
        BundleError: it cannot be made.
    """
    made = _missing_parents(folder / "file")
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        _to_the_end(lambda: _remove_empty(made))


def require_place(path: Path | str) -> None:
    """Raise BundleError when no file can be written at `path`: asked before the work whose result goes there.

    Nothing that is missing is made for that, nor removed again under the hands of another process that uses it:
    the missing part of the path is tried inside a folder of its own, in the nearest parent that is there.
    """
    path = Path(path)
    with _writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        _ask(path.parent, path.name)


def require_folder(folder: Path | str) -> None:
    """Raise BundleError when nothing can be written in a folder, which may be missing: asked before the work."""
    folder = Path(folder)
    with _writing(folder / "file"):
        _ask(folder, "file")


def _ask(folder: Path, name: str) -> None:
    there = next((f for f in (folder, *folder.parents) if os.path.lexists(f)), Path())
    asked = Path(tempfile.mkdtemp(prefix=ASKED, dir=there))
    try:
        place = asked / folder.relative_to(there)
        place.mkdir(parents=True, exist_ok=True)
        Path(_folder_for(name, place), name).touch()  # as `_beside` does
    finally:
        _to_the_end(lambda: shutil.rmtree(asked, ignore_errors=True))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the system says about a failed write into one line."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise BundleError(f"{path}: is a device or a pipe; give a file")
        yield
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be written ({_reason(error)}); nothing was left behind, choose another place"
        ) from error


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A folder next to `path` for what is not finished; it goes, as new parents do when the block fails."""
    made = _missing_parents(path)
    folder: Path | None = None

    def tidy() -> None:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if not path.exists():
            _remove_empty(made)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(_folder_for(path.name, path.parent))
        yield folder
    finally:
        _to_the_end(tidy)


def _folder_for(name: str, place: Path) -> str:
    """A new folder for what is not finished. Its name is short: a file's may be as long as a system allows."""
    return tempfile.mkdtemp(prefix=f".{name[:SHOWN_NAME]}.", dir=place)


def _to_the_end(tidy: Callable[[], None]) -> None:
    """Tidy up, and begin again where an interrupt comes in the middle of it; then that is raised."""
    try:
        tidy()
    except KeyboardInterrupt:
        tidy()
        raise


def _missing_parents(path: Path) -> list[Path]:
    """The parents of a path that are not there, the innermost first."""
    return [parent for parent in path.parents if not os.path.lexists(parent)]


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, the innermost first; one that somebody else has used meanwhile stays, and its parents."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _swap(partial: Path, path: Path, *, aside: Path) -> None:
    """Put a finished folder in its place; what is there goes aside first, and back if that fails."""
    if not path.exists() or not any(path.iterdir()):
        partial.replace(path)
        return
    try:
        path.replace(aside)
        partial.replace(path)
    except BaseException:
        if aside.exists() and not path.exists():
            aside.replace(path)
        raise


def _flush(path: Path, flags: int = os.O_RDWR) -> None:
    """Wait until a file's content is on the disk."""
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_names(folder: Path) -> None:
    """Wait until a folder's names are on the disk, where the system can say so: Windows opens no folders."""
    with suppress(OSError):
        _flush(folder, os.O_RDONLY)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
