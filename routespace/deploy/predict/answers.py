"""What a network says about an image: classes, objects, or the class of each pixel. No torch.

    answer.label, answer.score              of whatever task: the likeliest, the surest, the most frequent
    answer.boxes, answer.masks              of a detector, in pixels of the picture itself
    answer.classes                          (H, W), of a network of pixel classes

`coco_results` tells answers as the JSON data that COCO's tools read.

Shape legend: K classes · N objects, best first · H, W of the picture as it lies there, upright.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]
BOX_DIGITS, SCORE_DIGITS = 3, 7  # behind the point: coarser scores are ties, which change an average precision
AT_ONCE = 1 << 22  # numbers of grown logits: those of a photograph of 12 megapixels and 150 classes would be 7 GB


@dataclass(frozen=True)
class Prediction:
    """What a network says about an image.

    Attributes:
        path: of the image; None for one that was given as pixels or as an open file.
        labels: names: of the likeliest classes; of the objects; of the classes that pixels have. The first is the
            likeliest, the surest, the most frequent.
        scores: of the same, 0…1: of all classes together 1; of each object its own; shares of the pixels.
    """

    path: str | None
    labels: tuple[str, ...]
    scores: tuple[float, ...]

    @property
    def label(self) -> str:
        """The first of the names; empty where nothing was found."""
        return self.labels[0] if self.labels else ""

    @property
    def score(self) -> float:
        """Its score, 0…1."""
        return self.scores[0] if self.scores else 0.0


@dataclass(frozen=True)
class FoundObjects(Prediction):
    """The objects of an image.

    Attributes:
        size: (H, W).
        classes: (N,) int, from 0.
        boxes: (N, 4) float x1 y1 x2 y2.
        masks: (N, H, W) bool; None of a network that finds boxes alone.
    """

    size: Size
    classes: NDArray[np.int64]
    boxes: NDArray[np.float32]
    masks: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class PixelClasses(Prediction):
    """The class of each pixel.

    Attributes:
        classes: (H, W) uint8, from 0.
    """

    classes: NDArray[np.uint8]


def objects_from(
    path: str | None, size: Size, found: dict[str, NDArray[Any]], names: Sequence[str], least_score: float
) -> FoundObjects:
    """The objects of one image as its answer; `found` holds boxes, labels, scores and, of some networks, masks."""
    keep = found["scores"] >= least_score
    kept = {name: numbers[keep] for name, numbers in found.items()}
    labels = tuple(name_of(number, names) for number in kept["labels"].tolist())
    scores = tuple(float(score) for score in kept["scores"])
    return FoundObjects(path, labels, scores, size, kept["labels"], kept["boxes"], kept.get("masks"))


def pixels_from(path: str | None, size: Size, logits: NDArray[np.float32], names: Sequence[str]) -> PixelClasses:
    """The classes of an image's pixels from its logits (K, h, w), some rows at a time."""
    classes = np.empty(size, np.uint8)
    step = max(1, AT_ONCE // (len(logits) * size[1]))
    for top in range(0, size[0], step):
        classes[top : top + step] = grown(logits, size, range(top, min(top + step, size[0]))).argmax(0)
    counts = np.bincount(classes.ravel(), minlength=len(logits))
    there = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number]]
    shares = tuple(float(counts[number] / classes.size) for number in there)
    return PixelClasses(path, tuple(name_of(number, names) for number in there), shares, classes)


def name_of(number: int, names: Sequence[str]) -> str:
    """A class's name; its number where there are no names."""
    return names[number] if names else str(number)


def grown(maps: NDArray[np.float32], size: Size, rows: range | None = None) -> NDArray[np.float32]:
    """(K, h, w) → (K, H, W), or those rows of it; bilinear: torch's numbers (`align_corners` False)."""
    for axis, side, wanted in ((1, size[0], rows), (2, size[1], None)):
        count, places = maps.shape[axis], wanted or range(side)
        there = np.arange(places.start, places.stop, dtype=np.float32)
        at = np.maximum((there + 0.5) * np.float32(count / side) - 0.5, 0)
        low = np.minimum(at.astype(np.int64), count - 1)
        high = np.minimum(low + 1, count - 1)
        share = (at - low).astype(np.float32)
        share = share[:, None] if axis == 1 else share
        maps = maps.take(low, axis) * (1 - share) + maps.take(high, axis) * share
    return maps


def coco_results(
    number: int, answer: FoundObjects, categories: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """An image's objects as COCO's result format has them, and the names beside.

    Args:
        number: of the image: its id, or its place in what was asked, from 1.
        answer: its objects.
        categories: class name → id; None counts them from 1, in the order of the network's classes.
    """
    results = []
    for place, (name, score) in enumerate(zip(answer.labels, answer.scores, strict=True)):
        left, top, right, bottom = (round(float(side), BOX_DIGITS) for side in answer.boxes[place])
        result: dict[str, Any] = {
            "image_id": number,
            "file_name": answer.path,
            "category_id": int(answer.classes[place]) + 1 if categories is None else categories[name],
            "category": name,
            "bbox": [left, top, round(right - left, BOX_DIGITS), round(bottom - top, BOX_DIGITS)],
            "score": round(score, SCORE_DIGITS),
        }
        if answer.masks is not None:
            result["segmentation"] = run_lengths(answer.masks[place])
        results.append(result)
    return results


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask (H, W) as COCO's compressed run lengths."""
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def pixel_results(number: int, answer: PixelClasses, file: str | None) -> dict[str, Any]:
    """What is told of an image's pixels: shares by class, and the file of its map, where there is one."""
    shares = zip(answer.labels, answer.scores, strict=True)
    return {
        "image_id": number,
        "file_name": answer.path,
        "size": list(answer.classes.shape),
        "classes": [{"name": name, "share": round(share, 6)} for name, share in shares],
        "map": file,
    }
