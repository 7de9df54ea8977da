"""RetinaNet and FCOS over a grid's pyramid: torchvision's own detectors, exactly, at any image size."""

import copy
import json

import pytest
import torch
from dense_tiny import dense_net, pyramid_grid, target
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from routespace.deploy.counters import torch_macs
from routespace.errors import SpecError
from routespace.nn.cost import network_cost
from routespace.nn.heads import matching
from routespace.nn.heads.detector import Detected
from routespace.nn.heads.pyramid import RateAnchors
from routespace.nn.weights import load_net, save_net

SIZE = 64, 96
RATES = 8, 16, 32  # the grid ends at 8; the pyramid makes the others
KINDS = pytest.mark.parametrize("detector", ["retinanet", "fcos"])


def detector_net(detector: str = "retinanet", **settings):
    return dense_net("detect", detector=detector, classes=3, width=64, score_threshold=0.0, **settings)


def objects() -> list[dict]:
    return [
        target(SIZE, [[4, 6, 40, 50], [30, 10, 90, 60], [2, 2, 14, 12]], [0, 2, 1]),
        target(SIZE, [], []),
    ]


class Maps(nn.Module):
    """Our pyramid as a backbone of torchvision's: it makes the maps of the very images."""

    def __init__(self, net) -> None:
        super().__init__()
        self.net, self.out_channels = net, net.head.detector.backbone.out_channels

    def forward(self, images):
        maps = self.net.head.detector.backbone(self.net.backbone(images).maps)
        return {str(place): one for place, one in enumerate(maps)}


