"""How annotated pictures are fed and varied: boxes, masks and pixels follow; every draw can be repeated."""

import numpy as np
import pytest
import torch
from PIL import Image
from train_annotated import annotation, coco_data, plain, some_coco, source_of, write_coco
from train_tiny import tiny

from routespace.errors import SpecError
from routespace.preprocess import Preprocess, inside_size, preprocess_from_json, preprocess_to_json
from routespace.train.data.annotated.truth import Truth
from routespace.train.data.annotated.vary import sample_of, variation
from routespace.train.data.augment import seeded
from routespace.train.data.loaders import Loaders, ProcessShare, TrainBatches
from routespace.train.recipe.coco import CocoSpec
from routespace.train.recipe.segmentation import SegmentationSpec


@pytest.mark.parametrize(
    ("picture", "limits", "fed"),
    [
        ((480, 640), (800, 1344), (800, 1056)),
        ((640, 480), (800, 1344), (1056, 800)),
        ((480, 640), (1344, 800), (800, 1056)),
        ((300, 2000), (800, 1333), (192, 1312)),
        ((10, 4000), (800, 1344), (32, 1344)),
        ((800, 1333), (800, 1333), (800, 1312)),
        ((64, 64), (512, 2048), (512, 512)),
    ],
)
def test_whole_pictures_keep_their_shape_and_stay_inside(picture, limits, fed):
    assert inside_size(picture, limits, 32) == fed
    preprocess = Preprocess(size=limits, fit="inside", interpolation="bilinear")
    assert preprocess.fed_size(*picture) == fed
    assert preprocess(Image.new("RGB", picture[::-1], "red")).shape == (3, *fed)


def test_a_cut_picture_has_one_size_and_older_files_say_so():
    preprocess = Preprocess(size=(32, 48))
    assert preprocess.fed_size(100, 999) == (32, 48)
    data = preprocess_to_json(preprocess, ["a"])
    older = {name: value for name, value in data.items() if name not in ("fit", "multiple")}
    assert preprocess_from_json(older) == (preprocess, ("a",))
    with pytest.raises(SpecError, match="less than one token of 32 px"):
        Preprocess(size=(16, 64), fit="inside")


def coloured(size, box):
    """A black picture of (H, W) whose only red pixels are those of a box, and what is known of it."""
    pixels, mask = np.zeros((*size, 3), np.uint8), np.zeros(size, bool)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2, 0], mask[y1:y2, x1:x2] = 255, True
    image = Image.fromarray(pixels)
    one = np.ones(1, np.float32)
    truth = Truth(np.array([box], np.float32), np.array([1]), one < 0, one, mask[None])
    return image, truth, Truth(pixels=mask.astype(np.uint8))


def test_boxes_and_masks_follow_the_picture():
    image, truth, _ = coloured((96, 128), (20, 30, 60, 70))
    spec = CocoSpec(shorter_sides=(32, 48, 64, 80), hflip=0.5)
    change, seen = variation(spec, plain((80, 128)), (80, 128), "masks"), set()
    for seed in range(30):
        with seeded(seed):
            found = change(sample_of(image, truth))
        red = np.asarray(found["image"])[:, :, 0] > 127
        ys, xs = np.nonzero(red)
        around = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert np.abs(found["boxes"][0].numpy() - around).max() <= 1
        assert found["boxes"].canvas_size == red.shape
        mask = found["masks"][0].numpy()
        assert (mask & red).sum() / (mask | red).sum() > 0.9
        seen.add((red.shape, bool(around[0] + around[2] > red.shape[1])))
    assert len({size for size, _ in seen}) == 4
    assert len({mirrored for _, mirrored in seen}) == 2


