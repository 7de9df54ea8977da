"""The recipe's data section for scenes that are composed as asked for."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from routespace.train.recipe.data import Fraction, Normalised
from routespace.train.recipe.parts import Natural, Share, Whole
from routespace.train.recipe.targets import RENDERED, Target

LEAST_PX = 6  # of an object's longer side: below it nothing can be told apart
Strength = Annotated[float, Field(ge=0, lt=1)]
Span = tuple[Annotated[float, Field(gt=0, le=4)], Annotated[float, Field(gt=0, le=4)]]


class ScenesSpec(Normalised):
    """Scenes: cut-outs composed onto photographs, with exact boxes and masks; training scenes are always new.

    The label of a scene is the class of its largest object.

    Args:
        cutouts: a folder of pictures with transparency, with <class>/ in it, or with train/<class>/, val/… and
            test/…; None for the handwritten digits of scikit-learn.
        backgrounds: a folder of photographs, at any depth; None for scikit-learn's two.
        train_size, val_size, test_size: scenes; those of train are fresh in each epoch.
        object_px: least and greatest longer side of an object, drawn log-uniformly, in pixels of the scene.
        objects_per_scene: least and greatest number of labelled objects; one that finds no room is left out.
        distractors: least and greatest number of shapes of cut-outs filled with photographs, which have no label.
        rotate: objects turn by up to so many degrees to both sides.
        hflip: chance that an object is mirrored.
        stretch: greatest change of an object's aspect ratio: 0.2 lies between 1/1.2 and 1.2.
        brightness, contrast, saturation: greatest change of an object's: 0.2 lies between 0.8 and 1.2.
        background_brightness: least and greatest factor of the photograph's.
        zoom: least and greatest number of pixels of the photograph for one of the scene.
        split_by: what no two of train, val and test share: `background`, `cutout` or `both`. Digits and
            scikit-learn's photographs are never shared.
        held_out: share of the photographs (or cut-outs of each class) that val gets, and test as many again.
    """

    targets: ClassVar[tuple[Target, ...]] = RENDERED

    kind: Literal["scenes"] = "scenes"
    cutouts: str | None = None
    backgrounds: str | None = None
    train_size: Natural = 12_000
    val_size: Natural = 1_000
    test_size: Natural = 2_000
    object_px: tuple[Natural, Natural] = (12, 32)
    objects_per_scene: tuple[Natural, Natural] = (1, 1)
    distractors: tuple[Whole, Whole] = (0, 0)
    rotate: Annotated[float, Field(ge=0, le=180)] = 10.0
    hflip: Share = 0.0
    stretch: Strength = 0.1
    brightness: Strength = 0.2
    contrast: Strength = 0.2
    saturation: Strength = 0.2
    background_brightness: Span = (0.8, 1.2)
    zoom: Span = (1.0, 2.0)
    split_by: Literal["background", "cutout", "both"] = "background"
    held_out: Fraction = 0.15

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("object_px", "objects_per_scene", "distractors", "background_brightness", "zoom"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: {[low, high]} must be [least, greatest]")
        if self.held_out >= 0.5:
            raise ValueError(
                f"held_out: {self.held_out} is the share of val, and as much goes to test; give < 0.5"
            )
        return self

    def check(self, size: tuple[int, int], *, channels: int, classes: int, target: Target) -> None:
        """Three channels, and objects that fit the image."""
        low, high = self.object_px
        if channels != 3:
            raise ValueError(f"grid.in_channels: {channels} does not fit data.kind 'scenes'; give 3 (RGB)")
        if not LEAST_PX <= low <= high <= min(size):
            raise ValueError(
                f"data.object_px: {[low, high]} does not fit; give [least, greatest] from {LEAST_PX} to the "
                f"image's {min(size)} px"
            )
        super().check(size, channels=channels, classes=classes, target=target)
