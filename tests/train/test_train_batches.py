"""What a loader of one's own gives is refused in one line where it is no batch, and measured where it is one."""

import numpy as np
import pytest
import torch
from tiny_grid import TINY_GRID

from routespace import (
    Architecture,
    DataError,
    GridSpec,
    RoutingGrid,
    SpecError,
    TaskNet,
    evaluate,
    object_auc,
    oracle_routes,
)
from routespace.train.tasks.batches import check_objects, check_pixels

IMAGES = torch.zeros(4, 3, 32, 32)
LABELS = torch.tensor([0, 1, 2, 9])
BOXES = [{"boxes": torch.tensor([[1.0, 1.0, 20.0, 20.0]])}] * 4


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return TaskNet.classifier(Architecture.full(RoutingGrid(GridSpec.parse(TINY_GRID)))).eval()


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (IMAGES, "data: a batch of a Tensor was given; give images"),
        ((IMAGES, LABELS, LABELS), "data: a batch of 3 parts"),
        ((IMAGES.numpy(), LABELS), "data: a ndarray was given for a batch's images"),
        ((IMAGES, LABELS.numpy()), "labels: a ndarray was given"),
        ((IMAGES, LABELS.tolist()), "labels: a list was given"),
        ((IMAGES, LABELS.float()), r"labels: torch.float32 of shape \(4,\) for 4 images"),
        ((IMAGES, LABELS.bool()), r"labels: torch.bool of shape \(4,\) for 4 images"),
        ((IMAGES, LABELS[:3]), r"labels: torch.int64 of shape \(3,\) for 4 images; .* of shape \(4,\)"),
        ((IMAGES, LABELS[:, None]), r"labels: torch.int64 of shape \(4, 1\)"),
        ((IMAGES, LABELS - 1), "labels: -1 is no class of this network; its 10 are 0 to 9"),
        ((IMAGES, LABELS + 1), "labels: 10 is no class of this network; its 10 are 0 to 9"),
    ],
)
def test_what_is_no_batch_is_refused(net, batch, words):
    with pytest.raises(DataError, match=words):
        evaluate(net, [batch])


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_whole_numbers_give_the_same(net, kind):
    wanted = evaluate(net, [(IMAGES, LABELS)])
    found = evaluate(net, [[IMAGES, LABELS.to(kind)]])
    assert (found["accuracy"], found["loss"]) == (wanted["accuracy"], wanted["loss"])


def test_maps_of_classes():
    maps = torch.zeros(4, 8, 8, dtype=torch.uint8)
    maps[0, 0] = 255
    check_pixels(maps, 4, 3, 255)
    check_pixels(list(maps), 4, 3, 255)
    check_pixels(torch.full((4, 8, 8), 255), 4, 3, 255)
    for wrong in (maps[:3], maps.float(), maps[:, None], list(maps[:3]), [maps] * 4, None, [np.zeros((8, 8))] * 4):
        with pytest.raises(DataError, match=r"labels: .* for 4 images; give whole numbers of shape \(4, H, W\)"):
            check_pixels(wrong, 4, 3, 255)
    maps[1] = 3
    with pytest.raises(DataError, match="labels: 3 is no class of this network; its 3 are 0 to 2"):
        check_pixels(maps, 4, 3, 255)


def test_objects_of_each_image():
    there = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}
    check_objects([there] * 2, 2)
    for wrong in ([there], there, None):
        with pytest.raises(DataError, match=r"objects: .* for 2 images; give a list with a mapping for each"):
            check_objects(wrong, 2)
    with pytest.raises(DataError, match=r"objects\.1\.labels: missing"):
        check_objects([there, {"boxes": there["boxes"]}], 2)
    with pytest.raises(DataError, match=r"objects\.0\.boxes: missing"):
        check_objects([torch.zeros(0, 4), there], 2)


@pytest.mark.parametrize(
    ("known", "by", "words"),
    [
        (BOXES, "box", "by: 'box' is not known; give boxes or masks"),
        (BOXES[:1], "boxes", "objects: 1 for 4 images"),
        ({"boxes": 1}, "boxes", "objects: a dict for 4 images"),
        ([{}] * 4, "boxes", r"objects\.0\.boxes: nothing was given"),
        ([{"boxes": torch.zeros(2, 5)}] * 4, "boxes", r"objects\.0\.boxes: \(2, 5\) was given"),
        (BOXES, "masks", r"objects\.0\.masks: nothing was given; give a tensor \(M, H, W\)"),
    ],
)
def test_objects_that_are_not_those_of_the_images(net, known, by, words):
    """One image's objects for four images were once those of all."""
    with pytest.raises(SpecError, match=words):
        oracle_routes(net, IMAGES, known, by=by)
    with pytest.raises(SpecError, match=words):
        object_auc(net, [(IMAGES, known)], by=by)


def test_other_things_in_place_of_routes_and_gates(net):
    with pytest.raises(SpecError, match="routes: a dict was given; give Routes"):
        net(IMAGES, routes={})
    with pytest.raises(SpecError, match="gates: a str was given; give a GateSpec"):
        net.decide(gates="map")
    with pytest.raises(SpecError, match="routing: 'all' was given; give 'both' or 'depth' or 'scale' or 'none'"):
        Architecture.routed(net.architecture.grid, "all")
