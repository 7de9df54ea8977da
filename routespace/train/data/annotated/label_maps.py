"""Pictures with label maps: a picture of one channel beside each, whose numbers are classes. No torch.

    LabelMaps            reads and checks label maps
    FolderAnnotations    folders of both, as ADE20K lies

Shapes: H, W pixels of a picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from routespace.errors import DataError
from routespace.files import read_text
from routespace.picture_files import is_folder, pictures_below, plain_name, visible
from routespace.pictures import header, quiet_pillow, upright_size, why_unreadable
from routespace.train.data.annotated.truth import Annotated, AnnotatedPart, Truth, picture_trouble
from routespace.train.data.catalogue import Split, examples, require_root
from routespace.train.data.folder import NAMES, key_below
from routespace.train.recipe.segmentation import CLASS_FILES, SegmentationSpec, counts_from_one
from routespace.train.recipe.targets import IGNORE, Target

MOST_CLASSES = IGNORE  # numbers below that of pixels without a class
MOST_NUMBER = 65535  # of 16 bits
WANTED = "the folder with images/ and annotations/ in it"


@dataclass(frozen=True)
class LabelMaps:
    """Reads label maps.

    Args:
        numbers: number in a map → class; what is in neither is an error.
        ignored: numbers of pixels that count for nothing.
        hint: where to say what other numbers mean, for the message about one.
    """

    numbers: Mapping[int, int]
    ignored: frozenset[int] = frozenset()
    hint: str = ""

    def read(self, path: str) -> NDArray[np.uint8]:
        """(H, W) classes, IGNORE for pixels without one; raises DataError naming the file and the number."""
        try:
            with quiet_pillow(), header(path) as image:
                values = np.asarray(image)
        except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
            raise DataError(f"{path}: {why_unreadable(error, path)}; replace or remove it") from error
        if values.ndim != 2:
            raise DataError(
                f"{path}: has {values.shape[-1]} channels, but a label map has one number a pixel; give grey or a "
                f"palette"
            )
        if values.dtype.kind not in "bui":
            raise DataError(f"{path}: has numbers with a decimal point, but a label map has whole ones; mend it")
        values = values.astype(np.int64)
        outside = values[(values < 0) | (values > MOST_NUMBER)]
        if outside.size:
            raise DataError(
                f"{path}: has pixels of the number {outside[0]}, but there are 0 … {MOST_NUMBER}; mend it"
            )
        table = np.full(MOST_NUMBER + 1, -1, np.int64)
        for number, label in self.numbers.items():
            table[number : number + 1] = label
        for number in self.ignored:
            table[number : number + 1] = IGNORE
        found = table[values]
        if (found < 0).any():
            number, known = int(values[found < 0][0]), f"these are {min(self.numbers)} … {max(self.numbers)}"
            raise DataError(
                f"{path}: has pixels of the number {number}, which is no class ({known}{self.hint}); mend it"
            )
        classes: NDArray[np.uint8] = found.astype(np.uint8)
        return classes

    def truth(self, image: Annotated) -> Truth:
        """The pixels of a picture, whose label map is `image.known`."""
        pixels = self.read(image.known)
        with header(image.place) as opened:
            size = upright_size(opened)
        if pixels.shape != size:
            raise DataError(
                f"{image.known}: has {pixels.shape[1]} × {pixels.shape[0]} pixels, its picture {image.place} has "
                f"{size[1]} × {size[0]}; give one of the same size"
            )
        return Truth(pixels=pixels)

    def trouble(self, image: Annotated) -> str | None:
        """One line on why a picture or its label map cannot be read, or None."""
        found = picture_trouble(image)
        if found is not None:
            return found
        try:
            self.truth(image)
        except DataError as error:
            return str(error).rpartition("; ")[0]
        return None

    def objects(self, images: Sequence[Annotated], *, crowds: bool = True) -> Mapping[int, int]:
        """None: pixels are labelled."""
        return {}


class FolderAnnotations:
    """Folders of pictures and of label maps; see `Annotations`.

    Args:
        spec: where they lie, and what the numbers mean.
        target: pixels.

    Raises:
        DataError: the folders, or the names of the classes, are missing.
    """

    def __init__(self, spec: SegmentationSpec, target: Target) -> None:
        self.root, self.spec = require_root(spec.root, WANTED), spec
        for folder in (self.root / spec.image_folder, self.root / spec.label_folder):
            if not folder.is_dir():
                raise DataError(
                    f"{folder}: no such folder; give {WANTED}, or other names with data.image_folder and "
                    f"data.label_folder"
                )
        self.classes = class_names(self.root, spec)
        if spec.names is None and not spec.shift and counts_from_one(self.root):
            raise DataError(
                f"{self.root / CLASS_FILES[1]}: counts its classes from 1, but data.shift is 0; set data.shift=1 "
                f"and data.ignore=[0], or write the names of classes that begin with 0 into {CLASS_FILES[0]}"
            )
        numbers = {label + spec.shift: label for label in range(len(self.classes))}
        ignored = frozenset(spec.ignore)
        if ignored & set(numbers):
            number = min(ignored & set(numbers))
            raise DataError(
                f"data.ignore: {number} is also the number of class {self.classes[number - spec.shift]!r}; leave "
                f"it out, or mend data.shift"
            )
        self.maps = LabelMaps(numbers, ignored, f"; see data.shift, now {spec.shift}, and data.ignore")

    def part(self, split: Split, *, whole: bool = False) -> AnnotatedPart | None:
        """What a part holds; see `Annotations`."""
        pictures, maps = self.root / self.spec.image_folder, self.root / self.spec.label_folder
        below = {item.name.lower(): item.name for item in visible(pictures) if is_folder(item)}
        if any(name in below for names in NAMES.values() for name in names):
            own = next((below[name] for name in NAMES[split] if name in below), None)
            if own is None:
                return None
            pictures, maps = pictures / own, maps / own
        elif split != "train" and not whole:
            return None
        return AnnotatedPart(str(pictures), self._paired(pictures, maps), self.classes)

    def truth(self, image: Annotated) -> Truth:
        """Classes of the pixels; see `Annotations`."""
        return self.maps.truth(image)

    def trouble(self, image: Annotated) -> str | None:
        """From the picture's header and the whole label map; see `Annotations`."""
        return self.maps.trouble(image)

    def objects(self, images: Sequence[Annotated], *, crowds: bool = True) -> Mapping[int, int]:
        """None: pixels are labelled."""
        return {}

    def _paired(self, pictures: Path, maps: Path) -> list[Annotated]:
        """Each picture with its label map; raises DataError when one of the two is missing."""
        if not maps.is_dir():
            raise DataError(f"{maps}: no such folder, but {pictures} has pictures; give their label maps")
        found, labelled = _by_stem(pictures), _by_stem(maps, self.spec.suffix)
        if not found:
            raise DataError(f"{pictures}: no pictures in this folder; give {WANTED}")
        for one, other, what in ((found, labelled, "a label map"), (labelled, found, "a picture")):
            lonely = [name for name in one if name not in other]
            if lonely:
                where, place = (pictures, maps) if one is found else (maps, pictures)
                raise DataError(
                    f"{where}: {len(lonely)} {'file has' if len(lonely) == 1 else 'files have'} no {what[2:]} of "
                    f"the same name in {place} ({examples(lonely)}); "
                    f"{self._other_ending(maps, lonely[0]) if one is found else ''}add or remove it"
                )
        return [
            Annotated(path, key_below(path, pictures), number, labelled[name])
            for number, (name, path) in enumerate(found.items())
        ]

    def _other_ending(self, maps: Path, name: str) -> str:
        """What to do where the label map of a picture is there, but ends in another way."""
        for path in pictures_below(str(maps), Counter()):
            if key_below(path, maps).rpartition(".")[0] == name:
                lossy = ", whose numbers JPEG has changed" if path.lower().endswith((".jpg", ".jpeg")) else ""
                return f"label maps end in {self.spec.suffix}, and {path} is none{lossy}: set data.suffix, or "
        return ""


