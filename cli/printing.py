"""Texts as they are printed and written: names that are no UTF-8, and tables of comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def printable(text: str) -> str:
    """A text whose bytes that are no UTF-8, as in old file names, are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Rows as lines of comma-separated values."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def csv_bytes(text: str) -> bytes:
    """What a file of such lines holds: file names as the file system has them."""
    return text.encode("utf-8", "surrogateescape")
