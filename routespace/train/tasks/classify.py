"""What is learned: how batches are mixed, what the loss is, what is measured.

Shape legend: B images · K classes.
"""

from __future__ import annotations

import torch
from timm.data.mixup import Mixup
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from routespace.nn.task_net import TaskOutput
from routespace.train.recipe.parts import TrainSpec


class Classify:
    """Classification with cross-entropy; timm's mixup and cutmix.

    Args:
        spec: label smoothing, mixup and cutmix.
        classes: K.
    """

    def __init__(self, spec: TrainSpec, classes: int) -> None:
        self.classes = classes
        self.smoothing = spec.label_smoothing
        self.mixup = None
        if spec.mixup or spec.cutmix:
            self.mixup = Mixup(  # type: ignore[no-untyped-call]
                spec.mixup, spec.cutmix, label_smoothing=spec.label_smoothing, num_classes=classes
            )

    def mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) → images and targets: (B,), or (B, K) where they were mixed."""
        return (images, labels) if self.mixup is None else self.mixup(images, labels)

    def loss(self, output: TaskOutput, targets: Tensor) -> Tensor:
        """0-d cross-entropy; mixed targets are smoothed already."""
        smoothing = self.smoothing if targets.ndim == 1 else 0.0
        return F.cross_entropy(output.logits.float(), targets, label_smoothing=smoothing)

    def hits(self, output: TaskOutput, targets: Tensor) -> Tensor:
        """0-d share of images whose class, or greater class where mixed, was found."""
        wanted = targets if targets.ndim == 1 else targets.argmax(1)
        return (output.logits.argmax(1) == wanted).float().mean()


class ClassifyMeter:
    """Top-1 accuracy and loss over a pass; torchmetrics adds up several processes."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.metrics = MetricCollection(
            {"accuracy": MulticlassAccuracy(num_classes=classes, average="micro"), "loss": MeanMetric()}
        ).to(device)

    def update(self, output: TaskOutput, labels: Tensor) -> None:
        """Add a batch with labels (B,)."""
        self.metrics["accuracy"].update(output.logits, labels)
        loss = F.cross_entropy(output.logits.float(), labels)
        self.metrics["loss"].update(loss, len(labels))

    def compute(self) -> dict[str, float]:
        """`accuracy` in 0…1 and `loss`."""
        return {name: float(value) for name, value in self.metrics.compute().items()}
