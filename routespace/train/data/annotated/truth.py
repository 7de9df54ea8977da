"""What is known of pictures, and what each kind of annotations provides. No torch here.

    Truth              boxes, masks or pixels of one picture, in its own pixels
    Annotated          a picture and where its truth is found
    AnnotatedPart      what a part (train, val, test) holds
    Annotations        a kind: COCO's files, folders of label maps, Pascal VOC, Cityscapes

Shapes: N objects · H, W pixels of the upright picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from routespace.errors import DataError
from routespace.pictures import header, upright_size, why_unreadable
from routespace.train.data.catalogue import Entry, Split

Reason = tuple[str, str]
IMAGES = "(images)"  # takes the place of a class where pictures are listed that have none of their own


@dataclass(frozen=True)
class Truth:
    """What is known of a picture: its objects, or its pixels.

    Attributes:
        boxes: (N, 4) float32, x1 y1 x2 y2, the last two exclusive; they may reach out of the picture.
        labels: (N,) int64, among the classes of its part.
        crowd: (N,) bool. area: (N,) float32.
        masks: (N, H, W) bool, where they are asked for.
        pixels: (H, W) uint8, classes or IGNORE.
    """

    boxes: NDArray[np.float32] | None = None
    labels: NDArray[np.int64] | None = None
    crowd: NDArray[np.bool_] | None = None
    area: NDArray[np.float32] | None = None
    masks: NDArray[np.bool_] | None = None
    pixels: NDArray[np.uint8] | None = None


class Annotated(NamedTuple):
    """A picture whose truth is known.

    Attributes:
        place: its file.
        key: its own path in its part, with forward slashes: what its side of a split follows from.
        image_id: its number in the set.
        known: what its kind of annotations reads the truth from.
        size: (H, W) as the annotations say; None where they do not.
    """

    place: str
    key: str
    image_id: int
    known: Any
    size: tuple[int, int] | None = None

    def entry(self) -> Entry:
        """As pictures of classes are listed."""
        return Entry(self, IMAGES, self.key)


@dataclass(frozen=True)
class AnnotatedPart:
    """What a part of the data holds.

    Attributes:
        where: what to call it in a message.
        images: its pictures.
        classes: names of the classes, by number.
        notes: on what was left out, a line each.
        folder: of its pictures, where others may lie beside them that no annotations name; None where none can.
    """

    where: str
    images: Sequence[Annotated]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    folder: str | None = None


class Annotations(Protocol):
    """A kind of annotations; it travels to loader processes, so it must be picklable."""

    def part(self, split: Split, *, whole: bool = False) -> AnnotatedPart | None:
        """What a part holds; None where the data has no such part.

        Args:
            split: train, val or test.
            whole: data without parts is taken as a whole for whatever is asked, not for training alone.

        Raises:
            DataError: it is missing or damaged.
        """
        ...

    def truth(self, image: Annotated) -> Truth:
        """What is known of a picture; raises DataError naming the file when it cannot be read."""
        ...

    def trouble(self, image: Annotated) -> str | None:
        """From as little as possible: one line on why picture or truth cannot be read, or None."""
        ...

    def objects(self, images: Sequence[Annotated], *, crowds: bool = True) -> Mapping[int, int]:
        """Label → objects in these pictures, crowds among them or not; nothing where pixels are labelled."""
        ...


@dataclass
class LeftOut:
    """What is left out of annotations, told in a line for each reason.

    Attributes:
        where: the file.
    """

    where: str
    first: dict[Reason, str] = field(default_factory=dict)
    counts: Counter[Reason] = field(default_factory=Counter)

    def add(self, reason: Reason, what: str) -> None:
        """Count one more; the first of a reason, whose words are for one and for several, is named."""
        self.first.setdefault(reason, what)
        self.counts[reason] += 1

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each reason."""
        return tuple(
            f"{self.where}: {count} {reason[count > 1]} left out "
            f"({'the first: ' if count > 1 else ''}{self.first[reason]})"
            for reason, count in self.counts.items()
        )


def picture_trouble(image: Annotated) -> str | None:
    """From a picture's header: why it cannot be read or does not fit its annotations, or None."""
    try:
        with header(image.place) as opened:
            size = upright_size(opened)
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
        return f"{image.place}: {why_unreadable(error, image.place)}"
    return size_trouble(image, size)


def size_trouble(image: Annotated, size: tuple[int, int]) -> str | None:
    """Why a picture of (H, W) does not fit its annotations, or None."""
    if image.size is None or size == image.size:
        return None
    return (
        f"{image.place}: has {size[1]} × {size[0]} pixels upright, but its annotations (image {image.image_id}) "
        f"are of {image.size[1]} × {image.size[0]}"
    )


def require_size(image: Annotated, size: tuple[int, int]) -> None:
    """Raise DataError unless a picture of (H, W) fits its annotations."""
    trouble = size_trouble(image, size)
    if trouble is not None:
        raise DataError(f"{trouble}; give the picture that was annotated")