def theirs(net, detector: str):
    """torchvision's whole detector, its own resizing and padding included, with our weights."""
    still = {"min_size": SIZE[0], "max_size": SIZE[1], "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    if detector == "fcos":
        anchors = AnchorGenerator(tuple((rate,) for rate in RATES), ((1.0,),) * 3)
        made = FCOS(Maps(net), 3, anchor_generator=anchors, score_thresh=0.0, **still)
    else:
        sizes = tuple(tuple(int(4 * rate * 2 ** (n / 3)) for n in range(3)) for rate in RATES)
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
        made = RetinaNet(Maps(net), 3, anchor_generator=anchors, score_thresh=0.0, detections_per_img=100, **still)
    made.head.load_state_dict(net.head.detector.head.state_dict())
    return made


@pytest.mark.parametrize("width", [24, 64])  # torchvision chooses by it alone; mmdetection takes the backbone's
@pytest.mark.parametrize("beyond", ["pyramid", "backbone"])
def test_maps_beyond_the_last_are_those_of_torchvisions_pyramid(beyond, width):
    net = dense_net("detect", grid=pyramid_grid(widths=[8, width]), classes=3, width=64, beyond=beyond).eval()
    of_backbone = beyond == "backbone"
    extra = LastLevelP6P7(width if of_backbone else 64, 64)
    extra.use_P5 = not of_backbone
    fpn = FeaturePyramidNetwork([width], 64, extra)
    fpn.load_state_dict(net.head.pyramid.fpn.state_dict())
    maps = net.backbone(torch.randn(1, 3, *SIZE)).maps
    torch.testing.assert_close(net.head.pyramid(maps), list(fpn({"0": maps[8]}).values()))
    assert int(network_cost(net, image_size=SIZE).macs) == torch_macs(net, SIZE, meta=False).macs


def test_detectors_of_before_maps_came_from_the_backbone_still_load(tmp_path):
    for beyond in ("pyramid", "backbone"):
        net, folder = detector_net(beyond=beyond).eval(), tmp_path / beyond
        folder.mkdir()
        save_net(net, folder)
        told = json.loads((folder / "network.json").read_text())
        if beyond == "pyramid":  # which older files do not tell
            del told["head"]["beyond"]
            (folder / "network.json").write_text(json.dumps(told))
        images = torch.randn(1, 3, *SIZE)
        torch.testing.assert_close(load_net(folder).eval()(images).outputs.raw, net(images).outputs.raw)


@KINDS
def test_losses_and_boxes_are_torchvisions(detector):
    net = detector_net(detector).eval()
    images = torch.randn(2, 3, *SIZE)
    known = objects()
    outputs = net(images).outputs
    whole = theirs(net, detector)
    whole.train()
    net.eval()
    losses = whole(list(images), copy.deepcopy(known))
    torch.testing.assert_close(outputs.losses(known), losses)
    found = outputs.detections([SIZE] * 2)
    for mine, wanted in zip(found, whole.eval()(list(images)), strict=True):
        torch.testing.assert_close(mine, wanted)
        assert len(mine["boxes"]) > 50


def test_a_batchs_losses_are_the_means_of_those_of_each_image_in_whatever_parts_they_are_matched(monkeypatch):
    net = detector_net("retinanet").eval()
    known = [*objects(), target(SIZE, [[0, 0, 3, 3]], [1])]  # smaller than every anchor: the best ones are its own
    outputs = net(torch.randn(3, 3, *SIZE)).outputs
    each = outputs.image_losses(known)
    assert each.shape == (3,)
    torch.testing.assert_close(each.mean(), sum(outputs.losses(known).values()))
    alone = [Detected(net.head, tuple(part[n : n + 1] for part in outputs.raw)) for n in range(3)]
    for one, what, loss in zip(alone, known, each, strict=True):
        torch.testing.assert_close(sum(one.losses([what]).values()), loss)
    monkeypatch.setattr(matching, "AT_ONCE", 1)
    torch.testing.assert_close(outputs.image_losses(known), each)


@KINDS
def test_towers_of_fewer_convolutions_are_cheaper_and_learn_and_are_saved(detector, tmp_path):
    net, whole = detector_net(detector, convs=1).eval(), detector_net(detector).eval()
    assert network_cost(net, image_size=SIZE).macs < network_cost(whole, image_size=SIZE).macs
    assert int(network_cost(net, image_size=SIZE).macs) == torch_macs(net, SIZE, meta=False).macs
    save_net(net, tmp_path)
    images = torch.randn(1, 3, *SIZE)
    torch.testing.assert_close(load_net(tmp_path).eval()(images).outputs.raw, net(images).outputs.raw)
    for tower in (net.head.detector.head.classification_head, net.head.detector.head.regression_head):
        assert sum(isinstance(part, nn.Conv2d) for part in tower.conv.modules()) == 1


@KINDS
def test_boxes_come_from_raw_tensors_alone_and_are_told_in_the_pictures_pixels(detector):
    net = detector_net(detector).eval()
    outputs = net(torch.randn(2, 3, 50, 77)).outputs
    raw = net.head.tensors(outputs)
    assert len(raw) == len(net.head.names)
    plain = outputs.detections([(50, 77)] * 2)
    fresh = detector_net(detector)  # other weights: boxes need none
    again = fresh.head.detections_of([part.clone() for part in raw], [(50, 77)] * 2, [(100, 231), (50, 77)])
    torch.testing.assert_close(again[1], plain[1])
    torch.testing.assert_close(again[0]["boxes"], plain[0]["boxes"] * torch.tensor([3.0, 2, 3, 2]))
    assert plain[0]["boxes"].max() <= 77


@pytest.mark.parametrize("size", [(50, 77), (33, 64), (97, 40)])
def test_anchors_stand_at_multiples_of_their_rate_whatever_the_image_size(size):
    made = RateAnchors((8, 16, 32), scale=4.0, octaves=1, ratios=(1.0,)).of(size, torch.device("cpu"))
    for rate, boxes in zip((8, 16, 32), made, strict=True):
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        columns, rows = -(-size[1] // rate), -(-size[0] // rate)
        wanted = [[float(rate * x), float(rate * y)] for y in range(rows) for x in range(columns)]
        assert centres.tolist() == wanted
        assert ((boxes[:, 2:] - boxes[:, :2]) == 4 * rate).all()


@KINDS
def test_crowds_and_empty_boxes_teach_nothing(detector):
    net = detector_net(detector).eval()
    outputs = net(torch.randn(1, 3, *SIZE)).outputs
    plain = target(SIZE, [[4, 6, 40, 50]], [0])
    more = target(SIZE, [[4, 6, 40, 50], [1, 1, 60, 60], [9, 9, 9, 20]], [0, 1, 2])
    more["crowd"] = torch.tensor([False, True, False])
    torch.testing.assert_close(outputs.losses([more]), outputs.losses([plain]))


@KINDS
def test_every_weight_learns_from_pictures_with_and_without_objects(detector):
    net = detector_net(detector).train()
    for known in (objects(), objects()[1:] * 2):
        net.zero_grad()
        losses = net(torch.randn(2, 3, *SIZE)).outputs.losses(known)
        sum(losses.values()).backward()
        assert all(weight.grad is not None for weight in net.head.parameters())
        assert all(torch.isfinite(weight.grad).all() for weight in net.head.parameters())


@KINDS
@pytest.mark.parametrize("size", [(64, 96), (50, 77)])
def test_the_price_is_what_torch_counts(detector, size):
    net = detector_net(detector, finest=4).eval()
    counted = torch_macs(net, size)
    cost = network_cost(net, image_size=size)
    assert int(cost.macs) == counted.macs
    assert not counted.unknown
    assert cost.params == sum(weight.numel() for weight in net.parameters())


def test_a_saved_detector_finds_the_same(tmp_path):
    net = detector_net("fcos", finest=4, max_detections=7).eval()
    save_net(net, tmp_path)
    again = load_net(tmp_path).eval()
    images = torch.randn(1, 3, *SIZE)
    torch.testing.assert_close(again(images).outputs.detections([SIZE]), net(images).outputs.detections([SIZE]))
    assert again.head.settings() == net.head.settings()
    assert len(again(images).outputs.detections([SIZE])[0]["boxes"]) == 7


def test_what_the_grid_lacks_is_told_in_one_line():
    (line,) = detector_net().head.lines()
    assert line == (
        "task: the grid has no maps at rates 16, 32; the detector reads 8 and makes 16, 32 of the last"
    )
    grid = pyramid_grid(
        layers=4, max_down=32, widths=[8] * 4, heads=[1] * 4, mlp_ratios=[2] * 4, sr_ratios=[8, 4, 2, 1]
    )
    net = dense_net("detect", grid=grid, classes=3, width=32)
    assert net.head.lines() == ()
    assert net.head.pyramid_rates == (8, 16, 32, 64, 128)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"detector": "yolo"}, r"head\.detector: 'yolo' is not allowed; give 'retinanet' or 'fcos'"),
        ({"detector": "fcos", "width": 24}, r"width: 24 cannot be normalised in 32 groups.* a multiple of 32"),
        ({"detector": "fcos", "width": 32}, r"width: 32 cannot be normalised in 32 groups.* at least 64"),
        ({"detector": "fcos", "anchor_scale": 2.0}, r"anchor_scale: fcos has no anchors"),
        ({"convs": 0}, r"head\.convs: 0 is not allowed; give at least 1"),
        ({"convs": 5}, r"head\.convs: 5 is not allowed; give at most 4"),
        ({"classes": 0}, r"head\.classes: 0 is not allowed; give at least 1"),
        ({"nms": 0.5}, r"head\.nms: unknown field"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(settings, message):
    with pytest.raises(SpecError, match=message):
        dense_net("detect", **{"classes": 3} | settings)
