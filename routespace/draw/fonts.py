"""Fonts of this machine that have the characters of a text, since names of classes may be of any script.

DejaVu Sans comes with matplotlib and has Latin, Greek, Cyrillic, Arabic and more. For the rest, such as Chinese,
the fonts that are installed are looked through. What none of them has is drawn as a box; `boxes_in` tells of it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

USUAL = "DejaVu Sans"
BOXES = "Last Resort"  # a font of one box for every character there is
REGULAR = ("normal", 400)
UNSEEN = "Cc", "Cf", "Mn", "Zs"  # kinds of characters that draw nothing of their own: joiners, accents, spaces


class Font(NamedTuple):
    """A font's name and file."""

    family: str
    file: str


def fonts_for(text: str) -> tuple[Font, ...]:
    """Fonts that together have a text's characters, as far as any has them; the usual one first."""
    return _with(_letters(text))


def font_for(text: str) -> Font:
    """The one font that has the most of a text's characters; of several the first of `fonts_for`."""
    return max(fonts_for(text), key=lambda font: len(_letters(text) & _characters(font.file)))


def boxes_in(texts: Iterable[str], *, several: bool = False) -> str:
    """The characters of texts, once each, that are drawn as boxes, since no font of this machine has them.

    Args:
        texts: what is drawn.
        several: fonts may be mixed in a text, as in figures; else each has the one of `font_for`.
    """
    found: dict[str, None] = {}
    for text in texts:
        fonts = fonts_for(text) if several else (font_for(text),)
        known = frozenset[int]().union(*(_characters(font.file) for font in fonts))
        lacking = (c for c in text if ord(c) not in known and unicodedata.category(c) not in UNSEEN)
        found |= dict.fromkeys(lacking)
    return "".join(found)


def _letters(text: str) -> frozenset[int]:
    """What a font has to have, and any letter and digit, so that texts of one script are looked for once."""
    return frozenset({ord(character) for character in text if not character.isascii()} | {ord("a"), ord("0")})


@cache
def _with(characters: frozenset[int]) -> tuple[Font, ...]:
    missing, found = set(characters), list[Font]()
    for font in _fonts():
        here = missing & _characters(font.file)
        if here or not found:
            found.append(font)
        missing -= here
        if not missing:
            break
    return tuple(found)


def _fonts() -> Iterator[Font]:
    """The usual font, and then the regular ones of all others, those without serifs first."""
    yield Font(USUAL, font_manager.findfont(USUAL))
    entries = {entry.name: entry for entry in font_manager.fontManager.ttflist if _is_regular(entry)}
    for name in sorted(entries, key=lambda name: ("Sans" not in name, name)):
        yield Font(name, entries[name].fname)


def _is_regular(entry: font_manager.FontEntry) -> bool:
    return (entry.style, entry.weight) == REGULAR and entry.name != USUAL and not entry.name.startswith(BOXES)


@cache
def _characters(file: str) -> frozenset[int]:
    """What a font can draw; nothing where it has bitmaps alone or cannot be read."""
    try:
        font = FT2Font(file)
    except (OSError, RuntimeError):  # FreeType's own errors are the latter
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()
