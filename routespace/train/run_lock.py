"""One training at a time in a run folder: held for its length, refuse_held before the work that begins it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from routespace.errors import BundleError
from routespace.files import made_folder

LOCK = ".lock"  # in the folder while somebody trains in it; the system frees it when that process is killed


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """A block during which no other process trains in a folder; it is made, and goes again if it stays empty.

    Raises:
        BundleError: another process trains in it, or it cannot be written.
    """
    lock = FileLock(folder / LOCK)
    with made_folder(folder):
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise _busy(folder) from error
        except OSError as error:
            raise BundleError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
        try:
            yield
        finally:
            with suppress(OSError):  # while it is held: whoever opens the file next makes a new one
                (folder / LOCK).unlink()
            lock.release(force=True)


def refuse_held(folder: Path) -> None:
    """Raise BundleError when another process trains in a folder: asked before torch and data are loaded."""
    if not (folder / LOCK).exists():
        return
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise _busy(folder) from error
    except OSError:
        return  # told when something is to be written
    lock.release(force=True)


def _busy(folder: Path) -> BundleError:
    return BundleError(f"{folder}: another process is training in it; wait for it to end, or choose another --out")
