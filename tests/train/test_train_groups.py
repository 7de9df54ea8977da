"""Images of several sizes in one step; and what sources give for tasks other than classification."""

import numpy as np
import pytest
import torch
from train_tiny import tiny

from routespace.grid.cost import architecture_cost
from routespace.nn.task_net import TaskNet
from routespace.nn.usage import UsageMeter
from routespace.preprocess import Preprocess
from routespace.train.data.digits import DigitsDataset, Scenes
from routespace.train.data.objects import Objects
from routespace.train.data.objects_target import pixels_of
from routespace.train.data.scenes.source import ScenesDataset
from routespace.train.data.skipping import Group, grouped
from routespace.train.macs import expected_macs, metered_macs
from routespace.train.recipe.scenes import ScenesSpec
from routespace.train.step_loss import StepLoss


def test_images_are_grouped_by_size_in_the_order_they_came():
    sizes = [(8, 8), (4, 8), (8, 8), (8, 4), (4, 8)]
    items = [(torch.full((3, *size), float(n)), n) for n, size in enumerate(sizes)]
    found = grouped(items)
    assert [group.targets.tolist() for group in found] == [[0, 2], [1, 4], [3]]
    assert all((group.images[:, 0, 0, 0] == group.targets).all() for group in found)
    maps = grouped([(torch.zeros(3, 4, 4), torch.zeros(4, 4)), (torch.zeros(3, 4, 4), torch.ones(4, 4))])
    assert maps[0].targets.shape == (2, 4, 4)
    assert grouped([(torch.zeros(3, 4, 4), {"boxes": 1})])[0].targets == [{"boxes": 1}]
    assert grouped([]) == ()


def network(recipe):
    torch.manual_seed(0)
    return TaskNet.classifier(recipe.architecture(), recipe.gates)


def test_a_step_is_the_mean_over_all_images_whatever_their_sizes():
    recipe = tiny()
    net = network(recipe).eval()
    task = recipe.task.make(recipe.grid)
    images = [torch.randn(3, *size) for size in ((32, 32), (64, 32), (32, 32), (64, 64))]
    step = StepLoss(net, task, None, recipe.train)
    whole = step(grouped([(image, n) for n, image in enumerate(images)]), 0.5).losses
    alone = [step([Group(image[None], torch.tensor([n]))], 0.5).losses for n, image in enumerate(images)]
    for name in ("loss", "task_loss", "macs"):
        mean = sum(getattr(one, name) for one in alone) / len(images)
        torch.testing.assert_close(getattr(whole, name), mean)


def test_smaller_images_save_nothing():
    recipe = tiny()
    net = network(recipe).eval()
    meter = UsageMeter()
    with net.deciding_as(held=net.architecture.opened()):
        for size in ((32, 32), (64, 32), (96, 64)):
            routes = net(torch.randn(2, 3, *size)).routes
            found = float(expected_macs(net, routes, image_size=size))
            assert found == pytest.approx(architecture_cost(net.architecture, gates=net.gate_spec).macs, rel=1e-6)
            meter.update(routes, 2, size=size)
    assert metered_macs(net, meter) == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("target", ["objects", "masks", "pixels"])
@pytest.mark.parametrize("kind", ["digits", "scenes"])
def test_scenes_give_what_a_task_asks_for(kind, target):
    if kind == "digits":
        data = DigitsDataset(Scenes("train", (64, 96), digits_per_scene=(1, 3)), 12, target=target)
    else:
        spec = ScenesSpec(objects_per_scene=(1, 3), object_px=(12, 40))
        data = ScenesDataset(spec, "train", 12, Preprocess(size=(64, 96)), seed=0, target=target)
    for index, (image, found) in enumerate(data.__getitems__(range(12))):
        assert image.shape == (3, 64, 96)
        if target == "pixels":
            assert found.shape == (64, 96)
            assert 0 < (found > 0).float().mean() < 0.9
            continue
        boxes, count = found["boxes"], len(found["labels"])
        assert int(found["image_id"]) == index
        assert boxes.shape == (count, 4)
        assert count >= 1
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        assert ("masks" in found) == (target == "masks")
        if target == "masks":
            for mask, box, area in zip(found["masks"], boxes, found["area"], strict=True):
                ys, xs = np.nonzero(mask.numpy())
                assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == box.tolist()
                assert mask.sum() == area


def test_what_was_painted_last_is_what_pixels_show():
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :3, :3], masks[1, 2:, 2:] = True, True
    pixels = pixels_of(Objects.of(masks, np.array([4, 7])))
    assert pixels.unique().tolist() == [0, 5, 8]
    assert pixels[2, 2] == 8
