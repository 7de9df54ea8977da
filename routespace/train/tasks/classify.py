"""Classification: cross-entropy, timm's mixup and cutmix, top-1 accuracy.

Shape legend: B images · C channels · H, W pixels · K classes.
"""

from __future__ import annotations

import warnings

import torch
from timm.data.mixup import Mixup
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from routespace.errors import SpecError
from routespace.grid.spec import GridSpec
from routespace.nn.heads.base import Head
from routespace.nn.heads.classify import Classifier
from routespace.nn.heads.settings import Pool
from routespace.train.recipe.parts import TrainSpec
from routespace.train.tasks.base import ACCURACY

LEAST_CLASSES = 2  # that can be told apart


class Classify:
    """Classification of images.

    Args:
        classes: K.
        train: label smoothing, mixup and cutmix; None for none of them.
        pool: see `Classifier`.
    """

    name = "classify"
    metric = ACCURACY

    def __init__(self, classes: int, train: TrainSpec | None = None, *, pool: Pool = "all") -> None:
        self.classes, self.pool = classes, pool
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
        images, labels = (part.to(device, non_blocking=True) for part in batch)
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
        """0-d cross-entropy of logits (B, K); mixed targets are smoothed already."""
        smoothing = self.smoothing if targets.ndim == 1 else 0.0
        return F.cross_entropy(outputs.float(), targets, label_smoothing=smoothing)

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
    """Top-1 accuracy and loss over a pass; torchmetrics adds up several processes."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.metrics: dict[str, Metric] = {
            "accuracy": MulticlassAccuracy(num_classes=classes, average="micro").to(device),
            # Else it would leave out what is NaN; so told, it heeds no weights, and is given each image's loss.
            "loss": MeanMetric(nan_strategy="disable").to(device).set_dtype(torch.float64),
        }

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch of logits (B, K) with labels (B,)."""
        self.metrics["accuracy"].update(outputs, targets)
        self.metrics["loss"].update(F.cross_entropy(outputs.float(), targets, reduction="none"))

    def compute(self) -> dict[str, float]:
        """`accuracy` in 0…1 and `loss`."""
        with warnings.catch_warnings():  # of a process that had no images, though others had
            warnings.filterwarnings("ignore", message=".*compute.*before the .*update")
            return {name: float(metric.compute()) for name, metric in self.metrics.items()}