def test_pixels_follow_the_picture_and_nothing_is_padded():
    image, _, truth = coloured((96, 128), (30, 30, 80, 70))
    spec = SegmentationSpec(resize=(0.5, 2.0))
    change = variation(spec, plain((64, 256)), (64, 64), "pixels")
    sizes = []
    for seed in range(40):
        with seeded(seed):
            found = change(sample_of(image, truth))
        red = np.asarray(found["image"])[:, :, 0] > 127
        assert found["pixels"].shape == red.shape
        assert (red != found["pixels"].numpy().astype(bool)).mean() < 0.06
        sizes.append(red.shape)
    assert {side % 16 for size in sizes for side in size} == {0}
    assert {side for size in sizes for side in size} == {32, 48, 64}
    assert sizes.count((64, 64)) > len(sizes) / 2


def test_objects_that_vanish_are_dropped(tmp_path):
    annotations = [annotation(1, 1, bbox=(10, 10, 2, 2)), annotation(2, 1)]
    file = write_coco(tmp_path, coco_data([(96, 128)] * 2, annotations))
    spec = CocoSpec(root=str(file), shorter_sides=(32,), val_fraction=0.4)
    source = source_of(spec, "objects", whole=True)
    assert len(source.test()[0][1]["labels"]) == 2
    counts = [len(found["labels"]) for _, found in (source.train()[i] for i in range(len(source.train())))]
    assert sum(counts) <= 1


def test_items_are_functions_of_seed_epoch_and_index(tmp_path):
    some_coco(tmp_path)
    fields = {"shorter_sides": (32, 48, 64), "eval_size": (64, 128), "photometric": True, "val_fraction": 0.4}
    data = source_of(CocoSpec(root=str(tmp_path), **fields), "masks").train()
    before = torch.get_rng_state()
    data.set_epoch(1)
    first = [data[i] for i in range(len(data))]
    assert torch.equal(before, torch.get_rng_state())
    data.set_epoch(2)
    other = [data[i] for i in range(len(data))]
    data.set_epoch(1)
    for i in reversed(range(len(data))):
        image, found = data[i]
        assert torch.equal(image, first[i][0])
        assert all(torch.equal(found[name], first[i][1][name]) for name in found)
    assert any(a.shape != b.shape or not torch.equal(a, b) for (a, _), (b, _) in zip(first, other, strict=True))
    seeded_anew = source_of(CocoSpec(root=str(tmp_path), **fields), "masks", seed=2).train()
    assert any(image.shape != seeded_anew[i][0].shape for i, (image, _) in enumerate(other))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_groups_of_one_size_with_a_target_each(tmp_path, workers):
    some_coco(tmp_path, count=9)
    some_coco(tmp_path, "val", 6)
    spec = CocoSpec(root=str(tmp_path), eval_size=(48, 64), workers=workers)
    recipe = tiny(train__batch_size=8, data__workers=workers)
    loaders = Loaders(recipe, source_of(spec, "objects"))
    loaders.set_epoch(0)
    (groups,) = loaders.train
    assert sum(len(group.images) for group in groups) == 8
    for group in [*groups, *loaders.val]:
        assert len(group.targets) == len(group.images)
        for found in group.targets:
            assert found["fed"].tolist() == list(group.images.shape[2:])
    ids = sorted(int(found["image_id"]) for group in loaders.val for found in group.targets)
    assert ids == [1, 2, 3, 4, 5, 6]


def test_what_evaluation_feeds_is_what_a_preprocess_makes_of_the_file(tmp_path):
    file = write_coco(tmp_path, coco_data([(100, 70)], [annotation(1, 1)]))
    spec = CocoSpec(root=str(file), eval_size=(48, 64), interpolation="bicubic")
    source = source_of(spec, "objects", whole=True)
    image, _ = source.test()[0]
    assert np.array_equal(image.numpy(), source.preprocess.read(str(tmp_path / "train/1.png")))


def mixed_sizes(count: int, sides=(64, 96, 128)):
    """Sizes of some pictures in each epoch: a few are frequent, others come once."""

    def of_epoch(epoch: int) -> list[tuple[int, int]]:
        draw = np.random.default_rng(epoch)
        return [(sides[draw.integers(3)], 32 * int(draw.integers(1, 4) ** 2)) for _ in range(count)]

    return of_epoch


