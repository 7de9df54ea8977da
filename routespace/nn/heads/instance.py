"""Mask R-CNN over a grid's pyramid: torchvision's proposals, box and mask heads, and losses.

`forward` makes what is the same for every image: the pyramid, and the proposal network's raw tensors. What depends
on the content, boxes and masks of proposals, is made of them by `losses_of` and `found_in`.

Shape legend: B images of one size · D channels of the pyramid · H, W pixels, or of a map · M all anchors ·
K classes · R proposals · N objects found.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import log2
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from routespace.grid.families.base import EdgeCost
from routespace.grid.spec import GridSpec
from routespace.nn.heads.detector import Detected, Detector, Found, KnownObjects, Size, fed_size, learned
from routespace.nn.heads.matching import anchor_labels
from routespace.nn.heads.pyramid import Pyramid, RateAnchors, Work, cost_of, places_of
from routespace.nn.heads.regions import ComputeRegions, OutsideRegions, RegionGraph
from routespace.nn.heads.settings import InstanceSettings
from routespace.nn.running import in_mode

BOXES, MASKS = "boxes", "masks"  # what is computed of proposals
BOX_SIDE, MASK_SIDE = 7, 14  # of a proposal's map, for its box and its mask
POSITIVE = 4  # one in so many sampled proposals is of an object, at most
VECTOR = 4  # numbers that describe a proposal, over D: 1024 for 256
LOSS_SEED = 0  # of the proposals that a validation loss is about: the same for the same network
SURE = 0.5  # of a pixel that is in a mask


class InstanceHead(Detector):
    """Mask R-CNN. Parameters are called as torchvision's: `detector.backbone.fpn.*`, `detector.rpn.*`, ….

    Args:
        widths: rate → channels of the maps that it reads, fine to coarse.
        told: the settings.
    """

    kind = "instance"
    free_size = True
    usual = (4, 8, 16, 32)

    def __init__(self, widths: Mapping[int, int], told: InstanceSettings) -> None:
        super().__init__()
        self.told = told
        pyramid = Pyramid(widths, told.width, beyond=None)
        width, vector, classes = told.width, VECTOR * told.width, told.classes + 1  # the background is the first
        self.detector = MaskRCNN(
            pyramid,
            rpn_anchor_generator=self._anchors(pyramid),
            rpn_pre_nms_top_n_train=2 * told.proposals,
            rpn_pre_nms_top_n_test=told.proposals,
            rpn_post_nms_top_n_train=2 * told.proposals,
            rpn_post_nms_top_n_test=told.proposals,
            box_roi_pool=_pool(pyramid.levels, BOX_SIDE),
            box_head=TwoMLPHead(width * BOX_SIDE**2, vector),
            box_predictor=FastRCNNPredictor(vector, classes),
            box_score_thresh=told.score_threshold,
            box_nms_thresh=told.overlap,
            box_detections_per_img=told.max_detections,
            box_batch_size_per_image=told.sampled,
            box_positive_fraction=1 / POSITIVE,
            mask_roi_pool=_pool(pyramid.levels, MASK_SIDE),
            mask_head=MaskRCNNHeads(width, (width,) * told.convs, 1),
            mask_predictor=MaskRCNNPredictor(width, width, classes),
        )
        self.detector.transform = nn.Identity()  # images come as they shall be
        self.stand_on_pyramid()

    def _anchors(self, pyramid: Pyramid) -> RateAnchors:
        scale, ratios = self.told.anchor_scale, self.told.anchor_ratios
        return RateAnchors(pyramid.rates, scale=scale, octaves=1, ratios=ratios)

    def stand_on_pyramid(self) -> None:
        """See Detector."""
        pyramid = self.pyramid
        self.grid_rates, self.pyramid_rates = pyramid.read, pyramid.rates
        maps = (f"pyramid_r{rate:02d}" for rate in pyramid.levels)
        self.names = ("objectness", "proposal_deltas", *maps)
        self.detector.rpn.anchor_generator = self._anchors(pyramid)
        heads = self.detector.roi_heads
        heads.box_roi_pool, heads.mask_roi_pool = (_pool(pyramid.levels, side) for side in (BOX_SIDE, MASK_SIDE))

    @classmethod
    def build(cls, spec: GridSpec, settings: Mapping[str, Any]) -> Self:
        """A detector with fresh weights on all maps of the grid."""
        told = InstanceSettings.parse(dict(settings), name="head")
        return cls({rate: spec.width(rate) for rate in spec.output_rates}, told)

    @classmethod
    def decoder(
        cls, rates: Sequence[int], settings: Mapping[str, Any], regions: Mapping[str, ComputeRegions]
    ) -> Self:
        """A detector without weights, which makes objects of raw tensors, such as those of exported files.

        Args:
            rates: of the grid's output maps.
            settings: as for `build`.
            regions: computes what `region_graphs` has under the same names.
        """
        told = InstanceSettings.parse(dict(settings), name="head")
        with torch.device("meta"):
            made = cls(dict.fromkeys(rates, 1), told).eval()
        heads = made.detector.roi_heads
        heads.box_head, heads.box_predictor = OutsideRegions(regions[BOXES]), nn.Identity()
        heads.mask_head, heads.mask_predictor = OutsideRegions(regions[MASKS]), nn.Identity()
        return made

    def region_graphs(self) -> Mapping[str, RegionGraph]:
        """See Head: `boxes` gives class_logits (R, K + 1) and box_deltas (R, 4K + 4), `masks` mask_logits."""
        heads = self.detector.roi_heads
        if any(weight.dtype != torch.float32 for weight in heads.parameters()):
            heads = copy.deepcopy(heads).float()  # as `_looked_at` takes them
        boxes, masks = (heads.box_head, heads.box_predictor), (heads.mask_head, heads.mask_predictor)
        width = self.told.width
        return {
            BOXES: RegionGraph(nn.Sequential(*boxes), ("class_logits", "box_deltas"), (width, BOX_SIDE, BOX_SIDE)),
            MASKS: RegionGraph(nn.Sequential(*masks), ("mask_logits",), (width, MASK_SIDE, MASK_SIDE)),
        }

    def settings(self) -> dict[str, Any]:
        """See InstanceSettings."""
        return self.told.head_settings()

    def cost(self, spec: GridSpec) -> EdgeCost:
        """Pyramid, proposal network, box heads on `proposals` and mask heads on `max_detections` of an image.

        These are the most that there can be, and what tables of such detectors count; an image with fewer costs
        less.
        """
        proposing = self.detector.rpn.head, sum(places_of(spec, self.pyramid_rates))
        return cost_of(self, [*self.pyramid.work(spec), proposing, *self._rest_work()])

    def rest_macs(self, spec: GridSpec) -> int:
        """Those of the box and mask heads."""
        return cost_of(self, self._rest_work()).macs

    def _rest_work(self) -> Iterator[Work]:
        heads, masks = self.detector.roi_heads, self.told.max_detections * MASK_SIDE**2
        yield heads.box_head, self.told.proposals
        yield heads.box_predictor, self.told.proposals
        yield heads.mask_head, masks
        yield heads.mask_predictor.conv5_mask, masks
        yield heads.mask_predictor.mask_fcn_logits, 4 * masks  # on maps of twice the side

    def raw_of(self, maps: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
        """See Detector: objectness (B, M), deltas (B, M, 4), and the pyramid's maps (B, D, H, W)."""
        levels = self.detector.backbone(maps)
        objectness, deltas = concat_box_prediction_layers(*self.detector.rpn.head(levels))
        images = levels[0].shape[0]
        read = levels[: len(self.pyramid.levels)]
        return objectness.reshape(images, -1), deltas.reshape(images, -1, 4), *read

    def rest(self, outputs: Detected) -> Any:
        """Box and mask heads on as many proposals as training samples, or as there can be at most in an image."""
        heads, finest = self.detector.roi_heads, outputs.raw[2]
        boxes, masks = self.told.proposals, self.told.max_detections
        if self.training:
            boxes, masks = self.told.sampled, self.told.sampled // POSITIVE
        images, width = finest.shape[:2]
        pooled = finest.new_zeros(images * boxes, width, BOX_SIDE, BOX_SIDE)
        found = heads.box_predictor(heads.box_head(pooled))
        pooled = finest.new_zeros(images * masks, width, MASK_SIDE, MASK_SIDE)
        return found, heads.mask_predictor(heads.mask_head(pooled))

    def losses_of(self, raw: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """See Detector: the proposals' two losses, the boxes' two, and the masks'.

        Which proposals they are about is drawn; in evaluation mode always the same ones.
        """
        known = [learned(target) for target in targets]
        known = [one | {"labels": one["labels"] + 1} for one in known]
        sizes = [fed_size(target) for target in targets]
        with self._sampling(raw[0].device):
            proposals, losses = self._proposals(raw, sizes, known)
            _, more = self._looked_at(raw, proposals, sizes, known)
        found: dict[str, Tensor] = losses | more
        return found

    @contextmanager
    def _sampling(self, device: torch.device) -> Iterator[None]:
        """Proposals as in training; outside it without a trace in the random numbers."""
        if self.training:
            yield
            return
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            in_mode(self.detector.rpn, training=True),
            in_mode(self.detector.roi_heads, training=True),
        ):
            torch.manual_seed(LOSS_SEED)
            yield

    def _proposals(
        self, raw: Sequence[Tensor], sizes: Sequence[Size], known: Sequence[dict[str, Tensor]] | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """(R, 4) boxes of each image, and the proposals' losses: torchvision's, from raw tensors."""
        rpn, (objectness, deltas) = self.detector.rpn, (part.float() for part in raw[:2])
        maps = rpn.anchor_generator.of(sizes[0], objectness.device)
        anchors, flat = [torch.cat(maps)] * len(sizes), deltas.reshape(-1, 4)
        boxes = rpn.box_coder.decode(flat.detach(), anchors).view(len(sizes), -1, 4)
        counts = [len(some) for some in maps]
        kept, _ = rpn.filter_proposals(boxes, objectness.reshape(-1, 1), list(sizes), counts)
        if known is None:
            return kept, {}
        labels, nearest = anchor_labels(rpn.proposal_matcher, KnownObjects.of(known), anchors[0])
        wanted = rpn.box_coder.encode(list(nearest), anchors)
        losses = rpn.compute_loss(objectness.reshape(-1, 1), flat, list(labels), wanted)
        return kept, dict(zip(("loss_objectness", "loss_rpn_box_reg"), losses, strict=True))

    def _looked_at(
        self,
        raw: Sequence[Tensor],
        proposals: list[Tensor],
        sizes: Sequence[Size],
        known: Sequence[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Found], dict[str, Tensor]]:
        """Boxes and masks of proposals, or their losses; places need float32, whatever the weights are in."""
        heads = self.detector.roi_heads
        maps = {str(rate): one.float() for rate, one in zip(self.pyramid.levels, raw[2:], strict=True)}
        weights = {name: weight.float() for name, weight in heads.named_parameters()}
        found: tuple[list[Found], dict[str, Tensor]] = functional_call(
            heads, weights, (maps, proposals, list(sizes), known)
        )
        return found

    def found_in(self, raw: Sequence[Tensor], sizes: Sequence[Size]) -> list[Found]:
        """See Detector; masks are (N, 1, 28, 28) shares within their boxes."""
        with in_mode(self.detector.rpn, training=False), in_mode(self.detector.roi_heads, training=False):
            proposals, _ = self._proposals(raw, sizes, None)
            found, _ = self._looked_at(raw, proposals, sizes)
        return [one | {"labels": one["labels"] - 1} for one in found]

    def shown_at(self, found: Found, size: Size, shown: Size) -> Found:
        """Boxes and masks in pixels of a picture of (H, W) pixels."""
        told = super().shown_at(found, size, shown)
        return told | {"masks": pasted(told["masks"], told["boxes"], shown)}


def pasted(masks: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Shares (N, 1, 28, 28) within boxes (N, 4) → the pixels (N, H, W) bool of a picture that each mask has.

    One by one: as shares of all pixels, a hundred objects of a photograph of 24 megapixels would be 10 GB.
    """
    found = torch.zeros((len(masks), *size), dtype=torch.bool, device=masks.device)
    for number in range(len(masks)):
        one = slice(number, number + 1)
        found[one] = paste_masks_in_image(masks[one], boxes[one], size)[:, 0] > SURE
    return found


def _pool(rates: Sequence[int], side: int) -> MultiScaleRoIAlign:
    """Cuts proposals out of maps of known rates; torchvision would guess the rates from sizes."""
    made = MultiScaleRoIAlign([str(rate) for rate in rates], output_size=side, sampling_ratio=2)
    made.scales = [1 / rate for rate in rates]
    made.map_levels = initLevelMapper(int(log2(rates[0])), int(log2(rates[-1])))
    return made
