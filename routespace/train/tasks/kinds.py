"""Every task by its name: one entry here lets recipes name it. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from routespace.grid.gate_spec import GateSpec
from routespace.grid.spec import GridSpec
from routespace.nn.heads.settings import Pool
from routespace.train.recipe.parts import TrainSpec
from routespace.train.recipe.targets import IGNORE
from routespace.train.tasks.base import ACCURACY, MEAN_IOU, DenseSpec, Task, TaskSpec
from routespace.train.tasks.detect_spec import DetectSpec, InstanceSpec

if TYPE_CHECKING:
    from routespace.nn.heads.base import Head


Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _not_for_all(weights: Sequence[float], classes: int) -> str:
    return f"class_weights: {len(weights)} numbers for {classes} classes; give one for each"


class ClassifySpec(TaskSpec):
    """Image classification: the grid's `num_classes`, top-1 accuracy.

    Args:
        pool: which tokens of the coarsest map the classifier takes the mean of: `all`, or those that were
            `computed` by the map's last row, where its gate chooses among tokens (all, where it computed none).
            What is small on a large image is heard better so.
        class_weights: of each class's images in the loss, where there are many of some and few of others; None for
            all alike. `balanced` gives each class the same weight as a whole, by the numbers of training images,
            and a training puts the weights in its place before its first step.
    """

    metric = ACCURACY
    teachable = True
    recordable = True
    later = ("class_weights",)

    kind: Literal["classify"] = "classify"
    pool: Pool = "all"
    class_weights: Literal["balanced"] | tuple[Weight, ...] | None = None

    def check(self, grid: GridSpec) -> None:
        """A classifier needs classes, and a weight for each where there are any."""
        if not grid.num_classes:
            raise ValueError("grid.num_classes: 0 leaves nothing to tell apart; give the number of classes")
        if isinstance(self.class_weights, tuple) and len(self.class_weights) != grid.num_classes:
            raise ValueError(f"task.{_not_for_all(self.class_weights, grid.num_classes)}, or balanced")

    def check_gates(self, gates: GateSpec, *, routing: str) -> None:
        """A mean over computed tokens needs gates that choose among tokens."""
        super().check_gates(gates, routing=routing)
        if self.pool == "all":
            return
        if routing not in ("both", "depth"):
            raise ValueError(
                f"task.pool: 'computed' needs rows that are gated; routing {routing!r} has none, give "
                f"task.pool=all"
            )
        if gates.rows not in ("token", "window"):
            raise ValueError(
                f"task.pool: 'computed' needs gates that choose among tokens; rows {gates.rows!r} do not, give "
                f"task.pool=all, or gates.rows token or window"
            )

    def without_gates(self) -> Self:
        """With the mean over all tokens."""
        return self.model_copy(update={"pool": "all"})

    def make(self, grid: GridSpec, train: TrainSpec | None = None) -> Task:
        """`Classify` with the training's smoothing, mixup and cutmix."""
        from routespace.train.tasks.classify import Classify

        weights = self.class_weights if isinstance(self.class_weights, tuple) else None
        return Classify(grid.num_classes, train, pool=self.pool, class_weights=weights)


class SemanticSpec(DenseSpec):
    """Semantic segmentation: a class for each pixel, mean intersection over union.

    Args:
        classes: of pixels, with the background's, where it has one; 255 is the mark of pixels without a class.
        decoder: `semantic_fpn`, `upernet`, or `semantic_fpn_3x3`, whose pyramid has a convolution on each level
            as in the papers' tables.
        channels: of the decoder's maps; a multiple of 16.
        class_weights: of each class's pixels in the loss, such as a small one for a background that covers nearly
            everything; None for all alike.
    """

    metric = MEAN_IOU
    target = "pixels"
    teachable = True
    recordable = True

    kind: Literal["semantic"] = "semantic"
    classes: Annotated[int, Field(ge=1, le=IGNORE)]
    decoder: Literal["semantic_fpn", "semantic_fpn_3x3", "upernet"] = "semantic_fpn"
    channels: Annotated[int, Field(ge=16, le=4096, multiple_of=16)] = 256
    class_weights: tuple[Weight, ...] | None = None

    @model_validator(mode="after")
    def _weigh_all(self) -> Self:
        if self.class_weights is not None and len(self.class_weights) != self.classes:
            raise ValueError(_not_for_all(self.class_weights, self.classes))
        return self

    def make(self, grid: GridSpec, train: TrainSpec | None = None) -> Task:
        """`Semantic` with the training's smoothing."""
        from routespace.train.tasks.semantic import Semantic

        return Semantic(
            self.classes,
            decoder=self.decoder,
            channels=self.channels,
            class_weights=self.class_weights,
            train=train,
        )


TASKS: dict[str, type[TaskSpec]] = {
    "classify": ClassifySpec,
    "detect": DetectSpec,
    "instance": InstanceSpec,
    "semantic": SemanticSpec,
}


def _read(value: Any) -> Any:
    """A kind alone means its defaults."""
    data = {"kind": value} if isinstance(value, str) else value
    kind = data.get("kind") if isinstance(data, Mapping) else getattr(data, "kind", data)
    if not isinstance(kind, str) or kind not in TASKS:
        raise ValueError(f"{kind!r:.40} is no task; give {' or '.join(TASKS)}")
    return data


def _shown(spec: TaskSpec) -> Any:
    """The kind alone where everything else is as it comes: recipes of before there were several stay equal."""
    fields = type(spec).model_fields.items()
    usual = {name for name, field in fields if getattr(spec, name) == field.default}
    plain = usual >= set(type(spec).model_fields) - {"kind"}
    return spec.kind if plain else spec.model_dump(mode="json", exclude=usual & set(spec.later))


if TYPE_CHECKING:
    _Any = TaskSpec
else:
    _Any = Annotated[Union[tuple(TASKS.values())], Field(discriminator="kind")]  # noqa: UP007 (made from the table)

AnyTask = Annotated[_Any, BeforeValidator(_read), PlainSerializer(_shown)]


def grid_defaults(task: Any) -> Mapping[str, Any]:
    """Fields of a grid that follow from a recipe's task, where they are not given."""
    kind = task.get("kind") if isinstance(task, Mapping) else getattr(task, "kind", task)
    spec = TASKS.get(kind) if isinstance(kind, str) else None
    return spec.grid_defaults if spec is not None else {}


def task_of_head(head: Head, grid: GridSpec) -> Task:
    """The task whose networks have such heads; raises SpecError when no task has."""
    return task_spec_of(head).make(grid)


def task_spec_of(head: Head) -> TaskSpec:
    """The `task` of a recipe whose networks have such heads: what it asks for beside the grid, the head knows.

    Raises:
        SpecError: no task has.
    """
    from routespace.errors import SpecError

    if head.kind not in TASKS:
        raise SpecError(
            f"net: its head is of kind {head.kind!r}, which no task measures; give a network with a task"
        )
    return TASKS[head.kind].of_head(head.settings())
