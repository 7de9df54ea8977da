"""What heads can be told, as recipes and saved networks write it. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from routespace.values import Value

NORM_GROUPS = 32  # of FCOS, in which its channels are normalised
NMS = {"retinanet": 0.5, "fcos": 0.6}
TOWER_CONVS = 4  # as in the papers

MOST_BOXES = 10**6  # of an image, and of classes
Count = Annotated[int, Field(ge=1, le=MOST_BOXES)]
Share = Annotated[float, Field(ge=0, le=1)]
Width = Annotated[int, Field(ge=8, le=2048)]
Pool = Literal["all", "computed"]  # of tokens that a classifier takes the mean of
Ratios = Annotated[tuple[Annotated[float, Field(gt=0, le=100)], ...], Field(min_length=1)]


class BoxSettings(Value):
    """What every detector can be told.

    Args:
        classes: of objects.
        width: channels of the feature pyramid and of the heads on it.
        convs: convolutions of each of the two towers, and of Mask R-CNN's on masks, before its last layer.
        anchor_ratios: height over width of the anchors.
        score_threshold: boxes with a lower score are left out.
        nms_threshold: of two boxes of a class that overlap by more (IoU), the better one stays.
        max_detections: boxes of an image, at most.
    """

    classes: Count
    width: Width = 256
    convs: Annotated[int, Field(ge=1, le=TOWER_CONVS)] = TOWER_CONVS
    anchor_ratios: Ratios = (0.5, 1.0, 2.0)
    score_threshold: Share = 0.05
    nms_threshold: Share | None = None
    max_detections: Count = 100

    def head_settings(self) -> dict[str, Any]:
        """These, and nothing that a recipe adds to them, as JSON data."""
        kind = next(kind for kind in (DetectSettings, InstanceSettings) if isinstance(self, kind))
        return self.model_dump(mode="json", include=set(kind.model_fields))


class DetectSettings(BoxSettings):
    """RetinaNet or FCOS.

    Args:
        detector: which of the two.
        finest: rate of the finest map that it reads: 8 as usual, 4 where objects are a few pixels wide, which
            costs about four times as much.
        beyond: what the two maps beyond the coarsest are made of: `pyramid`, its last map, as FCOS has it;
            `backbone`, the backbone's own last map, as RetinaNet has it in the papers' tables.
        anchor_scale: side of the smallest anchor over its rate; FCOS has none.
        candidates: best boxes of each map that are compared with each other.
        nms_threshold: as above; None for 0.5, of FCOS 0.6.
    """

    detector: Literal["retinanet", "fcos"] = "retinanet"
    finest: Literal[4, 8] = 8
    beyond: Literal["pyramid", "backbone"] = "pyramid"
    anchor_scale: Annotated[float, Field(gt=0, le=64)] = 4.0
    candidates: Count = 1000

    @property
    def overlap(self) -> float:
        """The NMS threshold that holds."""
        return NMS[self.detector] if self.nms_threshold is None else self.nms_threshold

    @model_validator(mode="after")
    def _check(self) -> Self:
        fields = type(self).model_fields
        if self.detector != "fcos":
            return self
        for name in ("anchor_scale", "anchor_ratios"):
            if getattr(self, name) != fields[name].default:
                raise ValueError(f"{name}: fcos has no anchors; leave it out")
        if self.width % NORM_GROUPS or self.width == NORM_GROUPS:  # a map of one place needs two channels a group
            raise ValueError(
                f"width: {self.width} cannot be normalised in {NORM_GROUPS} groups, as fcos does; give a multiple "
                f"of {NORM_GROUPS}, at least {2 * NORM_GROUPS}"
            )
        return self


class InstanceSettings(BoxSettings):
    """Mask R-CNN.

    Args:
        anchor_scale: side of the anchors over their rate.
        nms_threshold: as above; None for 0.5.
        proposals: of an image, that are looked at more closely; in training twice as many.
        sampled: proposals of an image that training learns from.
    """

    anchor_scale: Annotated[float, Field(gt=0, le=64)] = 8.0
    proposals: Count = 1000
    sampled: Annotated[int, Field(ge=4, le=MOST_BOXES)] = 512

    @property
    def overlap(self) -> float:
        """The NMS threshold that holds."""
        return 0.5 if self.nms_threshold is None else self.nms_threshold
