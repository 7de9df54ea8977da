"""Task: head, targets, loss and measure of what is learned; and TaskSpec, its part of a recipe.

The loop, the evaluation and every report speak of the task's metric by its name; none of them knows what it is.
Nothing here imports torch, so that recipes are read at once.

Shape legend: B images · C channels · H, W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from routespace.grid.gate_spec import GateSpec
from routespace.grid.spec import GridSpec
from routespace.train.recipe.parts import Natural, TrainSpec
from routespace.train.recipe.targets import KNOW_OBJECTS, Target
from routespace.train.tasks.by_class import ByClass
from routespace.values import Value

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from routespace.nn.heads.base import Head


@dataclass(frozen=True)
class Metric:
    """The one number that a task is judged by.

    Attributes:
        name: its key in metrics.jsonl and result.json; that of the training images has `train_` before it.
        unit: `%` for a share 0…1 that is shown as a percentage, else what follows the number.
        direction: what is better.
    """

    name: str
    unit: str
    direction: Literal["maximise", "minimise"]

    def text(self, value: float, digits: int = 1) -> str:
        """The value for people, such as `93.1 %`."""
        if self.unit == "%":
            return f"{100 * value:.{digits}f} %"
        return f"{value:.{digits + 2}g} {self.unit}".rstrip()


ACCURACY = Metric("accuracy", "%", "maximise")  # the share of images that are named right
MEAN_IOU = Metric("miou", "%", "maximise")  # of pixels, the mean over classes of intersection over union


class Meter(Protocol):
    """Adds up a pass over held-out images."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Add a batch: what the head gave, and the targets that `Task.prepare` made."""

    def compute(self) -> dict[str, float]:
        """The task's metric by its name, `loss`, and what else there is to tell, in the metric's unit.

        All of it is over all processes, and goes by its name into metrics.jsonl, result.json and reports.

        A process that had no images takes part with nothing. The metric is left out where no image had anything to
        measure it by.
        """

    def by_class(self) -> ByClass | None:
        """What was found of each class, over all processes, all of which have to ask; None without classes."""


class Task(Protocol):
    """What is learned.

    Attributes:
        name: as in a recipe's `task`.
        metric: what it is judged by.
    """

    name: str
    metric: Metric

    def head(self, spec: GridSpec) -> Head:
        """A head with fresh weights for a grid."""

    def prepare(self, batch: Any, device: torch.device, *, training: bool) -> tuple[Tensor, Any]:
        """A loader's batch → images (B, C, H, W) and the targets that `loss` and the meter take, on the device.

        While training, what mixes or augments whole batches happens here.
        """

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """0-d mean loss of a batch."""

    def soft_loss(self, outputs: Any, taught: Any, temperature: float) -> Tensor:
        """0-d distance of a batch's outputs from a teacher's; asked where the task's spec is `teachable`."""

    def score(self, outputs: Any, targets: Any) -> Tensor | None:
        """0-d metric of one training batch, to watch; None where a batch says nothing about it."""

    def meter(self, device: torch.device) -> Meter:
        """A fresh meter for a pass over held-out images."""


class TaskSpec(Value, ABC):
    """A recipe's `task`: its kind and what it needs beside grid and training. In YAML a kind alone will do.

    Args:
        kind: the task's name.
    """

    metric: ClassVar[Metric]
    target: ClassVar[Target] = "label"  # what a source has to give with each image
    teachable: ClassVar[bool] = False  # whether the task has a `soft_loss`, to learn from a teacher by
    recordable: ClassVar[bool] = False  # whether loss and score call the same kernels for whatever they are given
    classes_field: ClassVar[str] = "grid.num_classes"  # where a recipe says how many classes there are
    grid_defaults: ClassVar[Mapping[str, Any]] = {}  # fields of a recipe's grid where they are not given
    later: ClassVar[tuple[str, ...]] = ()  # fields it once had not: hashes are those of before

    kind: str

    @classmethod
    def of_head(cls, settings: Mapping[str, Any]) -> Self:
        """The task of a network, from its head's `settings`: by default each is a field of the task's."""
        return cls(**settings)

    def check(self, grid: GridSpec) -> None:
        """Raise ValueError, naming the recipe's field, when the grid does not fit the task."""
        return

    def check_gates(self, gates: GateSpec, *, routing: str) -> None:
        """Raise ValueError, naming the recipe's field, when gates and task do not go together."""
        if gates.teach == "objects" and routing != "static" and self.target not in KNOW_OBJECTS:
            raise ValueError(
                f"gates.teach: 'objects' is taught by the boxes of annotations, which task {self.kind!r} does not "
                f"read; give 'dense'"
            )

    def without_gates(self) -> Self:
        """The same task for a network that has no gates."""
        return self

    def classes_in(self, grid: GridSpec) -> int:
        """Classes that the network tells apart."""
        return grid.num_classes

    @abstractmethod
    def make(self, grid: GridSpec, train: TrainSpec | None = None) -> Task:
        """The task itself. Imports torch.

        Args:
            grid: number of classes, output rates.
            train: smoothing and mixing of training batches; without it there is none.
        """


class DenseSpec(TaskSpec, ABC):
    """A task that reads a pyramid of maps, and whose classes are the head's.

    Args:
        classes: of objects, or of pixels (with the background's, where it has one).
    """

    classes_field = "task.classes"
    grid_defaults: ClassVar[Mapping[str, Any]] = {"outputs": "pyramid", "num_classes": 0}

    classes: Natural

    def check(self, grid: GridSpec) -> None:
        """A pyramid, and no classifier on it."""
        if grid.outputs != "pyramid":
            raise ValueError(f"grid.outputs: task {self.kind!r} reads the maps of all rates; set it to pyramid")
        if grid.num_classes:
            raise ValueError(
                f"grid.num_classes: {grid.num_classes} is of a classifier, and task {self.kind!r} has none; set "
                f"it to 0, and task.classes to the number of classes"
            )

    def classes_in(self, grid: GridSpec) -> int:
        """`classes`."""
        return self.classes