@pytest.mark.parametrize("world", [1, 2, 4])
def test_grouped_steps_hold_every_image_once_whoever_takes_them(world):
    count, batch, sizes = 203, 8, mixed_sizes(203)
    parts = [TrainBatches(count, batch, ProcessShare(rank, world), seed=5, sizes=sizes) for rank in range(world)]
    dropped = set()
    for epoch in range(6):
        steps = list(zip(*([setattr(part, "epoch", epoch), list(part)][1] for part in parts), strict=True))
        assert len(steps) == len(parts[0]) == count // batch
        assert all(
            len(shares) == world and {len(share) for share in shares} == {batch // world} for shares in steps
        )
        seen = [image for shares in steps for share in shares for image in share]
        assert len(seen) == len(set(seen)) == count // batch * batch
        dropped |= set(range(count)) - set(seen)
        plain_steps = TrainBatches(count, batch, ProcessShare(), seed=5)
        plain_steps.epoch = epoch
        assert set(seen) == {image for step in plain_steps for image in step}  # the same ones are left out
    assert len(dropped) > 10  # by chance, not by size


def test_grouped_steps_go_on_where_they_stopped_and_differ_by_epoch():
    batches = TrainBatches(100, 8, ProcessShare(), seed=1, sizes=mixed_sizes(100))
    whole = list(batches)
    batches.start = 5
    assert list(batches) == whole[5:]
    assert len(batches) == len(whole) - 5
    batches.start, batches.epoch = 0, 1
    assert list(batches) != whole
    assert TrainBatches(100, 8, ProcessShare(), seed=2, sizes=mixed_sizes(100)).of_epoch(0) != whole


def test_grouped_steps_have_few_sizes_and_whole_buckets_one():
    sizes = mixed_sizes(2000)
    batches = TrainBatches(2000, 8, ProcessShare(), seed=1, sizes=sizes)
    plain = TrainBatches(2000, 8, ProcessShare(), seed=1)
    found = sizes(0)
    before = [len({found[image] for image in step}) for step in plain.of_epoch(0)]
    after = [len({found[image] for image in step}) for step in batches.of_epoch(0)]
    assert np.mean(before) > 4
    assert batches.groups(0) == np.mean(after) < 1.2
    assert sum(number > 1 for number in after) <= 9  # one for each size, at most
    assert max(after) <= 5
    first_half = after[: len(after) // 2]  # mixed steps are not all at the end
    assert any(number > 1 for number in first_half)
    assert plain.groups(0) is None


def test_sizes_are_known_before_a_picture_is_read(tmp_path):
    some_coco(tmp_path, count=9)
    fields = {"eval_size": (48, 128), "shorter_sides": (32, 48, 64, 80), "val_fraction": 0.3}
    train = source_of(CocoSpec(root=str(tmp_path), **fields), "objects").train()
    seen = set()
    for epoch in range(4):
        train.set_epoch(epoch)
        told = train.fed_sizes(epoch)
        assert told == [tuple(image.shape[1:]) for image, _ in train]
        seen.update(told)
    assert len(seen) > 6
    assert source_of(CocoSpec(root=str(tmp_path), group=False, **fields), "objects").train().fed_sizes(0) is None
    assert source_of(CocoSpec(root=str(tmp_path), **fields), "pixels").train().fed_sizes(0) is None


def test_a_recipes_steps_are_grouped_unless_it_says_otherwise(tmp_path):
    some_coco(tmp_path, count=9)
    some_coco(tmp_path, "val", 6)
    seen = {}
    for group in (True, False):
        spec = CocoSpec(root=str(tmp_path), eval_size=(48, 64), group=group)
        recipe = tiny(train__batch_size=3).model_copy(update={"data": spec})
        loaders = Loaders(recipe, source_of(spec, "objects"))
        steps = []
        for epoch in range(4):
            loaders.set_epoch(epoch)
            steps += [len(groups) for groups in loaders.train]
        seen[group] = np.mean(steps)
        assert (loaders.batches.groups(0) is not None) == group
    assert seen[True] == 1.0 < seen[False]
