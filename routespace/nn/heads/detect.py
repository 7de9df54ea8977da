"""RetinaNet and FCOS over a grid's pyramid: torchvision's heads, anchors, losses and choice of boxes.

Shape legend: B images of one size · H, W pixels · A anchors of a place · M all anchors · K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.ops import sigmoid_focal_loss

from routespace.grid.families.base import EdgeCost
from routespace.grid.spec import GridSpec
from routespace.nn.heads.detector import Detected, Detector, Found, Size, fed_size, learned, split
from routespace.nn.heads.pyramid import Pyramid, RateAnchors, cost_of, places_of
from routespace.nn.heads.retinanet import image_losses
from routespace.nn.heads.settings import TOWER_CONVS, DetectSettings

OCTAVES = 3  # anchor sizes of a map


class DetectHead(Detector):
    """RetinaNet or FCOS.

    Parameters are called as torchvision's: `detector.backbone.fpn.*`, `detector.head.*`.

    Args:
        widths: rate → channels of the maps that it reads, fine to coarse.
        told: the settings.
    """

    kind = "detect"
    free_size = True
    usual = (8, 16, 32)

    def __init__(self, widths: Mapping[int, int], told: DetectSettings) -> None:
        super().__init__()
        self.told = told
        pyramid = Pyramid(widths, told.width, beyond=told.beyond)
        common: dict[str, Any] = {
            "score_thresh": told.score_threshold,
            "nms_thresh": told.overlap,
            "detections_per_img": told.max_detections,
            "topk_candidates": told.candidates,
        }
        if told.detector == "fcos":
            self.names = ("cls_logits", "bbox_regression", "bbox_ctrness")
            self.detector = FCOS(pyramid, told.classes, anchor_generator=self._anchors(pyramid), **common)
        else:
            self.names = ("cls_logits", "bbox_regression")
            self.detector = RetinaNet(pyramid, told.classes, anchor_generator=self._anchors(pyramid), **common)
        for tower in (self.detector.head.classification_head, self.detector.head.regression_head):
            tower.conv = tower.conv[: len(tower.conv) // TOWER_CONVS * told.convs]
        self.detector.transform = nn.Identity()  # images come as they shall be
        self.stand_on_pyramid()

    def _anchors(self, pyramid: Pyramid) -> RateAnchors:
        if self.told.detector == "fcos":
            return RateAnchors(pyramid.rates, scale=1.0, octaves=1, ratios=(1.0,))
        scale, ratios = self.told.anchor_scale, self.told.anchor_ratios
        return RateAnchors(pyramid.rates, scale=scale, octaves=OCTAVES, ratios=ratios)

    def stand_on_pyramid(self) -> None:
        """See Detector."""
        self.grid_rates, self.pyramid_rates = self.pyramid.read, self.pyramid.rates
        self.detector.anchor_generator = self._anchors(self.pyramid)

    @property
    def anchors(self) -> RateAnchors:
        """The anchors of its maps; of FCOS the squares around its points."""
        found = self.detector.anchor_generator
        assert isinstance(found, RateAnchors)
        return found

    @classmethod
    def build(cls, spec: GridSpec, settings: Mapping[str, Any]) -> Self:
        """A detector with fresh weights on the grid's maps from `finest` on, or on the coarsest."""
        told = DetectSettings.parse(dict(settings), name="head")
        return cls({rate: spec.width(rate) for rate in read_rates(spec.output_rates, told.finest)}, told)

    @classmethod
    def decoder(cls, rates: Sequence[int], settings: Mapping[str, Any]) -> Self:
        """A detector without weights, which only makes boxes of raw tensors, such as those of an exported file.

        Args:
            rates: of the grid's output maps.
            settings: as for `build`.
        """
        told = DetectSettings.parse(dict(settings), name="head")
        with torch.device("meta"):
            return cls(dict.fromkeys(read_rates(rates, told.finest), 1), told).eval()

    def settings(self) -> dict[str, Any]:
        """See DetectSettings."""
        return self.told.head_settings()

    def cost(self, spec: GridSpec) -> EdgeCost:
        """Pyramid and both towers on all its maps; choosing boxes multiplies nothing that is counted."""
        places = sum(places_of(spec, self.pyramid_rates))
        return cost_of(self, [*self.pyramid.work(spec), (self.detector.head, places)])

    def raw_of(self, maps: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
        """See Detector: logits (B, M, K), box deltas (B, M, 4), of FCOS also centreness (B, M, 1)."""
        found = self.detector.head(self.detector.backbone(maps))
        return tuple(found[name] for name in self.names)

    def rest(self, outputs: Detected) -> Any:
        """In training what the loss of the classes keeps; else nothing."""
        if not self.training:
            return None
        logits = outputs.raw[0].float()
        return sigmoid_focal_loss(logits, torch.zeros_like(logits), reduction="sum")

    def losses_of(self, raw: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """See Detector: `classification` (focal), `bbox_regression`, of FCOS also `bbox_ctrness`."""
        if not isinstance(self.detector, FCOS):
            return {name: losses.mean() for name, losses in self._retinanet_losses(raw, targets).items()}
        found = {name: part.float() for name, part in zip(self.names, raw, strict=True)}
        maps = self.anchors.of(fed_size(targets[0]), raw[0].device)
        anchors = [torch.cat(maps)] * len(targets)
        known = [learned(target) for target in targets]
        losses: dict[str, Tensor] = self.detector.compute_loss(
            known, found, anchors, [len(boxes) for boxes in maps]
        )
        return losses

    def image_losses_of(self, raw: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """See Detector; images of FCOS share the number of what was found, and so come one by one."""
        if isinstance(self.detector, FCOS):
            return super().image_losses_of(raw, targets)
        return torch.stack(list(self._retinanet_losses(raw, targets).values())).sum(0)

    def _retinanet_losses(
        self, raw: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        anchors = torch.cat(self.anchors.of(fed_size(targets[0]), raw[0].device))
        return image_losses(self.detector, [part.float() for part in raw], anchors, targets)

    def found_in(self, raw: Sequence[Tensor], sizes: Sequence[Size]) -> list[Found]:
        """See Detector."""
        maps = self.anchors.of(sizes[0], raw[0].device)
        parts = split(dict(zip(self.names, raw, strict=True)), [len(boxes) for boxes in maps])
        found: list[Found] = self.detector.postprocess_detections(parts, [maps] * len(sizes), list(sizes))
        return found


def read_rates(rates: Sequence[int], finest: int) -> tuple[int, ...]:
    """Of the rates of a grid's maps those from `finest` on, or the coarsest alone."""
    return tuple(rate for rate in rates if rate >= finest) or tuple(rates[-1:])