def _by_stem(folder: Path, suffix: str = "") -> dict[str, str]:
    """A file's own path below a folder, without its ending → where it lies; raises DataError where two are one."""
    found: dict[str, str] = {}
    for path in pictures_below(str(folder), Counter()):
        name = key_below(path, folder).rpartition(".")[0]
        if path.lower().endswith(suffix.lower()) and found.setdefault(name, path) != path:
            raise DataError(
                f"{folder}: {Path(found[name]).name} and {Path(path).name} have one name but for the ending, and "
                f"so one label map; rename or remove one of them"
            )
    return found


def class_names(root: Path, spec: SegmentationSpec) -> tuple[str, ...]:
    """The names of the classes, by number.

    Raises:
        DataError: there are none, one is there twice, or there are too many.
    """
    where = "data.names"
    if isinstance(spec.names, tuple):
        names = [plain_name(name) for name in spec.names]
    else:
        files = CLASS_FILES if spec.names is None else (spec.names,)
        file = next((root / name for name in files if (root / name).is_file()), None)
        if file is None:
            raise DataError(
                f"{root / files[0]}: no such file; give one with the name of a class in each line, or "
                f"data.names, as in --set data.names=[sky,tree]"
            )
        where, names = str(file), _names_in(file)
    if not names or len(names) > MOST_CLASSES:
        raise DataError(f"{where}: has {len(names)} names of classes; give 1 to {MOST_CLASSES}")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{where}: {twice!r:.60} is there twice; give each class a name of its own")
    return tuple(names)


def _names_in(file: Path) -> list[str]:
    """A name a line; or the last column of a table with tabs, whose heading is Name."""
    text = read_text(file, wanted="names of classes", error=DataError)
    lines = [line for line in text.splitlines() if line.strip()]
    table = [line.split("\t") for line in lines]
    if table and len(table[0]) > 1 and table[0][-1].strip() == "Name":
        return [plain_name(row[-1].strip()) for row in table[1:]]
    return [plain_name(line.strip()) for line in lines]


__all__ = ["FolderAnnotations", "LabelMaps", "class_names"]
