"""Folders of what a network found: pictures with objects or pixel classes drawn on them, and maps of classes.

    folder = AnswerFolder(images, drawn=Path("seen"), maps=Path("maps"), names=predictor.classes)
    folder.add(answer)                       # → the files that were written

No torch: exported files need none, either.
"""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from routespace.deploy.predict.answers import FoundObjects, PixelClasses, Prediction
from routespace.deploy.predict.images import InputImages
from routespace.draw.answers import class_map, drawn_objects, drawn_pixels
from routespace.errors import SpecError
from routespace.files import replaced
from routespace.pictures import as_channels, read_picture

MOST_BYTES = 240  # of a name, which with its number and ending has 255 in most file systems


class AnswerFolder:
    """Draws answers one by one.

    Args:
        images: what was asked about.
        drawn: folder of the pictures with what was found on them; None for none.
        maps: folder of the maps of classes; None for none.
        names: of the network's classes, in the order of its outputs.

    Raises:
        SpecError: a folder in which the pictures themselves lie, one for both, or several pictures without files,
            of which an answer does not tell which is its own.
    """

    def __init__(
        self, images: InputImages, *, drawn: Path | None, maps: Path | None, names: Sequence[str] = ()
    ) -> None:
        asked = {Path(item.path).resolve().parent for item in images.items if item.path not in (None, "-")}
        for name, folder in (("draw", drawn), ("maps", maps)):
            if folder is not None and folder.resolve() in asked:
                raise SpecError(f"{name}: {folder} holds the pictures themselves; choose another folder")
        if drawn is not None and maps is not None and drawn.resolve() == maps.resolve():
            raise SpecError(
                f"maps: {maps} is also the folder of --draw, whose files have the same names; choose two"
            )
        nameless = sum(item.path is None for item in images.items)
        if drawn is not None and nameless > 1:
            raise SpecError(f"draw: {nameless} pictures have no file, so nobody knows which is which; give files")
        self.drawn, self.maps, self.names = drawn, maps, names
        self._sources: dict[str | None, Any] = {item.path: item.source for item in images.items}
        self._taken: set[str] = set()
        self.drawn_names: dict[str, None] = {}  # of classes, in the order in which they were first drawn

    def add(self, answer: Prediction) -> Mapping[str, Path]:
        """Write what is wanted of an answer; returns `drawn` and `map` → the file, of those that were written.

        Raises:
            SpecError: of a classifier's answer nothing can be drawn, of objects no map.
            BundleError: a file cannot be written.
        """
        name, found = self._name(answer.path), {}
        if self.drawn is not None:
            self.drawn_names |= dict.fromkeys(answer.labels)
            found["drawn"] = self._save(self._picture(answer), self.drawn / name)
        if self.maps is not None:
            if not isinstance(answer, PixelClasses):
                raise SpecError("maps: only networks that tell the class of each pixel make maps; leave it out")
            found["map"] = self._save(class_map(answer.classes), self.maps / name)
        return found

    def _picture(self, answer: Prediction) -> Image.Image:
        picture = _upright(self._sources[answer.path])
        if isinstance(answer, PixelClasses):
            numbers = {name: number for number, name in enumerate(self.names)}
            there = {numbers[name] if self.names else int(name): name for name in answer.labels}
            return drawn_pixels(picture, answer.classes, there)
        if not isinstance(answer, FoundObjects):
            raise SpecError("draw: a classifier finds nothing in a place; give a network of objects or pixels")
        words = [f"{name} {score:.0%}" for name, score in zip(answer.labels, answer.scores, strict=True)]
        return drawn_objects(picture, answer.boxes, words, answer.classes.tolist(), answer.masks)

    def _name(self, path: str | None) -> str:
        """A file name of its own for each picture, after the picture's, also where capitals or accents are one."""
        stem = Path(path or "image").stem if path != "-" else "image"
        while len(os.fsencode(stem)) > MOST_BYTES:
            stem = stem[:-1]
        name, number = stem, 1
        while _told_apart_by(name) in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(_told_apart_by(name))
        return f"{name}.png"

    @staticmethod
    def _save(picture: Image.Image, path: Path) -> Path:
        with replaced(path) as partial:
            picture.save(partial, format="PNG")
        return path


def _told_apart_by(name: str) -> str:
    """Equal for names that a folder of macOS or Windows takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _upright(source: Any) -> Image.Image:
    """The picture as a viewer shows it."""
    if isinstance(source, Image.Image):
        return as_channels(source, 3)
    return read_picture(io.BytesIO(source) if isinstance(source, bytes) else source)
