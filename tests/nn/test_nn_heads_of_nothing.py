"""Batches of no images, as filters and cascades make them: heads of all tasks give what they give, of nothing."""

import pytest
import torch
from dense_tiny import dense_net

HEADS = {
    "retinanet": {"task": "detect", "classes": 3, "width": 64},
    "fcos": {"task": "detect", "detector": "fcos", "classes": 3, "width": 64},
    "mask r-cnn": {"task": "instance", "classes": 3, "width": 16, "proposals": 8, "sampled": 8},
    "semantic fpn": {"task": "semantic", "classes": 3, "channels": 16},
    "upernet": {"task": "semantic", "classes": 3, "channels": 16, "decoder": "upernet"},
}


@pytest.fixture(params=HEADS.values(), ids=list(HEADS))
def net(request):
    fields = dict(request.param)
    return dense_net(fields.pop("task"), **fields)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mode", ["dense", "packed", "auto"])
def test_of_no_images_all_tensors_are_there_and_empty(net, mode, training):
    net.decide(execution=mode)
    some = net.eval()(torch.randn(2, 3, 64, 96))
    none = net.train(training)(torch.empty(0, 3, 64, 96))
    for given, one in zip(net.tensors(none), net.tensors(some), strict=True):
        assert given.shape == (0, *one.shape[1:])
        assert given.dtype == one.dtype
    if training:
        sum(part.sum() for part in net.tensors(none)).backward()
        assert all(p.grad is None or not p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("name", ["retinanet", "fcos", "mask r-cnn"])
def test_nothing_is_found_on_no_images(name):
    fields = dict(HEADS[name])
    net = dense_net(fields.pop("task"), **fields).eval()
    assert net(torch.empty(0, 3, 64, 96)).outputs.detections([]) == []
