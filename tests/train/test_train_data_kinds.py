"""Tables, shards and timm's datasets: small ones made on disk."""

import csv
import gzip
import io
import json
import pickle
import struct
import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import MNIST
from train_photos import COLOURS, photos, picture
from train_tiny import tiny

from routespace.errors import DataError, MissingDependencyError
from routespace.train.data.check import check_pictures
from routespace.train.data.loaders import make_loaders
from routespace.train.data.source import SOURCES, located, make_source
from routespace.train.recipe.data_kinds import SPECS
from routespace.train.run import train_recipe

NAMES = tuple(COLOURS)


def source_of(kind, root, classes=3, **fields):
    """The source of a recipe of that kind."""
    changes = {f"data.{name}": value for name, value in fields.items()}
    changes |= {"data.kind": kind, "data.root": str(root), "grid.num_classes": classes, "routing": "static"}
    return make_source(tiny().override(changes))


def test_every_spec_has_a_source():
    assert set(SOURCES) == set(SPECS.values())


@pytest.mark.parametrize("kind", ["digits", "folder", "csv", "webdataset", "timm"])
def test_datasets_travel_to_processes_that_start_afresh(tmp_path, kind):
    photos(tmp_path, count=4)
    rows = [(f"train/{name}/{i}.png", name, "train") for name in NAMES for i in range(4)]
    shard(tmp_path / "train.tar", [{"png": encoded(i), "cls": b"%d" % (i % 3)} for i in range(12)])
    fields = {
        "digits": {}, "folder": {"root": tmp_path}, "csv": {"root": table(tmp_path / "list.csv", rows)},
        "webdataset": {"root": tmp_path}, "timm": {"root": tmp_path, "name": "torch/image_folder"},
    }[kind]  # fmt: skip
    changes = {f"data.{name}": str(value) for name, value in fields.items()} | {"routing": "static"}
    source = make_source(tiny().override({"data.kind": kind, "grid.num_classes": 3 if fields else 10, **changes}))
    for dataset in (source.train(), source.val()):
        copied = pickle.loads(pickle.dumps(dataset))
        assert torch.equal(copied[1][0], dataset[1][0])


# -- tables ---------------------------------------------------------------------------------------------


def table(path, rows, columns=("path", "label", "split")):
    """Write a table with a heading."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([columns, *rows])
    return path


@pytest.fixture
def pool(tmp_path):
    """Thirty pictures in one heap."""
    for i in range(30):
        picture(tmp_path / f"heap/{i}.png", COLOURS[NAMES[i % 3]], i)
    return tmp_path


@pytest.mark.parametrize("name", ["list.csv", "list.tsv"])
def test_a_table_with_splits(pool, name):
    splits = ["train"] * 20 + ["valid"] * 5 + ["TEST"] * 5
    rows = [(f"heap/{i}.png", NAMES[i % 3], splits[i]) for i in range(30)]
    source = source_of("csv", table(pool / name, rows))
    assert source.classes == NAMES
    assert [len(source.train()), len(source.val()), len(source.test())] == [20, 5, 5]
    for dataset in (source.train(), source.val(), source.test()):
        for place, label in dataset.items:
            assert label == int(Path(place).stem) % 3
        assert dataset[0][0].shape == (3, 32, 32)


def test_a_table_of_paths_and_labels_alone(pool):
    rows = [(str(pool / f"heap/{i}.png") if i % 2 else f"{i}.png", NAMES[i % 3]) for i in range(30)]
    path = table(pool / "lists/all.csv", rows, ("file", "what"))
    fields = {"path_column": "file", "label_column": "what", "images": str(pool / "heap")}
    source = source_of("csv", path, **fields)
    assert len(source.train()) + len(source.val()) == 30
    assert source.train()[0][0].shape == (3, 32, 32)
    with pytest.raises(DataError, match="no test images"):
        source.test()
    changes = {"data.kind": "csv", "data.root": str(path), "grid.num_classes": 3, "routing": "static"}
    recipe = tiny().override(changes | {f"data.{name}": value for name, value in fields.items()})
    assert len(make_source(recipe, classes=NAMES, whole=True).test()) == 30
    assert located(recipe).data.images == str(pool / "heap")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no lines below its column names"),
        ([("a.png", "", "train")], "line 2: label is empty"),
        ([("a.png", "cat", "dev")], "line 2: split 'dev' is not known; give train, val or test"),
        (
            [("a.png", "cat", "train"), ("a.png", "dog", "train")],
            r"line 3: 'a.png' stands there with another label",
        ),
        ([("a.png", "cat", "test"), ("b.png", "dog", "test")], "no training images"),
    ],
)
def test_a_table_that_is_wrong_is_one_line(tmp_path, rows, words):
    path = table(tmp_path / "list.csv", rows)
    with pytest.raises(DataError, match=words):
        source_of("csv", path, 2).train()


def test_a_picture_of_both_sides_of_a_table_is_told(pool):
    rows = [(f"heap/{i}.png", NAMES[i % 3], "train" if i < 15 else "val") for i in range(30)]
    more = [("heap/3.png", NAMES[0], "train"), ("heap/4.png", NAMES[1], "val")]  # twice in one part is a wish
    path = table(pool / "list.csv", rows + more)
    (warning,) = source_of("csv", path).summary.warnings
    assert warning.startswith(f"1 validation image is trained on, too ({pool / 'heap/4.png'})")
    (finding,) = check_pictures(path).findings
    assert (finding.path, finding.detail) == (str(pool / "heap/4.png"), "there twice, in train and val")


def test_a_table_that_is_none(tmp_path):
    with pytest.raises(DataError, match=r"list.csv: no such folder or file; give the table"):
        source_of("csv", tmp_path / "list.csv")
    path = table(tmp_path / "list.csv", [("a", "b")], ("name", "label"))
    with pytest.raises(DataError, match=r"no column 'path' \(found: name, label\); name it with data.path_col"):
        source_of("csv", path)
    path.write_text("path;label\na.png;cat\n")
    with pytest.raises(DataError, match=r"no column 'path' \(found: path;label\); write commas"):
        source_of("csv", path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as a table"):
        source_of("csv", path)


# -- shards ---------------------------------------------------------------------------------------------


def shard(path, samples):
    """Write a shard: samples of {ending: bytes}, with keys 000, 001, …."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i, sample in enumerate(samples):
            for ending, content in sample.items():
                info = tarfile.TarInfo(f"{i:03d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def encoded(label, form="PNG"):
    """A picture of one colour, as a file's bytes."""
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), COLOURS[NAMES[label % 3]]).save(stream, form)
    return stream.getvalue()


