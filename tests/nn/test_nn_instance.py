"""Mask R-CNN over a grid's pyramid: torchvision's own, exactly, at any image size."""

import copy

import pytest
import torch
from dense_tiny import dense_net, target
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import MultiScaleRoIAlign

from routespace.deploy.counters import torch_macs
from routespace.nn.cost import network_cost
from routespace.nn.heads.instance import pasted
from routespace.nn.weights import load_net, save_net

SIZE = 64, 96


def instance_net(**settings):
    small = {"classes": 3, "width": 16, "score_threshold": 0.0, "proposals": 40, "sampled": 16}
    return dense_net("instance", **small | settings)


def objects() -> list[dict]:
    boxes = [[4, 6, 40, 50], [30, 10, 90, 60], [2, 2, 14, 12]]
    masks = torch.zeros(3, *SIZE, dtype=torch.bool)
    for mask, (left, top, right, low) in zip(masks, boxes, strict=True):
        mask[top:low, left:right] = True
        mask[top : top + 3, left : left + 3] = False
    empty = torch.zeros(0, *SIZE, dtype=torch.bool)
    return [target(SIZE, boxes, [0, 2, 1], masks=masks), target(SIZE, [], [], masks=empty)]


class Maps(nn.Module):
    """Our pyramid as a backbone of torchvision's: it makes the maps of the very images."""

    def __init__(self, net) -> None:
        super().__init__()
        self.net, self.out_channels = net, net.head.detector.backbone.out_channels

    def forward(self, images):
        maps = self.net.head.detector.backbone(self.net.backbone(images).maps)
        torch.manual_seed(0)  # theirs has drawn an image size before
        return {str(place): one for place, one in enumerate(maps)}


def theirs(net, width: int = 16):
    """torchvision's whole detector, its own resizing and padding included, with our weights."""
    made = MaskRCNN(
        Maps(net),
        min_size=SIZE[0],
        max_size=SIZE[1],
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator(((32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 3),
        rpn_pre_nms_top_n_train=80,
        rpn_pre_nms_top_n_test=40,
        rpn_post_nms_top_n_train=80,
        rpn_post_nms_top_n_test=40,
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 7, 2),
        box_head=TwoMLPHead(width * 49, 4 * width),
        box_predictor=FastRCNNPredictor(4 * width, 4),
        box_score_thresh=0.0,
        box_batch_size_per_image=16,
        mask_roi_pool=MultiScaleRoIAlign(["0", "1"], 14, 2),
        mask_head=MaskRCNNHeads(width, (width,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(width, width, 4),
    )
    state = net.head.detector.state_dict()
    found = made.load_state_dict({key: state[key] for key in state if "backbone" not in key}, strict=False)
    assert not found.unexpected_keys
    assert all(key.startswith("backbone") for key in found.missing_keys)
    return made


def test_losses_boxes_and_masks_are_torchvisions():
    net = instance_net().eval()
    images = torch.randn(2, 3, *SIZE)
    known = objects()
    outputs = net(images).outputs
    whole = theirs(net).train()
    net.eval()
    shifted = copy.deepcopy(known)
    for one in shifted:
        one["labels"] += 1  # theirs has the background first
    losses = whole(list(images), shifted)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    torch.testing.assert_close(outputs.losses(known), losses)
    assert torch.equal(torch.random.get_rng_state(), before)
    found = outputs.detections([SIZE] * 2)
    for mine, wanted in zip(found, whole.eval()(list(images)), strict=True):
        for name in ("boxes", "scores"):
            torch.testing.assert_close(mine[name], wanted[name])
        assert torch.equal(mine["labels"], wanted["labels"] - 1)
        assert torch.equal(mine["masks"], wanted["masks"][:, 0] > 0.5)
        assert len(mine["boxes"]) > 20


def test_masks_are_told_in_the_pictures_pixels():
    net = instance_net().eval()
    outputs = net(torch.randn(1, 3, 50, 77)).outputs
    (plain,) = outputs.detections([(50, 77)])
    (shown,) = net.head.detections_of(net.head.tensors(outputs), [(50, 77)], [(100, 231)])
    torch.testing.assert_close(shown["boxes"], plain["boxes"] * torch.tensor([3.0, 2, 3, 2]))
    assert plain["masks"].shape[1:] == (50, 77)
    assert shown["masks"].shape[1:] == (100, 231)
    areas = plain["masks"].sum((1, 2)).float(), shown["masks"].sum((1, 2)).float() / 6
    large = areas[0] > 100
    assert large.any()
    torch.testing.assert_close(areas[1][large], areas[0][large], rtol=0.25, atol=10)


class Floats(TorchDispatchMode):
    """Keeps the most shares that one tensor had."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_floating_point():
            self.most = max(self.most, out.numel())
        return out


@pytest.mark.parametrize("count", [0, 1, 12])
def test_masks_are_pasted_as_torchvision_pastes_them_in_the_memory_of_one(count):
    size = 60, 80
    corners = torch.rand(count, 2) * torch.tensor([80.0, 60.0]) - 5
    boxes = torch.cat([corners, corners + 1 + 40 * torch.rand(count, 2)], 1)
    masks = torch.rand(count, 1, 28, 28)
    expected = paste_masks_in_image(masks, boxes, size)[:, 0] > 0.5
    with Floats() as seen:
        found = pasted(masks, boxes, size)
    assert torch.equal(found, expected.view(count, *size))
    assert seen.most <= size[0] * size[1]


def test_every_weight_learns_from_pictures_with_and_without_objects():
    net = instance_net().train()
    for known in (objects(), objects()[1:] * 2):
        net.zero_grad()
        losses = net(torch.randn(2, 3, *SIZE)).outputs.losses(known)
        assert set(losses) >= {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_mask"}
        sum(losses.values()).backward()
        assert all(weight.grad is not None for weight in net.head.parameters())
        assert all(torch.isfinite(weight.grad).all() for weight in net.head.parameters())


@pytest.mark.parametrize("size", [(64, 96), (50, 77)])
def test_the_price_is_what_torch_counts_for_the_most_proposals(size):
    net = instance_net(proposals=13, max_detections=5).eval()
    counted = torch_macs(net, size, meta=False)
    cost = network_cost(net, image_size=size)
    assert int(cost.macs) == counted.macs
    assert not counted.unknown
    maps = net.backbone(torch.zeros(1, 3, *size))
    with FlopCounterMode(display=False) as forward:
        net.head(maps)
    assert cost.head.macs - net.head.rest_macs(net.spec) == forward.get_total_flops() / 2
    assert cost.params == sum(weight.numel() for weight in net.parameters())


def test_a_saved_detector_finds_the_same(tmp_path):
    net = instance_net(max_detections=7).eval()
    save_net(net, tmp_path)
    again = load_net(tmp_path).eval()
    images = torch.randn(1, 3, *SIZE)
    torch.testing.assert_close(again(images).outputs.detections([SIZE]), net(images).outputs.detections([SIZE]))
    assert again.head.settings() == net.head.settings()


def test_what_the_grid_lacks_is_told_in_one_line():
    assert instance_net().head.lines() == (
        "task: the grid has no maps at rates 16, 32; the detector reads 4, 8 and makes 16 of the last",
    )
