"""Mending a journal file: a worker that was killed while it wrote leaves a line that is not whole.

Optuna appends records, one JSON object a line. A torn last line is passed over when reading, but the next record
is then written behind it, and nobody can read that line or any after it.
"""

from __future__ import annotations

import json
from pathlib import Path

from optuna.storages.journal import JournalFileSymlinkLock

from routespace.files import write_bytes

RECORD = b'{"op_code"'  # how each record begins


def mend_journal(path: Path) -> int:
    """Cut off what killed writers left half-written; the records of others behind it are kept.

    Args:
        path: a journal file; workers that are writing to it are waited for.

    Returns:
        The number of lines that were cut or shortened.
    """
    content = path.read_bytes()
    if not content.startswith(RECORD) and not RECORD.startswith(content):
        return 0  # another file: whoever opens it will say so
    if not _torn(content):
        return 0  # the usual case waits for nobody
    lock = JournalFileSymlinkLock(str(path))  # optuna's own; after 30 s it takes a killed worker's
    lock.acquire()
    try:
        content = path.read_bytes()
        torn = _torn(content)
        if torn:
            whole = [line for line in map(_whole, content.split(b"\n")) if line]
            write_bytes(path, b"".join(line + b"\n" for line in whole))
        return torn
    finally:
        lock.release()


def _torn(content: bytes) -> int:
    """Number of lines that are no record, a last one without its end among them."""
    *lines, last = content.split(b"\n")
    return sum(bool(line) and _whole(line) != line for line in lines) + bool(last)


def _whole(line: bytes) -> bytes:
    """A record as it is; of a torn one with another behind it, that one; else nothing."""
    while line:
        try:
            json.loads(line)
        except ValueError:
            start = line.find(RECORD, 1)
            line = line[start:] if start > 0 else b""
        else:
            return line
    return b""
