"""Writing a matplotlib figure, without a display and without pyplot's global state."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from routespace.draw.fonts import fonts_for
from routespace.errors import SpecError
from routespace.files import replaced

DPI = 160
FORMATS = ("png", "svg", "pdf")
SALT = "routespace"
# Dates and library versions would make equal pictures different files.
METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def require_format(path: Path) -> str:
    """The format that a path's ending names; raises SpecError for others."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise SpecError(f"path: {path.name!r} ends in no known format; allowed: .{', .'.join(FORMATS)}")
    return kind


def save_figure(figure: Figure, path: Path | str) -> Path:
    """Write a figure whole or not at all, and return its path.

    Raises:
        SpecError: the path's ending is not one of FORMATS.
        BundleError: the file cannot be written.
    """
    path = Path(path)
    kind = require_format(path)
    FigureCanvasAgg(figure)
    for text in figure.findobj(Text):
        _legible(text)
    # Names inside an SVG file are drawn by chance without a salt; whose else it is stays as it was.
    with replaced(path) as partial, matplotlib.rc_context({"svg.hashsalt": SALT}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")  # a box says as much
        figure.savefig(partial, format=kind, dpi=DPI, metadata=METADATA[kind])
    return path


def _legible(text: Artist) -> None:
    """Give a text the fonts that its characters need beside its own."""
    assert isinstance(text, Text)
    others = () if text.get_text().isascii() else fonts_for(text.get_text())[1:]
    if others:
        text.set_fontfamily([*text.get_fontfamily(), *(font.family for font in others)])
