"""Cityscapes, as torchvision finds it. Its import takes torch, so this happens when a part is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from routespace.errors import DataError
from routespace.train.data.annotated.label_maps import LabelMaps
from routespace.train.data.annotated.truth import Annotated, AnnotatedPart, Truth
from routespace.train.data.catalogue import Split, plain_key, require_root
from routespace.train.recipe.segmentation import CityscapesSpec
from routespace.train.recipe.targets import IGNORE, Target


class CityscapesAnnotations:
    """The pictures and label maps of a recipe's data section; see `Annotations`.

    Args:
        spec: where they lie.
        target: pixels.

    Raises:
        DataError: `data.root` is missing.
    """

    def __init__(self, spec: CityscapesSpec, target: Target) -> None:
        self.root, self.spec = require_root(spec.root, "the folder with leftImg8bit/ and gtFine/ in it"), spec

    def part(self, split: Split, *, whole: bool = False) -> AnnotatedPart | None:
        """What a part holds; see `Annotations`. The test part has no labels."""
        if split == "test":
            return None
        from torchvision.datasets import Cityscapes

        try:
            found: Any = Cityscapes(str(self.root), split, mode=self.spec.mode, target_type="semantic")
        except (RuntimeError, OSError) as error:
            labels = {"fine": "gtFine", "coarse": "gtCoarse"}[self.spec.mode]
            raise DataError(
                f"{self.root}: has no Cityscapes {split} part; give the folder with leftImg8bit/{split}/ and "
                f"{labels}/{split}/ in it (data.mode is {self.spec.mode})"
            ) from error
        # in the order of their names: torchvision lists folders as the disk does
        places = sorted(zip(found.images, (target[0] for target in found.targets), strict=True))
        images = [
            Annotated(place, plain_key(Path(place).relative_to(found.images_dir)), number, known)
            for number, (place, known) in enumerate(places)
        ]
        return AnnotatedPart(found.images_dir, images, self._names)

    def truth(self, image: Annotated) -> Truth:
        """Classes of the pixels; see `Annotations`."""
        return self._maps.truth(image)

    def trouble(self, image: Annotated) -> str | None:
        """From the picture's header and the whole label map; see `Annotations`."""
        return self._maps.trouble(image)

    def objects(self, images: Sequence[Annotated], *, crowds: bool = True) -> Mapping[int, int]:
        """None: pixels are labelled."""
        return {}

    @cached_property
    def _maps(self) -> LabelMaps:
        judged = {one.id: one.train_id for one in _judged()}
        return LabelMaps(judged, frozenset({IGNORE, *(number for number in _numbers() if number not in judged)}))

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(one.name for one in sorted(_judged(), key=lambda one: one.train_id))


def _numbers() -> list[int]:
    """Those that may stand in a label map."""
    from torchvision.datasets import Cityscapes

    return [one.id for one in Cityscapes.classes if one.id >= 0]


def _judged() -> list[Any]:
    """The classes that count."""
    from torchvision.datasets import Cityscapes

    return [one for one in Cityscapes.classes if 0 <= one.train_id < IGNORE]
