"""Classification: cross-entropy, timm's mixup and cutmix, top-1 accuracy.

Shape legend: B images · C channels · H, W pixels · K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from timm.data.mixup import Mixup
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import CatMetric, MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from routespace.errors import SpecError
from routespace.grid.spec import GridSpec
from routespace.nn.heads.base import Head
from routespace.nn.heads.classify import Classifier
from routespace.nn.heads.settings import Pool
from routespace.train.recipe.parts import TrainSpec
from routespace.train.tasks.base import ACCURACY
from routespace.train.tasks.batches import pair, whole_labels
from routespace.train.tasks.by_class import ByClass, most_taken_for

LEAST_CLASSES = 2  # that can be told apart
TOP = 5  # likeliest classes, as is usual where there are many


class Classify:
    """Classification of images.

    Args:
        classes: K.
        train: label smoothing, mixup and cutmix; None for none of them.
        pool: see `Classifier`.
        class_weights: of each class's images in the loss; None for all alike. What is measured heeds none.
    """

    name = "classify"
    metric = ACCURACY

    def __init__(
        self,
        classes: int,
        train: TrainSpec | None = None,
        *,
        pool: Pool = "all",
        class_weights: Sequence[float] | None = None,
    ) -> None:
        self.classes, self.pool = classes, pool
        self.weights = None if class_weights is None else torch.tensor(class_weights)
        self.smoothing = train.label_smoothing if train is not None else 0.0
        self.mixup = None
        if train is not None and (train.mixup or train.cutmix):
            self.mixup = Mixup(
                train.mixup, train.cutmix, label_smoothing=train.label_smoothing, num_classes=classes
            )

    def head(self, spec: GridSpec) -> Head:
        """A linear classifier."""
        return Classifier.build(spec, {"pool": self.pool})

    def prepare(
        self, batch: tuple[Tensor, Tensor], device: torch.device, *, training: bool
    ) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) → the same, or mixed images and targets (B, K)."""
        images, given = pair(batch)
        wanted = whole_labels(given, len(images), self.classes)
        images, labels = (part.to(device, non_blocking=True) for part in (images, wanted))
        if self.mixup is None or not training:
            return images, labels
        if len(images) % 2:
            raise SpecError(
                f"train.batch_size: mixup and cutmix pair images, and {len(images)} of a process are odd; give an "
                f"even number for each process"
            )
        mixed: tuple[Tensor, Tensor] = self.mixup(images, labels)
        return mixed

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """0-d cross-entropy of logits (B, K), by the classes' weights; mixed targets are smoothed already."""
        smoothing = self.smoothing if targets.ndim == 1 else 0.0
        weights = self.weights = None if self.weights is None else self.weights.to(outputs.device)
        return F.cross_entropy(outputs.float(), targets, weight=weights, label_smoothing=smoothing)

    def soft_loss(self, outputs: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """0-d T²·KL of logits (B, K) from a teacher's (B, K), both at temperature T."""
        ours = F.log_softmax(outputs.float() / temperature, 1)
        theirs = F.log_softmax(taught.float() / temperature, 1)
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """0-d share of images whose class, or greater class where mixed, was found."""
        wanted = targets if targets.ndim == 1 else targets.argmax(1)
        return (outputs.argmax(1) == wanted).float().mean()

    def meter(self, device: torch.device) -> ClassifyMeter:
        """Accuracy and loss; raises SpecError where there is one class, which is always right."""
        if self.classes < LEAST_CLASSES:
            raise SpecError(
                f"num_classes: {self.classes} class tells nothing apart, so that there is no accuracy to measure; "
                f"give a network of two classes or more"
            )
        return ClassifyMeter(self.classes, device)


class ClassifyMeter:
    """Top-1 accuracy and loss over a pass, and of each class; torchmetrics adds up several processes."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.classes = classes
        self.metrics: dict[str, Metric] = {
            "accuracy": MulticlassAccuracy(num_classes=classes, average="micro").to(device),
            # Else it would leave out what is NaN; so told, it heeds no weights, and is given each image's loss.
            "loss": MeanMetric(nan_strategy="disable").to(device).set_dtype(torch.float64),
        }
        if classes > TOP:
            self.metrics[f"top{TOP}_accuracy"] = MulticlassAccuracy(classes, TOP, average="micro").to(device)
        # Each image's class and answer as one number: a matrix of all pairs would be gigabytes of 20 000 classes.
        self.pairs: Metric = CatMetric(nan_strategy="disable").to(device).set_dtype(torch.float64)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch of logits (B, K) with labels (B,)."""
        for name, metric in self.metrics.items():
            if name != "loss":
                metric.update(outputs, targets)
        self.metrics["loss"].update(F.cross_entropy(outputs.float(), targets, reduction="none"))
        self.pairs.update((targets * self.classes + outputs.argmax(1)).double())

    def compute(self) -> dict[str, float]:
        """`accuracy`, `balanced_accuracy` and, of more than five classes, `top5_accuracy` in 0…1, and `loss`.

        Balanced accuracy is the mean over the classes that there are images of, whatever their number.
        """
        found = {name: float(computed(metric)) for name, metric in self.metrics.items()}
        images, _, right = self._numbers()
        there = images > 0
        if there.any():
            found["balanced_accuracy"] = float((right[there] / images[there]).mean())
        return found

    def by_class(self) -> ByClass:
        """`images` of each class, the share of them that was named right (`accuracy`), and `precision`."""
        images, answers, right = (numbers.tolist() for numbers in self._numbers())
        confusion = self._confusion()
        rows: list[dict[str, float]] = [{} for _ in range(self.classes)]
        for label, row in enumerate(rows):
            if images[label]:
                row["images"] = int(images[label])
                row["accuracy"] = right[label] / images[label]
            if answers[label]:
                row["precision"] = right[label] / answers[label]
        return ByClass(tuple(rows), confusion, most_taken_for(confusion))

    def _numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """(K,) float64 each: images of a class, answers that name it, and right ones."""
        pairs = self._pairs()
        labels, answers = pairs // self.classes, pairs % self.classes
        parts = (labels, answers, labels[labels == answers])
        images, named, right = (torch.bincount(part, minlength=self.classes).double() for part in parts)
        return images, named, right

    def _confusion(self) -> dict[tuple[int, int], int]:
        values, counts = self._pairs().unique(return_counts=True)
        return {
            divmod(pair, self.classes): count for pair, count in zip(values.tolist(), counts.tolist(), strict=True)
        }

    def _pairs(self) -> Tensor:
        """Of all images of all processes, one number each; empty where there were none."""
        found = computed(self.pairs)
        return torch.as_tensor(found).long().reshape(-1).cpu()


def computed(metric: Metric) -> Tensor:
    """What a metric found, also where this process gave it nothing."""
    with warnings.catch_warnings():  # of a process that had no images, though others had
        warnings.filterwarnings("ignore", message=".*compute.*before the .*update")
        found: Tensor = metric.compute()
    return found
