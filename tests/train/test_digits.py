"""The digits data: reproducible scene by scene, split without leaks, readable, and the same as files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from routespace.errors import DataError, SpecError
from routespace.preprocess import MEAN, STD
from routespace.train.data import digits_render
from routespace.train.data.digits import CLASSES, DigitsDataset, Scenes, write_image_folder
from routespace.train.data.digits_render import PHOTO_COLUMNS, SPLITS, split_digits, split_photos

TRAIN = Scenes("train")
SEVERAL = Scenes("train", (96, 128), digits_per_scene=(1, 5))
GOLDEN_LABELS = [1, 4, 7, 0, 3, 6, 9, 2, 5, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
GOLDEN_BOXES = [[14.0, 47.0, 20.0, 57.0], [26.0, 2.0, 38.0, 22.0], [17.0, 13.0, 36.0, 42.0]]
LEAST_CONTRAST = 90  # grey levels of 255
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def same(a, b):
    return np.array_equal(a.images, b.images) and np.array_equal(a.labels, b.labels)


# -- reproducible ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenes", [TRAIN, SEVERAL])
def test_a_scene_does_not_depend_on_its_batch(scenes):
    batch = scenes.render([7, 3, 1007, 12_345_678], epoch=2, objects=True)
    for position, index in enumerate([7, 3, 1007, 12_345_678]):
        alone = scenes.render(np.array([index]), epoch=2)
        assert np.array_equal(alone.images[0], batch.images[position])
        assert alone.labels[0] == batch.labels[position]
        assert alone.objects == ()


def test_train_epochs_and_seeds_differ():
    first = TRAIN.render(range(50))
    for other in (
        TRAIN.render(range(50), 1),
        replace(TRAIN, seed=1).render(range(50)),
        TRAIN.render(range(50, 100)),
    ):
        assert not any(np.array_equal(a, b) for a, b in zip(first.images, other.images, strict=True))
    assert len({image.tobytes() for image in TRAIN.render(range(1000)).images}) == 1000


@pytest.mark.parametrize("split", ["val", "test"])
def test_held_out_scenes_are_the_same_in_every_epoch(split):
    assert same(Scenes(split).render(range(50)), Scenes(split).render(range(50), epoch=9))


def test_scenes_are_pinned():
    """Golden: the scenes of a published result must not change unnoticed (pixels also depend on libjpeg)."""
    batch = Scenes("val").render(range(20), objects=True)
    assert batch.labels.tolist() == GOLDEN_LABELS
    assert [objects.boxes[0].tolist() for objects in batch.objects[:3]] == GOLDEN_BOXES


# -- split without leaks --------------------------------------------------------------------------------


def test_splits_share_no_digit():
    rows = {split: split_digits(split)[1] for split in SPLITS}
    assert [len(rows[split]) for split in SPLITS] == [1297, 250, 250]
    assert len(np.unique(np.concatenate(list(rows.values())))) == 1797
    for split in SPLITS:
        ink, _, start = split_digits(split)
        assert len(ink) == start[-1]
        assert np.diff(start).min() > 0.08 * len(ink)  # stratified


@pytest.mark.parametrize("image_size", [(64, 64), (96, 200)])
def test_splits_share_no_photograph_pixel(image_size, monkeypatch):
    """Photographs painted in one grey a split: each split sees its own and nothing else, mixed in or not."""
    photo = np.zeros((427, 640, 3), np.uint8)
    for split, grey in zip(SPLITS, (10, 100, 200), strict=True):
        first, last = PHOTO_COLUMNS[split]
        assert not photo[:, first:last].any()
        photo[:, first:last] = grey
    fake = type("Photos", (), {"images": [photo, photo]})
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: fake)
    for split, grey in zip(SPLITS, (10, 100, 200), strict=True):
        bands = split_photos.__wrapped__(split, image_size)  # around the cache
        assert len(bands) == 4  # two photographs and their mirror images
        for band in bands:
            assert band.shape[0] > image_size[0]
            assert band.shape[1] > image_size[1]
            assert (band == grey).all()


# -- readable -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strokes", ["light", "both"])
@pytest.mark.parametrize("split", SPLITS)
def test_strokes_stand_out_from_their_surround(split, strokes):
    batch = Scenes(split, strokes=strokes).render(range(400), objects=True)
    lighter = []
    for image, objects in zip(batch.images, batch.objects, strict=True):
        luma, stroke = image @ LUMA, objects.masks[0]
        x1, y1, x2, y2 = objects.boxes[0].astype(int)
        around = np.zeros_like(stroke)
        around[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = True  # some 1s fill their box
        around &= ~stroke
        contrast = luma[stroke].mean() - luma[around].mean()
        lighter.append(contrast > 0)
        assert abs(contrast) > LEAST_CONTRAST
    assert np.mean(lighter) == 1 if strokes == "light" else 0.4 < np.mean(lighter) < 0.6


def test_every_digit_has_a_stroke_at_every_size():
    blank = np.zeros((64, 64, 3), np.uint8)
    for split in SPLITS:
        for row, ink in enumerate(split_digits(split)[0]):
            for side in (8, 10, 21, 48):
                digit = digits_render.Digit(row=row, label=0, top=8, left=8, side=side, pole=0, level=255)
                opacity = digits_render.paint(blank, digit, ink)
                assert (opacity > 0.5).sum() > 0.05 * side**2


def test_all_sizes_and_classes_occur():
    small = Scenes("train", (32, 32), digit_px=(10, 30))
    places = [digits[0] for digits in small.digits(np.arange(3000))]
    sides = np.array([digit.side for digit in places])
    assert set(sides) == set(range(10, 31))
    assert abs((sides < 17.6).mean() - 0.5) < 0.05  # log-uniform: half below the geometric mean of 10 and 31
    assert {digit.top for digit in places} == {digit.left for digit in places} == set(range(23))
    for epoch in (0, 5):
        labels = TRAIN.render(range(500), epoch).labels.reshape(-1, CLASSES)
        assert (np.sort(labels) == np.arange(CLASSES)).all()  # ten in a row hold every class


# -- objects --------------------------------------------------------------------------------------------


def test_boxes_contain_masks_tightly_and_digits_stay_apart():
    batch = SEVERAL.render(range(200), objects=True)
    assert {len(objects.labels) for objects in batch.objects} == {1, 2, 3, 4, 5}
    for objects in batch.objects:
        assert objects.boxes.dtype == np.float32
        assert objects.masks.shape == (len(objects.labels), 96, 128)
        assert objects.masks.sum(axis=0).max() == 1
        for (x1, y1, x2, y2), mask in zip(objects.boxes.astype(int), objects.masks, strict=True):
            inside = mask[y1:y2, x1:x2]
            assert inside.sum() == mask.sum() > 0
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()


def test_the_label_is_the_largest_digits():
    for scene, draws in SEVERAL._draw(np.arange(100), 0):
        digits = SEVERAL._place(scene, draws)
        assert all(digit.clear_of(digits[:n]) for n, digit in enumerate(digits))
    batch = SEVERAL.render(range(100), objects=True)
    for label, objects in zip(batch.labels, batch.objects, strict=True):
        assert label in objects.labels
        height = objects.boxes[:, 3] - objects.boxes[:, 1]
        if height.max() > 1.3 * np.delete(height, height.argmax()).max(initial=0):
            assert label == objects.labels[height.argmax()]


# -- dataset and files ----------------------------------------------------------------------------------


def test_dataset_items_are_the_normalised_scenes():
    data = DigitsDataset(TRAIN, count=30)
    data.set_epoch(3)
    scenes = TRAIN.render(range(30), epoch=3)
    for index, (image, label) in enumerate(data):
        assert image.dtype == torch.float32
        pixels = (image.permute(1, 2, 0) * torch.tensor(STD) + torch.tensor(MEAN)) * 255
        assert np.allclose(pixels.numpy(), scenes.images[index], atol=1e-3)
        assert label == scenes.labels[index]
    assert len(data) == index + 1 == 30
    together = data.__getitems__([4, 9])
    assert torch.equal(together[1][0], data[9][0])


def test_epochs_reach_persistent_workers():
    data = DigitsDataset(TRAIN, count=12)
    loader = DataLoader(data, batch_size=5, num_workers=2, persistent_workers=True)
    for epoch in (0, 4):
        data.set_epoch(epoch)
        images = torch.cat([images for images, _ in loader])
        assert torch.equal(images, torch.stack([image for image, _ in data]))


def test_image_folder_holds_the_same_scenes(tmp_path):
    write_image_folder(tmp_path / "digits", counts={"train": 40, "val": 20}, scenes=TRAIN)
    assert sorted(path.name for path in (tmp_path / "digits").iterdir()) == ["train", "val"]
    for split, count in (("train", 40), ("val", 20)):
        folder = ImageFolder(str(tmp_path / "digits" / split))
        scenes = Scenes(split).render(range(count))
        assert folder.classes == [str(label) for label in range(CLASSES)]
        assert len(folder) == count
        for path, label in folder.samples:
            index = int(path.rsplit("/", 1)[1].removesuffix(".png"))
            assert label == scenes.labels[index]
            assert np.array_equal(np.asarray(folder.loader(path)), scenes.images[index])


def test_image_folder_leaves_nothing_behind(tmp_path):
    with pytest.raises(SpecError, match=r"class .* empty; ask for more"):
        write_image_folder(tmp_path, counts={"val": 9}, scenes=TRAIN)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match="exists already"):
        write_image_folder(tmp_path, counts={"train": 10, "val": 10}, scenes=TRAIN)
    assert [path.name for path in tmp_path.iterdir()] == ["val"]


# -- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scenes("dev"), "split 'dev' is unknown; use one of train, val, test"),
        (lambda: Scenes("train", (32, 64)), r"digit_px \(10, 48\) does not fit .* use at most 32"),
        (lambda: Scenes("train", digit_px=(4, 20)), "least >= 8"),
        (lambda: Scenes("train", digit_px=(20, 10)), "digit_px"),
        (lambda: Scenes("train", digits_per_scene=(0, 2)), "digits_per_scene"),
        (lambda: Scenes("train", strokes="dark"), "strokes 'dark' is unknown"),
        (lambda: Scenes("train", seed=-1), "seed -1"),
        (lambda: TRAIN.render([-1]), "0 or more"),
        (lambda: DigitsDataset(TRAIN, 0), "count 0 must be 1 or more"),
        (lambda: DigitsDataset(TRAIN, 1).set_epoch(-1), "epoch -1"),
        (lambda: write_image_folder("unused", counts={"dev": 10}, scenes=TRAIN), "split 'dev'"),
        (lambda: write_image_folder("unused", counts={"val": 0}, scenes=TRAIN), "val is 0"),
    ],
)
def test_impossible_settings_are_one_clear_line(make, message):
    with pytest.raises(SpecError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
