import random
import shutil

import numpy as np
import pytest
import torch
from train_tiny import tiny

from routespace.errors import DataError, SpecError
from routespace.train.data.digits import Scenes, write_image_folder
from routespace.train.data.loaders import ProcessShare, TrainBatches, make_loaders
from routespace.train.data.prefetch import Prefetch
from routespace.train.data.source import make_source
from routespace.train.run import train_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    write_image_folder(root, counts={"train": 80, "test": 20}, scenes=Scenes("train", (32, 32), 0, (16, 30)))
    return root


def folder_recipe(root, **changes):
    fixed = {"data__kind": "folder", "data__root": str(root), "data__val_fraction": 0.2, "data__hflip": 0.0}
    return tiny(**(fixed | changes))


def test_digits_loaders_are_fresh_each_epoch_and_the_same_again():
    loaders = make_loaders(tiny())
    assert loaders.steps == 4
    epochs = []
    for epoch in (0, 1, 0):
        loaders.set_epoch(epoch)
        epochs.append(torch.cat([images for ((images, _),) in loaders.train]))
    assert epochs[0].shape == (64, 3, 32, 32)
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])
    loaders.set_epoch(0, start=3)
    assert torch.equal(torch.cat([images for ((images, _),) in loaders.train]), epochs[0][48:])
    assert len(torch.cat([labels for _, labels in loaders.val])) == 32
    assert len(torch.cat([labels for _, labels in loaders.calibration])) == 32


def test_processes_share_each_batch():
    whole = list(TrainBatches(50, 12, ProcessShare(), seed=3))
    parts = [list(TrainBatches(50, 12, ProcessShare(rank, 3), seed=3)) for rank in range(3)]
    assert len(whole) == 4
    for step, batch in enumerate(whole):
        shared = [part[step] for part in parts]
        assert {len(mine) for mine in shared} == {4}
        assert sorted(i for mine in shared for i in mine) == sorted(batch)
    assert len({i for batch in whole for i in batch}) == 48
    val = [torch.cat([y for _, y in make_loaders(tiny(), ProcessShare(rank, 2)).val]) for rank in range(2)]
    assert sum(map(len, val)) == 32


def test_a_batch_that_does_not_fit():
    with pytest.raises(DataError, match=r"train.batch_size: 16 is more than the 9"):
        make_loaders(tiny(data__train_size=9))
    with pytest.raises(DataError, match=r"train.batch_size: 16 .* 3 processes"):
        make_loaders(tiny(), ProcessShare(0, 3))


def places(dataset):
    return [place for place, _ in dataset.items]


def test_validation_is_cut_from_train_and_test_is_left_alone(folder):
    source = make_source(folder_recipe(folder))
    files, held_out = places(source.train()), places(source.val())
    assert len(files) + len(held_out) == 80
    assert 8 <= len(held_out) <= 30
    assert not set(files) & set(held_out)
    assert all("/train/" in path for path in files + held_out)
    assert held_out == places(make_source(folder_recipe(folder, seed=5)).val())  # whatever the recipe's seed
    tested = places(source.test())
    assert len(tested) == 20
    assert all("/test/" in path for path in tested)


@pytest.mark.filterwarnings("ignore:fewer than 5 validation images")
def test_folder_training_runs_and_learns_labels_of_the_folders(folder, tmp_path):
    result = train_recipe(folder_recipe(folder, train__epochs=1, data__scale=0.9), tmp_path / "run")
    assert result.metrics["images"] == len(make_source(folder_recipe(folder)).val())
    assert 0 <= result.metrics["accuracy"] <= 1
    loaders = make_loaders(folder_recipe(folder))
    images, labels = next(iter(loaders.test))
    assert images.shape == (16, 3, 32, 32)
    assert int(labels.max()) <= 9


def test_folder_pixels_are_the_rendered_ones(folder):
    """Without cropping, a written test scene comes back as the rendered one."""
    dataset = make_source(folder_recipe(folder, data__crop_pct=1.0)).test()
    path, label = dataset.items[0]
    index = int(path.rsplit("/", 1)[1].removesuffix(".png"))
    scene = Scenes("test", (32, 32), 0, (16, 30)).render([index])
    rendered = torch.from_numpy(scene.images[0]).permute(2, 0, 1) / 255
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    image, found = dataset[0]
    assert found == label == scene.labels[0]
    torch.testing.assert_close(image * std[:, None, None] + mean[:, None, None], rendered, atol=1e-5, rtol=0)


def test_augmentation_is_reproducible_and_leaves_the_generators_alone(folder):
    recipe = folder_recipe(folder, data__auto_augment="rand-m9-mstd0.5-inc1", data__erasing=0.5, data__hflip=0.5)
    dataset = make_source(recipe).train()
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    dataset.set_epoch(0)
    first = dataset[3][0]
    random.random(), np.random.rand(), torch.rand(1)
    assert torch.equal(first, dataset[3][0])
    dataset.set_epoch(1)
    assert not torch.equal(first, dataset[3][0])
    random.setstate(before[0]), torch.set_rng_state(before[2])
    _ = dataset[5]
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("damage", ["truncated", "empty", "gone"])
def test_a_bad_image_is_named(folder, tmp_path, damage):
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    recipe = folder_recipe(root)
    victim = places(make_source(recipe).train())[7]
    with open(victim, "rb") as file:
        content = file.read()
    for_what = {"truncated": content[: len(content) // 2], "empty": b""}
    loaders = make_loaders(recipe)
    if damage == "gone":
        loaders.check()
        (root / victim).unlink()
    else:
        (root / victim).write_bytes(for_what[damage])
    with pytest.raises(DataError, match=victim.rsplit("/", 1)[1]):
        list(loaders.train)


def test_bad_folders_are_explained(folder, tmp_path):
    for changes, words in [
        ({"data__root": None}, "data.root: missing"),
        ({"data__root": str(tmp_path / "no")}, "no such folder"),
        ({"grid__num_classes": 4}, r"grid.num_classes: 4, .*has 10 classes"),
    ]:
        with pytest.raises(DataError, match=words):
            make_loaders(folder_recipe(folder, **changes))
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match=r"train/a: the class folder holds no pictures"):
        make_loaders(folder_recipe(tmp_path))
    shutil.copytree(folder / "train", tmp_path / "untested" / "train")
    loaders = make_loaders(folder_recipe(tmp_path / "untested"))
    with pytest.raises(DataError, match="no test images"):
        _ = loaders.test


def test_prefetch_gives_everything_in_order_and_passes_errors_on():
    assert list(Prefetch(range(7))) == list(range(7))

    def broken():
        yield 1
        raise SpecError("x: broken")

    items = iter(Prefetch(broken()))
    assert next(items) == 1
    with pytest.raises(SpecError, match="broken"):
        next(items)
    for item in Prefetch(range(10**9)):  # left early: the thread ends too
        if item == 3:
            break
