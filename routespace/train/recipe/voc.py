"""The recipe's data section for Pascal VOC."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from routespace.train.recipe.annotated import AnnotatedSpec
from routespace.train.recipe.targets import Target


def _as_text(year: Any) -> Any:
    """YAML and --set read 2007 as a number."""
    return str(year) if isinstance(year, int) and not isinstance(year, bool) else year


class VocSpec(AnnotatedSpec):
    """Pascal VOC as torchvision reads it: boxes of 20 classes, or classes of pixels (the background is class 0).

    Difficult objects are crowds: found or not, they count for nothing. The border of an object has no class.

    Args:
        root: the folder with VOCdevkit/ in it.
        year: of the set, 2007 … 2012.
        download: fetch it where it is not there.
        train_split, val_split, test_split: lists in ImageSets; without a validation part a share of the training
            pictures is held out.
    """

    targets: ClassVar[tuple[Target, ...]] = ("objects", "pixels")

    kind: Literal["voc"] = "voc"
    year: Annotated[Literal["2007", "2008", "2009", "2010", "2011", "2012"], BeforeValidator(_as_text)] = "2012"
    download: bool = False
    train_split: str = "train"
    val_split: str | None = "val"
    test_split: str | None = None
