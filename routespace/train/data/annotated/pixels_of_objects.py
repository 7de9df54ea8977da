"""Objects with masks as classes of pixels. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from routespace.train.data.annotated.truth import Annotated, AnnotatedPart, Annotations, Truth
from routespace.train.data.catalogue import Split
from routespace.train.recipe.targets import BACKGROUND


class PixelsOfObjects:
    """Objects with masks as classes of pixels: 0 for the background, 1 + class of the object seen there.

    Of several objects the smallest has the pixel.

    Args:
        objects: annotations with masks.
    """

    def __init__(self, objects: Annotations) -> None:
        self.inner = objects

    def part(self, split: Split, *, whole: bool = False) -> AnnotatedPart | None:
        """What a part holds; see `Annotations`."""
        part = self.inner.part(split, whole=whole)
        return None if part is None else replace(part, classes=(BACKGROUND, *part.classes))

    def truth(self, image: Annotated) -> Truth:
        """Pixels; see `Annotations`."""
        found = self.inner.truth(image)
        assert found.masks is not None
        assert found.labels is not None
        pixels = np.zeros(found.masks.shape[1:], np.uint8)
        for n in np.argsort(-found.masks.sum((1, 2)), kind="stable"):
            pixels[found.masks[n]] = 1 + found.labels[n]
        return Truth(pixels=pixels)

    def trouble(self, image: Annotated) -> str | None:
        """See `Annotations`."""
        return self.inner.trouble(image)

    def objects(self, images: Sequence[Annotated], *, crowds: bool = True) -> dict[int, int]:
        """Label → objects."""
        return {1 + label: count for label, count in self.inner.objects(images, crowds=crowds).items()}
