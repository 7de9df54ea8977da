"""Texts as they are printed and written: names that are no UTF-8, and tables of comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

import typer

BOXES_SHOWN = 20  # characters that no font has


def printable(text: str) -> str:
    """A text whose bytes that are no UTF-8, as in old file names, are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def tell_boxes(names: Iterable[str], *, several: bool = False) -> None:
    """Say on stderr which characters of names boxes stand for in a picture; `several` as in `boxes_in`."""
    strange = [name for name in names if not name.isascii()]
    if not strange:
        return
    from routespace.draw.fonts import boxes_in  # matplotlib takes a second

    boxes = boxes_in(strange, several=several)
    if boxes:
        more = " …" if len(boxes) > BOXES_SHOWN else ""
        line = (
            f"warning: no font of this machine has {' '.join(boxes[:BOXES_SHOWN])}{more}, so boxes stand for them "
            f"in what is drawn; install a font of that script, such as one of Noto's"
        )
        typer.echo(line, err=True)


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Rows as lines of comma-separated values."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def csv_bytes(text: str) -> bytes:
    """What a file of such lines holds: file names as the file system has them."""
    return text.encode("utf-8", "surrogateescape")
