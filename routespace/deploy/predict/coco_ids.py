"""The ids that a data set gives its images and categories, for results that are compared with its annotations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from routespace.errors import DataError
from routespace.files import as_whole, read_json
from routespace.picture_files import plain_name

WANTED = "a JSON file in COCO's format, with images and categories"
NAMED = 3  # of what is missing


class CocoIds(NamedTuple):
    """Ids of images by file name, and of categories by class name; accents are written one way, as in classes.

    Attributes:
        images, categories: name → id.
        file: where they stand.
    """

    images: dict[str, int]
    categories: dict[str, int]
    file: Path

    def image(self, path: str | None) -> int | None:
        """The id of an image: that of the longest end of its path that is a file name; None where none is."""
        parts = PurePath(plain_name(path or "")).parts
        ends = ("/".join(parts[begin:]) for begin in range(len(parts)))
        return next((self.images[end] for end in ends if end in self.images), None)

    def require(self, classes: Sequence[str], paths: Iterable[str | None]) -> None:
        """Raise DataError when a class or an image has no id, or two images have one."""
        given = [path or "" for path in paths]
        for kind, missing in (
            ("category", [name for name in classes if name not in self.categories]),
            ("image", [path for path in given if self.image(path) is None]),
        ):
            if missing:
                more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
                raise DataError(
                    f"{self.file}: has no {kind} {', '.join(map(repr, missing[:NAMED]))}{more}; give the "
                    f"annotations of these images, or leave the ids out"
                )
        seen: dict[int | None, str] = {}
        for path in given:
            number = self.image(path)
            if number in seen:
                raise DataError(
                    f"{self.file}: image {number} would be both {seen[number]!r} and {path!r}; give each image "
                    f"once, or leave the ids out"
                )
            seen[number] = path


def read_coco_ids(path: Path) -> CocoIds:
    """Read the ids of a file of annotations, or of one that has images and categories alone.

    Raises:
        DataError: it cannot be read, or is no such file; two images or categories have one name.
    """
    found = read_json(path, wanted=WANTED, error=DataError)
    named: list[dict[str, int]] = []
    for kind, field in (("images", "file_name"), ("categories", "name")):
        entries = found.get(kind) if isinstance(found, dict) else None
        if not isinstance(entries, list) or not entries:
            raise DataError(f"{path}: has no list of {kind}; give {WANTED}")
        ids: dict[str, int] = {}
        for entry in entries:
            row = entry if isinstance(entry, dict) else {}
            name, number = row.get(field), as_whole(row.get("id"))
            if not isinstance(name, str) or not isinstance(number, int) or isinstance(number, bool):
                raise DataError(f"{path}: one of the {kind} has no {field} with a whole id: {entry!r:.80}")
            name = plain_name(name)
            if ids.setdefault(name, number) != number:
                raise DataError(f"{path}: {kind} {ids[name]} and {number} have the same {field} {name!r}")
        named.append(ids)
    images, categories = named
    slashed = {name.replace("\\", "/"): number for name, number in images.items()}  # names that Windows wrote
    return CocoIds(slashed | images, categories, path)
