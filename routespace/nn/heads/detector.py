"""What detectors have in common: what they give is kept as it comes, and becomes losses or boxes when asked for.

    outputs = net(images).outputs                     # Detected
    outputs.losses(targets)                           # name → 0-d loss
    outputs.detections([(480, 640)] * B)              # a dict of boxes, scores, labels of each image

Targets are those of recipe/targets.py. Nothing is resized or padded: images come normalised and as they are.

Shape legend: B images of one size · N boxes · H, W pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from routespace.errors import SpecError
from routespace.grid.spec import GridSpec
from routespace.nn.heads.base import Head, listed, missing_maps
from routespace.nn.heads.pyramid import Pyramid
from routespace.nn.packing.compiler import is_plain_run
from routespace.nn.route_net import RouteOutput
from routespace.nn.trees import register_value
from routespace.nn.views import view_of

Size = tuple[int, int]
Found = dict[str, Tensor]  # of an image: boxes (N, 4), scores (N,), labels (N,) from 0, masks (N, H, W) bool


@dataclass(frozen=True, eq=False)
class Detected:
    """What a detector gave for B images of one size, before boxes are made of it.

    Attributes:
        head: the detector.
        raw: tensors, one for each of its `names`.
    """

    head: Detector
    raw: tuple[Tensor, ...]

    def losses(self, targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Name → 0-d loss, means over the images; see `Detector.losses_of`."""
        return self.head.losses_of(self.raw, targets)

    def image_losses(self, targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """(B,) the sum of the losses of each image as if it came alone."""
        return self.head.image_losses_of(self.raw, targets)

    def detections(self, sizes: Sequence[Size], shown: Sequence[Size] | None = None) -> list[Found]:
        """The objects of each image, best first; see `Detector.detections_of`."""
        return self.head.detections_of(self.raw, sizes, shown)


register_value(Detected, lambda one: (one.raw, one.head), lambda raw, head: Detected(head, tuple(raw)))


class Detector(Head):
    """A head that finds objects."""

    detector: Any  # torchvision's, over a Pyramid
    pyramid_rates: tuple[int, ...]  # of the maps that it stands on, fine to coarse
    grid_rates: tuple[int, ...]  # those of them that come from the grid
    usual: ClassVar[tuple[int, ...]]  # what such detectors read where a grid has it

    def reads(self, spec: GridSpec) -> tuple[int, ...]:
        """Those of its pyramid that come from the grid."""
        return self.grid_rates

    def coarsest(self, spec: GridSpec) -> int:
        """That of the coarsest map that it makes."""
        return max(self.pyramid_rates)

    def lines(self) -> tuple[str, ...]:
        """Which of the usual maps the grid does not have, or the architecture never reaches."""
        built = self.pyramid.built
        why = missing_maps(
            grid=[rate for rate in self.usual if rate not in built and rate > max(built)],
            architecture=[rate for rate in built if rate not in self.grid_rates],
        )
        if not why:
            return ()
        made = [rate for rate in self.pyramid_rates if rate not in self.grid_rates]
        of = "the last" if built == self.grid_rates else "them"
        return (f"task: {why}; the detector reads {listed(self.grid_rates)} and makes {listed(made)} of {of}",)

    @abstractmethod
    def raw_of(self, maps: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
        """The raw tensors, one for each of `names`, of rate → (B, C, H, W) maps of one image or more."""

    def forward(self, output: RouteOutput) -> Detected:
        """What it gives for the maps of B images; filters and cascades also make batches of none."""
        maps = output.maps
        some = next(iter(maps.values()))
        if not is_plain_run(some) or len(some):  # a length that is asked for would be fixed in an export
            return Detected(self, self.raw_of(maps))
        # torchvision cannot tell the shapes of nothing: those of one image, cut, have them.
        raw = self.raw_of({rate: x.new_zeros(1, *x.shape[1:]) + x.sum() for rate, x in maps.items()})
        return Detected(self, tuple(part[:0] for part in raw))

    def over(self, rates: Sequence[int]) -> Self:
        """A detector whose pyramid does without the maps of the other rates: see `Pyramid.drop_to`."""
        kept = tuple(rate for rate in self.grid_rates if rate in rates)
        if kept == self.grid_rates:
            return self
        if not kept:
            raise SpecError(
                f"head: the detector reads maps at rates {listed(self.grid_rates)}, and the architecture reaches "
                f"{listed(rates)} alone; keep a path to one of them"
            )
        part = view_of(self)
        part.pyramid.drop_to(kept)
        part.stand_on_pyramid()
        return part

    @property
    def pyramid(self) -> Pyramid:
        """The maps that it stands on."""
        found = self.detector.backbone
        assert isinstance(found, Pyramid)
        return found

    @abstractmethod
    def stand_on_pyramid(self) -> None:
        """Take rates, anchors and whatever else follows from the pyramid's rates from it, in place."""

    @abstractmethod
    def losses_of(self, raw: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Losses of raw tensors.

        Args:
            raw: what the network gave, one tensor for each of `names`.
            targets: of each image: boxes (N, 4), labels (N,), crowd (N,), fed (2,). Crowds teach nothing.

        Returns:
            Name → 0-d loss; their sum is what is minimised.
        """

    def image_losses_of(self, raw: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """(B,) the sum of the losses of each image alone: those of some detectors depend on what else is there."""
        alone = (self.losses_of([part[n : n + 1] for part in raw], [one]) for n, one in enumerate(targets))
        return torch.stack([torch.stack(list(losses.values())).sum() for losses in alone])

    @abstractmethod
    def found_in(self, raw: Sequence[Tensor], sizes: Sequence[Size]) -> list[Found]:
        """Boxes of each image in its own pixels, best first; masks as torchvision gives them."""

    def detections_of(
        self, raw: Sequence[Tensor], sizes: Sequence[Size], shown: Sequence[Size] | None = None
    ) -> list[Found]:
        """Objects of each image from raw tensors alone, such as those of an exported file.

        Args:
            raw: what the network gave, one tensor for each of `names`, of B images of one size.
            sizes: (H, W) of each image as it was fed.
            shown: (H, W) of the pictures in whose pixels the boxes shall be told; those that were fed by default.

        Returns:
            boxes (N, 4) x1 y1 x2 y2, scores (N,) 0…1 from the best down, labels (N,) from 0; and where the
            detector finds masks, masks (N, H, W) bool.
        """
        if not len(sizes):
            return []
        with torch.no_grad():
            found = self.found_in([part.float() for part in raw], sizes)
            wanted = sizes if shown is None else shown
            return [self.shown_at(*one) for one in zip(found, sizes, wanted, strict=True)]

    def shown_at(self, found: Found, size: Size, shown: Size) -> Found:
        """What was found in an image of (H, W) pixels, in pixels of a picture of another size."""
        factors = found["boxes"].new_tensor([shown[1] / size[1], shown[0] / size[0]] * 2)
        return found | {"boxes": found["boxes"] * factors} if shown != size else found

    def tensors(self, outputs: Detected) -> tuple[Tensor, ...]:
        """The raw tensors."""
        return outputs.raw


def fed_size(target: Mapping[str, Tensor]) -> Size:
    """(H, W) of the image as it was fed."""
    height, width = target["fed"].tolist()
    return int(height), int(width)


def learned(target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The objects of a target that can be learned from: no crowds, nothing without an area.

    A target that tells of no crowds has nothing else, as a task prepares it: a device need not be asked.
    """
    known = {name: target[name] for name in ("boxes", "labels", "masks") if name in target}
    if "crowd" not in target:
        return known
    boxes = target["boxes"]
    keep = ~target["crowd"] & (boxes[:, 2:] > boxes[:, :2]).all(1)
    return known if not boxes.is_cuda and bool(keep.all()) else {name: one[keep] for name, one in known.items()}


class KnownObjects(NamedTuple):
    """The objects of all images, padded to the most that one has, at least one: nobody has to ask for numbers.

    Attributes:
        boxes: (B, N, 4).
        labels: (B, N).
        there: (B, N) bool: an object that can be learned from.
    """

    boxes: Tensor
    labels: Tensor
    there: Tensor

    @classmethod
    def of(cls, targets: Sequence[Mapping[str, Tensor]]) -> KnownObjects:
        """Of what is known of each image, whose crowds and boxes without an area are no objects here."""
        boxes, labels = (
            pad_sequence([one[name] for one in targets], batch_first=True) for name in ("boxes", "labels")
        )
        if not boxes.shape[1]:
            boxes, labels = boxes.new_zeros(len(targets), 1, 4), labels.new_zeros(len(targets), 1)
        there = (boxes[..., 2:] > boxes[..., :2]).all(-1)
        if all("crowd" in one for one in targets):
            crowd = pad_sequence([one["crowd"] for one in targets], batch_first=True, padding_value=True)
            there[:, : crowd.shape[1]] &= ~crowd
        return cls(boxes, labels, there)


def split(tensors: Mapping[str, Tensor], counts: Sequence[int]) -> dict[str, list[Tensor]]:
    """Each tensor (B, N, …) as one for each map, of which `counts` tells the boxes."""
    return {name: list(tensor.split(list(counts), dim=1)) for name, tensor in tensors.items()}