def test_shards_are_read_from_their_places(tmp_path):
    for part in range(2):
        shard(tmp_path / f"train-{part}.tar", [{"png": encoded(i), "cls": b"%d" % (i % 3)} for i in range(9)])
    shard(tmp_path / "test-0.tar", [{"webp": encoded(i, "WEBP"), "cls": b"%d\n" % i} for i in range(3)])
    (tmp_path / "classes.txt").write_text("ant\ncat\ndog\n")
    source = source_of("webdataset", tmp_path)
    assert source.classes == NAMES
    assert source.summary.text.startswith("3 classes, 18 images")
    for dataset in (source.val(), source.test()):
        for image, label in dataset:
            shown = source.preprocess.shown(image.numpy()).mean((1, 2)) * 255
            np.testing.assert_allclose(shown, COLOURS[NAMES[label]], atol=8)
    (tmp_path / "classes.txt").unlink()
    assert source_of("webdataset", tmp_path).classes == ("0", "1", "2")
    shard(tmp_path / "val.tar", [{"jpg": encoded(i, "JPEG"), "cls": b"2"} for i in range(2)])
    assert [label for _, label in source_of("webdataset", tmp_path).val().items] == [2, 2]


def test_shards_number_their_classes(tmp_path):
    """Numbers are outputs: 10 comes after 2, and a number that is missing keeps its place."""
    shard(
        tmp_path / "train.tar",
        [{"png": encoded(i), "cls": b"%d" % label} for i, label in enumerate([0, 2, 11] * 4)],
    )
    source = source_of("webdataset", tmp_path, 12)
    assert source.classes == tuple(map(str, range(12)))
    assert {label for _, label in source.train().items} == {0, 2, 11}
    assert "no training images of 9 classes (1, 3, 4, …)" in source.summary.warnings


def test_shards_with_names_and_json(tmp_path):
    samples = [{"png": encoded(i), "json": json.dumps({"what": NAMES[i % 3]}).encode()} for i in range(12)]
    shard(tmp_path / "a/my-train.tar", samples)
    source = source_of("webdataset", tmp_path / "a", label="what")
    assert source.classes == NAMES
    shard(tmp_path / "b/train.tar", [{"png": encoded(i), "cls": NAMES[i % 3].encode()} for i in range(12)])
    assert source_of("webdataset", tmp_path / "b").classes == NAMES


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({"png": b"x"}, r"train.tar: 000.png: has no label"),
        ({"cls": b"1"}, r"train.tar: holds no picture with a label"),
        ({"png": b"x", "json": b"{"}, "holds no label"),
    ],
)
def test_shards_that_are_wrong_are_one_line(tmp_path, sample, words):
    shard(tmp_path / "train.tar", [sample])
    with pytest.raises(DataError, match=words):
        source_of("webdataset", tmp_path, label="what" if "json" in sample else "cls")


def test_shards_that_are_none(tmp_path):
    with pytest.raises(DataError, match="no training images"):
        source_of("webdataset", tmp_path)
    (tmp_path / "train.tar").write_bytes(b"x" * 2000)
    with pytest.raises(DataError, match=r"train.tar: is no readable .tar file"):
        source_of("webdataset", tmp_path)


