"""Which files of a folder are pictures: what hidden names and operating systems leave behind is passed over.

No torch here.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from routespace.errors import DataError
from routespace.pictures import picture_suffixes

__all__ = ["hidden", "is_folder", "pictures_below", "plain_name", "visible"]

# What macOS, Windows and network drives leave behind, in lower case; names with a dot in front are hidden.
LEFT_BEHIND = frozenset(
    {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "@eadir"}
)


def plain_name(text: str) -> str:
    """A name whose accents are written one way: macOS writes them another way than Linux does."""
    return unicodedata.normalize("NFC", text)


def hidden(name: str) -> bool:
    """Whether a file or folder of that name is passed over without a word."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def visible(folder: Path | str) -> list[os.DirEntry[str]]:
    """What a folder holds, by name, without hidden and left-behind things.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with os.scandir(folder) as items:
            found = [item for item in items if not hidden(item.name)]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); allow it, or remove the folder") from error
    return sorted(found, key=lambda item: plain_name(item.name))


def is_folder(item: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link that leads round in a circle is none."""
    try:
        return item.is_dir()
    except OSError:  # Pillow says later why it cannot be read
        return False


def _special(item: os.DirEntry[str]) -> bool:
    """Whether it is a pipe, a socket or a device."""
    try:
        mode = item.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def pictures_below(folder: str, others: Counter[str], inside: tuple[str, ...] = ()) -> Iterator[str]:
    """Every picture below a folder, by name; linked folders are followed.

    Args:
        folder: where to look, at any depth.
        others: files of other kinds are counted here by their endings.
        inside: the folders around it.

    Raises:
        DataError: a folder that cannot be read, or that is a link to one around it.
    """
    real = os.path.realpath(folder)
    if real in inside:
        raise DataError(f"{folder}: is a link to a folder around it; remove the link")
    for item in visible(folder):
        ending = os.path.splitext(item.name)[1].lower()
        if _special(item):  # reading a pipe would wait for ever
            others["special files"] += 1
        elif is_folder(item):
            yield from pictures_below(item.path, others, (*inside, real))
        elif ending in picture_suffixes():
            yield item.path
        else:
            others[ending or "files without an ending"] += 1
