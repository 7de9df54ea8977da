"""Semantic segmentation: cross-entropy of pixels, mean intersection over union.

Logits come at a quarter of the image's size and are interpolated to the size of the targets, which in evaluation
may be the original pictures'. Pixels without a class (IGNORE) count for nothing. Classes that occur neither in the
targets nor in the answers are left out of means over classes, as mmsegmentation does.

Shape legend: B images · K classes · h, w of the logits · H, W of the targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, SumMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from routespace.grid.spec import GridSpec
from routespace.nn.heads.base import Head
from routespace.nn.heads.semantic import PixelClassifier
from routespace.train.recipe.parts import TrainSpec
from routespace.train.recipe.targets import IGNORE
from routespace.train.tasks.base import MEAN_IOU
from routespace.train.tasks.batches import check_pixels, pair
from routespace.train.tasks.by_class import ByClass
from routespace.train.tasks.classify import computed

LEAST_WEIGHT = 1e-12  # of a batch in which no pixel has a class
AT_ONCE = 1 << 22  # interpolated logits in a meter: 24 megapixels and 150 classes would be 14 GB of them
Targets = Tensor | Sequence[Tensor]  # (B, H, W), or B maps (H, W) of different sizes


class Semantic:
    """Semantic segmentation of images.

    Args:
        classes: K, the background's too where it has one.
        decoder: see `PixelClassifier`.
        channels: of the decoder.
        class_weights: of each class's pixels in the loss; None for all alike.
        train: label smoothing; None for none.
    """

    name = "semantic"
    metric = MEAN_IOU

    def __init__(
        self,
        classes: int,
        *,
        decoder: str = "semantic_fpn",
        channels: int = 256,
        class_weights: Sequence[float] | None = None,
        train: TrainSpec | None = None,
    ) -> None:
        self.classes = classes
        self.settings = {"classes": classes, "decoder": decoder, "channels": channels}
        self.weights = None if class_weights is None else torch.tensor(class_weights)
        self.smoothing = train.label_smoothing if train is not None else 0.0

    def head(self, spec: GridSpec) -> Head:
        """The decoder and a class for each place."""
        return PixelClassifier.build(spec, self.settings)

    def prepare(self, batch: Any, device: torch.device, *, training: bool) -> tuple[Tensor, Targets]:
        """Images (B, C, H, W) and maps of classes → the same on the device."""
        images, targets = pair(batch)
        if not training:  # a recipe's own data is looked at when it is read
            check_pixels(targets, len(images), self.classes, IGNORE)
        if isinstance(targets, Tensor):
            return images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        return images.to(device, non_blocking=True), [target.to(device) for target in targets]

    def loss(self, outputs: Tensor, targets: Targets) -> Tensor:
        """0-d mean cross-entropy of all pixels that have a class, by its weight; 0 where none has."""
        total, weight = (outputs.new_zeros((), dtype=torch.float32) for _ in range(2))
        weights = self.weights = None if self.weights is None else self.weights.to(outputs.device)
        for logits, wanted in _at_full_size(outputs, targets):
            total = total + _cross_entropy(logits, wanted, self.smoothing, weights)
            known = wanted != IGNORE  # not picked out: their number would have to be asked of a device
            each = known if weights is None else torch.where(known, weights[torch.where(known, wanted, 0)], 0.0)
            weight = weight + each.sum()
        return total / weight.clamp(min=LEAST_WEIGHT)

    def soft_loss(self, outputs: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """0-d T²·KL of logits (B, K, h, w) from a teacher's, both at temperature T, mean over all places.

        A teacher that is fed at another size is interpolated to ours.
        """
        if taught.shape[-2:] != outputs.shape[-2:]:
            taught = full_size(taught, (outputs.shape[-2], outputs.shape[-1]))
        ours = F.log_softmax(outputs.float() / temperature, 1)
        theirs = F.log_softmax(taught.float() / temperature, 1)
        distance = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
        return distance.mean() * temperature**2

    def score(self, outputs: Tensor, targets: Targets) -> Tensor:
        """0-d mean intersection over union of a batch, looked at where the logits are: one pixel in sixteen."""
        answers = outputs.argmax(1)
        maps = [targets] if isinstance(targets, Tensor) else [target[None] for target in targets]
        size = answers.shape[-2:]
        wanted = torch.cat([F.interpolate(one[:, None].float(), size, mode="nearest") for one in maps])[
            :, 0
        ].long()
        pairs = torch.where(wanted != IGNORE, wanted * self.classes + answers, self.classes**2).flatten()
        counts = pairs.new_zeros(self.classes**2 + 1).scatter_add_(0, pairs, torch.ones_like(pairs))[:-1]
        return mean_iou(counts.view(self.classes, self.classes)).float()

    def meter(self, device: torch.device) -> SemanticMeter:
        """Mean intersection over union, share of pixels, and loss."""
        return SemanticMeter(self.classes, device)


class SemanticMeter:
    """What a pass finds, over all pixels of all images; torchmetrics adds up several processes.

    Args:
        classes: K.
        device: where it adds up.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        counts = MulticlassConfusionMatrix(num_classes=classes, ignore_index=IGNORE, validate_args=False)
        self.counts: Metric = counts.to(device)
        self.loss: Metric = SumMetric(nan_strategy="disable").to(device).set_dtype(torch.float64)

    def update(self, outputs: Tensor, targets: Targets) -> None:
        """Add a batch of logits (B, K, h, w) with maps of classes of any size."""
        for logits, wanted in _in_parts(outputs, targets):
            self.counts.update(logits.argmax(1), wanted)
            self.loss.update(_cross_entropy(logits, wanted).double())

    def compute(self) -> dict[str, float]:
        """`miou` and `pixel_accuracy` in 0…1, and `loss`, the mean of all pixels that have a class.

        Where no pixel has one, there is a loss of 0 alone.
        """
        counts, loss = (computed(metric) for metric in (self.counts, self.loss))
        counts, pixels = counts.double(), counts.sum()
        if not pixels:
            return {"loss": 0.0}
        found = {
            "miou": mean_iou(counts),
            "pixel_accuracy": counts.diagonal().sum() / pixels,
            "loss": loss / pixels,
        }
        return {name: float(value) for name, value in found.items()}

    def by_class(self) -> ByClass:
        """`pixels` of each class, the share of them that was found (`accuracy`), and `iou`, as in `miou`."""
        counts = computed(self.counts).long().cpu()
        right, there, named = (part.tolist() for part in (counts.diagonal(), counts.sum(1), counts.sum(0)))
        rows: list[dict[str, float]] = [{} for _ in right]
        for label, row in enumerate(rows):
            if there[label]:
                row |= {"pixels": there[label], "accuracy": right[label] / there[label]}
            if there[label] or named[label]:
                row["iou"] = right[label] / (there[label] + named[label] - right[label])
        wrong, others = (counts - counts.diag().diag()).max(1)
        taken_for = {n: other for n, (most, other) in enumerate(zip(wrong, others.tolist(), strict=True)) if most}
        return ByClass(tuple(rows), taken_for=taken_for)


