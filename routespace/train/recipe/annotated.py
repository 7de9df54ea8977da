"""What the data sections share whose pictures come with boxes, masks or a class for each pixel."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from routespace.preprocess import Interpolation, Preprocess
from routespace.train.recipe.data import FilesSpec
from routespace.train.recipe.parts import Natural
from routespace.train.recipe.targets import Target

Factor = Annotated[float, Field(gt=0, le=8)]


class AnnotatedSpec(FilesSpec):
    """Pictures are fed as a whole, their shape kept; what is known of them follows each change.

    Args:
        val: `folder`: the data's own validation part where it has one, else a share of the training pictures is
            held out. `cut`: always the share; the validation part is then the test part where there is no other.
        eval_size: greatest shorter and longer side in evaluation; None for those of grid.image_size (for data
            made of pixel classes: its shorter side, and four times that).
        shorter_sides: for objects and masks: training pictures are resized to one of these, drawn for each and
            epoch anew; none for evaluation's. The greatest longer side stays.
        resize: for pixels: least and greatest factor to evaluation's size, before a window of grid.image_size is
            cut out. Where the factor is below 1 the window is smaller, too: nothing is ever padded.
        photometric: training pictures change brightness, contrast, saturation, hue and the order of colours.
    """

    longer: ClassVar[int | None] = None  # times the shorter side, for `eval_size` of None

    interpolation: Interpolation = "bilinear"
    val: Literal["folder", "cut"] = "folder"
    eval_size: tuple[Natural, Natural] | None = None
    shorter_sides: tuple[Natural, ...] = ()
    resize: tuple[Factor, Factor] = (0.5, 2.0)
    photometric: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("resize", "eval_size"):
            found = getattr(self, name)
            if found is not None and found[0] > found[1]:
                raise ValueError(f"{name}: {list(found)} must be [least, greatest]")
        return self

    def preprocess(self, size: tuple[int, int], channels: int) -> Preprocess:
        """How evaluation feeds a network that reads (channels, *size); raises SpecError when it cannot be."""
        same = self.model_dump(include={"interpolation", "background", "mean", "std"})
        limits = self.eval_size or (min(size), max(size) if self.longer is None else self.longer * min(size))
        given = {"size": limits, "channels": channels, "crop_pct": 1.0, **same}
        return Preprocess.parse(given, name="data")

    def check_sides(self, least_px: int) -> None:
        """Raise ValueError for sides that a grid, which reads `least_px` a side or more, cannot read."""
        for name in ("eval_size", "shorter_sides"):
            sides = getattr(self, name)
            if sides and min(sides) < least_px:
                raise ValueError(
                    f"data.{name}: {list(sides)} px is too small for this grid; give at least {least_px} px a side"
                )

    def check(self, size: tuple[int, int], *, channels: int, classes: int, target: Target) -> None:
        """Colours are distorted where there are three of them, and sides are drawn where they may differ."""
        super().check(size, channels=channels, classes=classes, target=target)
        if self.photometric and channels != 3:
            raise ValueError("data.photometric: needs grid.in_channels 3 (RGB); leave it out")
        longest = max(self.preprocess(size, channels).size)
        if target == "pixels" and self.shorter_sides:
            raise ValueError("data.shorter_sides: is for boxes and masks; for classes of pixels give data.resize")
        if self.shorter_sides and max(self.shorter_sides) > longest:
            raise ValueError(
                f"data.shorter_sides: {max(self.shorter_sides)} is more than the longer side may have, {longest}; "
                f"give less, or a larger data.eval_size"
            )
