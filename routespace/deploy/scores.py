"""Score: one measurement of a network's quality, by the task's metric, and on which images."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from routespace.values import Value

ScoreStage = Literal["before_extraction", "extracted", "fine_tuned", "trained"]


class Score(Value):
    """How good a network was found to be.

    Args:
        stage: of its life: `before_extraction` (the network that it was taken from), `extracted` (as it was taken
            out), `fine_tuned` (trained again from there), `trained` (trained as it is).
        metric: the task's, such as `accuracy`.
        value: in the metric's unit; of accuracy 0…1.
        images: how many it was measured on; None where nobody kept that.
        split: `val` or `test`.
        data: which images: their kind and the name of their folder.
        digest: of the list of these images and those trained on; None for rendered ones, which the recipe tells.
        image_size: (H, W) in pixels that they went in at; where pictures keep their shape, the greatest shorter
            and longer side. None where nobody kept that.
    """

    stage: ScoreStage
    metric: str
    value: Annotated[float, Field(allow_inf_nan=False)]
    images: Annotated[int, Field(ge=0)] | None = None
    split: str | None = None
    data: str | None = None
    digest: str | None = None
    image_size: tuple[int, int] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.metric == "accuracy" and not 0 <= self.value <= 1:
            raise ValueError(f"value: an accuracy of {self.value} is not allowed; give a share from 0 to 1")
        return self

    @property
    def on(self) -> str:
        """The images in words, such as `40 val images of folder photos at 96x96 px, list 1a2b…`."""
        count = "" if self.images is None else f"{self.images} {self.split or ''} images of ".replace("  ", " ")
        size = "" if self.image_size is None else f" at {self.image_size[0]}x{self.image_size[1]} px"
        return f"{count}{self.data or 'unknown data'}{size}" + (f", list {self.digest}" if self.digest else "")


def older_scores(card: dict[str, Any]) -> list[dict[str, Any]]:
    """The scores of a card of before they were a list; its fields of them are taken out of it."""
    data = card.pop("accuracy_on", None)
    stages = {"accuracy_before": "extracted", "accuracy_after": "fine_tuned"}
    values = {stage: card.pop(name, None) for name, stage in stages.items()}
    return [
        {"stage": stage, "metric": "accuracy", "value": value, "data": data}
        for stage, value in values.items()
        if value is not None
    ]