def mean_iou(counts: Tensor) -> Tensor:
    """0-d mean over classes of the intersection over the union, of classes that have a union.

    Args:
        counts: (K, K) pixels by class in the targets, and by class in the answers.
    """
    right = counts.diagonal().double()
    union = counts.sum(0) + counts.sum(1) - right
    return (right / union.clamp(min=1)).sum() / (union > 0).sum().clamp(min=1)


def full_size(logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Logits (B, K, h, w) → (B, K, H, W)."""
    return F.interpolate(logits, (size[0], size[1]), mode="bilinear", align_corners=False)


def rows_at_full_size(logits: Tensor, size: tuple[int, int] | torch.Size, rows: range) -> Tensor:
    """Those rows of `full_size`, to rounding: logits (B, K, h, w) → (B, K, len(rows), W).

    Only the logits' rows that they lie between grow to W, so that a picture needs no more memory than its parts.
    """
    last = logits.shape[-2] - 1
    there = torch.arange(rows.start, rows.stop, dtype=torch.float32)
    at = ((there + 0.5) * (logits.shape[-2] / size[0]) - 0.5).clamp(min=0)  # as torch places them
    low = at.long().clamp(max=last)
    high = (low + 1).clamp(max=last)
    top, end = int(low[0]), int(high[-1]) + 1
    wide = full_size(logits[..., top:end, :], (end - top, size[1]))
    share = (at - low)[:, None].to(logits.device)
    above, below = (wide.index_select(-2, (row - top).to(logits.device)) for row in (low, high))
    return above * (1 - share) + below * share


def _at_full_size(outputs: Tensor, targets: Targets) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (b, K, H, W) with targets (b, H, W): images of one size together."""
    for logits, wanted in _of_one_size(outputs, targets):
        yield full_size(logits.float(), wanted.shape[-2:]), wanted


def _in_parts(outputs: Tensor, targets: Targets) -> Iterator[tuple[Tensor, Tensor]]:
    """The same in parts of at most AT_ONCE logits, or of one row: some images, or some rows of one."""
    for of_size, maps in _of_one_size(outputs, targets):
        size, row = maps.shape[-2:], outputs.shape[1] * maps.shape[-1]
        images, step = max(1, AT_ONCE // (row * size[0])), max(1, AT_ONCE // row)
        for some, wanted in zip(of_size.split(images), maps.split(images), strict=True):
            logits = some.float()
            if step >= size[0]:
                yield full_size(logits, size), wanted
                continue
            for top in range(0, size[0], step):
                rows = range(top, min(top + step, size[0]))
                yield rows_at_full_size(logits, size, rows), wanted[:, rows.start : rows.stop]


def _of_one_size(outputs: Tensor, targets: Targets) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (b, K, h, w) with targets (b, H, W)."""
    if isinstance(targets, Tensor):
        yield outputs, targets
        return
    for logits, wanted in zip(outputs, targets, strict=True):
        yield logits[None], wanted[None]


def _cross_entropy(
    logits: Tensor, wanted: Tensor, smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """0-d sum over all pixels that have a class, by its weight."""
    return F.cross_entropy(
        logits, wanted, weight=weights, ignore_index=IGNORE, label_smoothing=smoothing, reduction="sum"
    )