# -- timm's datasets ------------------------------------------------------------------------------------


def mnist(root, count=30):
    """MNIST's files, with a few made-up digits."""
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, data in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            head = struct.pack(f">HBB{data.ndim}I", 0, 8, data.ndim, *data.shape)
            (folder / name).write_bytes(head + data.tobytes())
            (folder / f"{name}.gz").write_bytes(gzip.compress(head + data.tobytes()))
    return root


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fewer than 5 validation images")
def test_a_torchvision_dataset_trains(tmp_path):
    mnist(tmp_path / "data", 60)
    changes = {"data.kind": "timm", "data.name": "torch/mnist", "data.root": str(tmp_path / "data")}
    recipe = tiny().override(changes | {"data.hflip": 0.0, "train.epochs": 1, "routing": "static"})
    source = make_source(recipe)
    theirs = MNIST(str(tmp_path / "data"))
    assert source.classes == tuple(theirs.classes)
    assert [len(source.train()) + len(source.val()), len(source.test())] == [60, 60]
    place, label = source.val().items[3]
    image = source.preprocess(theirs[place.number][0])
    assert torch.equal(source.val()[3][0], torch.from_numpy(image))
    assert label == theirs[place.number][1]
    assert 0 <= train_recipe(recipe, tmp_path / "run").metrics["accuracy"] <= 1


def test_a_torchvision_folder(tmp_path):
    photos(tmp_path, count=6)
    photos(tmp_path, count=2, split="test")
    source = source_of("timm", tmp_path, name="torch/image_folder")
    assert source.classes == NAMES
    assert len(source.test()) == 6


class Columns(list):
    """The few things of a Hugging Face dataset that timm asks for."""

    features = {"image": None, "label": SimpleNamespace(names=list(NAMES))}
    info = SimpleNamespace(features=features, splits=None)

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)

    def cast_column(self, *_):
        return self


@pytest.fixture
def fresh_reader():
    """timm's reader imports `datasets` once: each test sees its own."""
    name = "timm.data.readers.reader_hfds"
    sys.modules.pop(name, None)
    yield
    sys.modules.pop(name, None)


def test_a_hugging_face_dataset_by_a_stand_in(tmp_path, monkeypatch, fresh_reader):
    rows = [{"image": {"bytes": encoded(i)}, "label": i % 3} for i in range(12)]
    datasets = ModuleType("datasets")
    datasets.Image = lambda decode: None
    datasets.load_dataset = lambda name, *, split, **_: Columns(rows if split == "train" else rows[:2])
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    check_animals(source_of("timm", tmp_path, name="hfds/me/animals"), 12, 2)
    rows[0]["label"] = -1
    with pytest.raises(DataError, match="has pictures without a label"):
        source_of("timm", tmp_path, name="hfds/me/animals")


def check_animals(source, train_count, test_count):
    """Classes by name, pictures of their colours."""
    assert source.classes == NAMES
    assert len(source.train()) + len(source.val()) == train_count
    assert len(source.test()) == test_count
    image, label = source.val()[0]
    shown = source.preprocess.shown(image.numpy()).mean((1, 2)) * 255
    np.testing.assert_allclose(shown, COLOURS[NAMES[label]], atol=12)


def test_a_hugging_face_dataset(tmp_path, monkeypatch, fresh_reader):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    photos(tmp_path / "animals", count=6)
    photos(tmp_path / "animals", count=2, split="test")
    source = source_of("timm", tmp_path / "cache", name=f"hfds/{tmp_path}/animals")
    check_animals(source, 18, 6)


def test_datasets_that_are_not_there_are_one_line(tmp_path, monkeypatch, fresh_reader, capsys):
    with pytest.raises(DataError, match=r"torch/mnist, train: cannot be opened in .* set data.download=true"):
        source_of("timm", tmp_path, 10, name="torch/mnist")
    with pytest.raises(DataError, match="torch/nosuch, train: cannot be opened"):
        source_of("timm", tmp_path, name="torch/nosuch")
    with pytest.raises(DataError, match=r"data.name: missing; give a dataset of timm's"):
        source_of("timm", tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install .routespace.huggingface.."):
        source_of("timm", tmp_path, name="hfds/me/animals")
    assert capsys.readouterr().out == ""


def test_shards_travel_to_loader_processes(tmp_path):
    shard(tmp_path / "train.tar", [{"png": encoded(i), "cls": b"%d" % (i % 3)} for i in range(40)])
    changes = {"data.kind": "webdataset", "data.root": str(tmp_path), "grid.num_classes": 3, "routing": "static"}
    recipe = tiny().override(changes)
    found = [
        torch.cat([group.images for groups in make_loaders(changed).train for group in groups])
        for changed in (recipe.override({"data.workers": workers}) for workers in (0, 1))
    ]
    assert torch.equal(*found)
