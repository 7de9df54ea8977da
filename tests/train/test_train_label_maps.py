"""Pictures with a class for each pixel: folders as ADE20K lies, Pascal VOC and Cityscapes."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import Cityscapes
from train_annotated import SIZES, ade, cityscapes, label_map, noise, some_coco, source_of, voc

from routespace.errors import DataError
from routespace.train.data.annotated.check import check_annotated
from routespace.train.data.annotated.label_maps import FolderAnnotations, LabelMaps
from routespace.train.recipe.coco import CocoSpec
from routespace.train.recipe.data import FolderSpec
from routespace.train.recipe.data_kinds import data_at, spec_at
from routespace.train.recipe.segmentation import CityscapesSpec, SegmentationSpec
from routespace.train.recipe.targets import IGNORE
from routespace.train.recipe.voc import VocSpec


def spec(root, **fields):
    return SegmentationSpec(root=str(root), **{"ignore": (0,), "shift": 1, "hflip": 0.0} | fields)


def test_numbers_are_classes_and_pixels_without_one_are_ignored(tmp_path):
    ade(tmp_path)
    maps = ade(tmp_path, "validation", count=3)
    source = source_of(spec(tmp_path, eval_size=(32, 128)), "pixels", size=(32, 32))
    assert source.classes == ("wall", "floor", "lamp")
    assert source.summary.text == "3 classes, 9 images (train 6, val 3)"
    for (image, pixels), values, size in zip((source.val()[i] for i in range(3)), maps, SIZES, strict=True):
        assert torch.equal(pixels, torch.from_numpy(np.where(values == 0, IGNORE, values - 1.0)).long())
        assert pixels.shape == size  # as judged: the picture's own
        assert min(image.shape[1:]) == 32
    for image, pixels in (source.train()[i] for i in range(6)):
        assert image.shape[1:] == pixels.shape
        assert pixels.dtype == torch.int64
        assert set(pixels.unique().tolist()) <= {0, 1, 2, IGNORE}
    with pytest.raises(DataError, match="no annotated test images"):
        source.test()
    assert len(source_of(spec(tmp_path, val="cut"), "pixels").test()) == 3


def of_palette(values):
    image = Image.fromarray(values.astype(np.uint8), mode=None).convert("P")
    image.putdata(values.ravel().tolist())
    image.putpalette([part for number in range(256) for part in (number * 37 % 256, number * 91 % 256, 7)])
    return image


PNGS = {
    "grey": (lambda values: Image.fromarray(values.astype(np.uint8)), {}),
    "16 bits": (lambda values: Image.fromarray(values.astype(np.uint16)), {}),
    "palette": (of_palette, {}),
    "palette, transparent": (of_palette, {"transparency": 1}),
    "grey, transparent": (lambda values: Image.fromarray(values.astype(np.uint8)), {"transparency": 1}),
    "palette of 2 bits": (of_palette, {"bits": 2}),
    "palette of 4 bits": (of_palette, {"bits": 4}),
    "two values": (lambda values: Image.fromarray(values > 0), {}),
}


@pytest.mark.parametrize("kind", PNGS)
def test_label_maps_of_every_kind_of_png_tell_the_same_classes(kind, tmp_path):
    """A palette's numbers are the classes, whatever their colours, and 255 counts for nothing."""
    ade(tmp_path)
    make, options = PNGS[kind]
    values = np.random.default_rng(0).integers(0, 2 if kind == "two values" else 4, (64, 48))
    if not ("bits" in options or kind == "two values"):
        values[:9] = IGNORE
    place = tmp_path / "annotations/training/room/1.png"
    make(values).save(place, **options)
    found = LabelMaps({1: 0, 2: 1, 3: 2}, frozenset({0, IGNORE})).read(str(place))
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.array([IGNORE, 0, 1, 2])[np.where(values == IGNORE, 0, values)])
    assert source_of(spec(tmp_path, ignore=(0, IGNORE)), "pixels").quick_check() == ()


def test_classes_of_a_network_are_found_by_name(tmp_path):
    maps = ade(tmp_path, count=3)
    source = source_of(spec(tmp_path), "pixels", classes=("lamp", "door", "floor", "wall"), whole=False)
    assert source.classes[0] == "lamp"
    source = source_of(
        spec(tmp_path, image_folder="images/training", label_folder="annotations/training"),
        "pixels",
        classes=("lamp", "door", "floor", "wall"),
        whole=True,
    )
    found = source.test()[0][1].numpy()
    assert np.array_equal(found, np.array([IGNORE, 3, 2, 0])[maps[0]])


def test_names_come_from_a_list_a_file_or_the_table_of_ade20k(tmp_path):
    ade(tmp_path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"classes\.txt: no such file.*data\.names"):
        source_of(spec(tmp_path), "pixels")
    table = "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t5\t5\twall, walls\n2\t0.1\t5\t5\tfloor\n3\t0.1\t5\t5\tlamp\n"
    (tmp_path / "objectInfo150.txt").write_text(table)
    assert source_of(spec(tmp_path), "pixels").classes == ("wall, walls", "floor", "lamp")
    assert source_of(spec(tmp_path, names=["a", "b", "c"]), "pixels").classes == ("a", "b", "c")
    with pytest.raises(DataError, match="'a' is there twice"):
        source_of(spec(tmp_path, names=["a", "b", "a"]), "pixels")
    with pytest.raises(DataError, match="1 is also the number of class 'a'"):
        source_of(spec(tmp_path, names=["a", "b"], ignore=[1]), "pixels")


def other_size(root):
    label_map(root / "annotations/training/room/1.png", np.ones((9, 9), np.uint8))


def other_number(root):
    label_map(root / "annotations/training/room/1.png", np.full((64, 48), 77, np.uint8))


def colours(root):
    noise(root / "annotations/training/room/1.png", (64, 48))


def truncated(root):
    path = root / "annotations/training/room/1.png"
    path.write_bytes(path.read_bytes()[:90])


def decimals(root):
    values = Image.fromarray(np.full((64, 48), 1.5, np.float32))
    values.save(root / "annotations/training/room/1.png", format="TIFF")


def below_zero(root):
    values = Image.fromarray(np.full((64, 48), -1, np.int32))
    values.save(root / "annotations/training/room/1.png", format="TIFF")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (decimals, ["decimal point"]),
        (below_zero, ["number -1", "0 … 65535"]),
        (other_size, ["9 × 9 pixels", "48 × 64"]),
        (other_number, ["number 77", "no class (these are 1 … 3; see data.shift, now 1"]),
        (colours, ["3 channels", "one number a pixel"]),
        (truncated, ["1.png"]),
    ],
)
def test_label_maps_that_do_not_fit_are_told_before_training(tmp_path, spoil, words):
    ade(tmp_path)
    spoil(tmp_path)
    source = source_of(spec(tmp_path), "pixels")
    with pytest.raises(DataError) as error:
        source.quick_check()
    for word in [str(tmp_path / "annotations/training/room/1.png"), "skip_bad=1", *words]:
        assert word in str(error.value)
    assert len(source_of(spec(tmp_path, skip_bad=1), "pixels").quick_check()) == 1
    report = check_annotated(FolderAnnotations(spec(tmp_path), "pixels"), spec(tmp_path))
    (finding,) = report.findings
    assert (finding.problem, report.ok) == ("annotation", False)
    assert words[0] in finding.detail


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("images/training/room/2.jpg", ["1 file has no picture", "room/2"]),
        ("annotations/training/room/2.png", ["1 file has no label map", "room/2"]),
    ],
)
def test_a_picture_or_a_label_map_alone_is_refused(tmp_path, gone, words):
    ade(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(DataError) as error:
        source_of(spec(tmp_path), "pixels").train()
    for word in words:
        assert word in str(error.value)


def test_label_maps_that_end_in_another_way_are_told(tmp_path):
    ade(tmp_path)
    maps = tmp_path / "annotations/training/room"
    (maps / "2.png").rename(maps / "2.PNG")
    assert len(source_of(spec(tmp_path), "pixels").train())
    (maps / "2.PNG").rename(maps / "2.jpg")
    with pytest.raises(DataError, match=r"label maps end in \.png, and .*2\.jpg is none, whose numbers JPEG has"):
        source_of(spec(tmp_path), "pixels").train()


def test_two_pictures_of_one_label_map_are_refused(tmp_path):
    ade(tmp_path)
    noise(tmp_path / "images/training/room/2.png", (40, 40))
    with pytest.raises(DataError, match=r"2\.jpg and 2\.png have one name but for the ending"):
        source_of(spec(tmp_path), "pixels").train()


def test_masks_of_two_numbers_of_which_one_is_ignored_are_told(tmp_path):
    ade(tmp_path)
    source = source_of(spec(tmp_path), "pixels")
    assert source.quick_check() == ()
    for path in (tmp_path / "annotations").rglob("*.png"):
        values = np.zeros(np.asarray(Image.open(path)).shape, np.uint8)
        values[: len(values) // 2] = 255
        label_map(path, values)
    (told,) = source_of(SegmentationSpec(root=str(tmp_path)), "pixels").quick_check()
    assert "label maps have pixels of 'wall' alone (50% count for nothing)" in told


def test_names_begin_after_the_mark_that_some_editors_write(tmp_path):
    ade(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfwall\r\nfloor\r\nlamp\r\n")
    assert source_of(spec(tmp_path), "pixels").classes == ("wall", "floor", "lamp")


def test_a_part_without_pictures_is_named(tmp_path):
    voc(tmp_path, [])
    for part in ("train", "val"):
        list_of = tmp_path / f"VOCdevkit/VOC2012/ImageSets/Main/{part}.txt"
        before = list_of.read_text()
        list_of.write_text("")
        with pytest.raises(DataError, match=f"VOC 2012 {part}: has no pictures"):
            source_of(VocSpec(root=str(tmp_path)), "objects").train()
        list_of.write_text(before)


def test_an_annotation_that_was_mended_is_read_again(tmp_path):
    voc(tmp_path, [("unicorn", 0, 6, 11, 30, 20)])
    with pytest.raises(DataError, match="unicorn"):
        source_of(VocSpec(root=str(tmp_path)), "objects").quick_check()
    for file in (tmp_path / "VOCdevkit/VOC2012/Annotations").iterdir():
        file.write_text(file.read_text().replace("unicorn", "dog"))
    assert source_of(VocSpec(root=str(tmp_path)), "objects").quick_check() == ()


def test_a_folder_of_both_tells_its_kind(tmp_path):
    ade(tmp_path)
    assert data_at(tmp_path)["data.kind"] == "segmentation"
    now = CityscapesSpec(root="elsewhere")
    assert isinstance(spec_at(tmp_path, now), SegmentationSpec)
    for path in (tmp_path / "annotations").rglob("*.png"):
        path.unlink()
    assert isinstance(spec_at(tmp_path, now), CityscapesSpec)  # two folders of these names may be anything's


def test_ade20ks_own_table_counts_from_one(tmp_path):
    ade(tmp_path)
    assert (spec_at(tmp_path).ignore, spec_at(tmp_path).shift) == ((255,), 0)
    (tmp_path / "classes.txt").rename(tmp_path / "objectInfo150.txt")
    assert (spec_at(tmp_path).ignore, spec_at(tmp_path).shift) == ((0,), 1)
    assert data_at(tmp_path)["data.shift"] == 1
    now = spec("elsewhere", shift=2)
    assert "data.shift" not in data_at(tmp_path, now)  # the recipe's own stays
    with pytest.raises(DataError, match=r"objectInfo150\.txt: counts its classes from 1, but data\.shift is 0"):
        source_of(spec(tmp_path, shift=0, ignore=(255,)), "pixels")
    named = spec(tmp_path, shift=0, ignore=(255,), names="objectInfo150.txt")
    assert source_of(named, "pixels").classes == ("wall", "floor", "lamp")


def test_folders_of_voc_and_cityscapes_are_known_by_their_looks(tmp_path):
    voc(tmp_path / "a", [])
    root = str(tmp_path / "a")
    for given in ("a", "a/VOCdevkit", "a/VOCdevkit/VOC2012"):
        assert data_at(tmp_path / given) == {"data.kind": "voc", "data.root": root, "data.year": "2012"}
    (tmp_path / "a/VOCdevkit/VOC2012").rename(tmp_path / "a/VOCdevkit/VOC2007")
    assert data_at(tmp_path / "a")["data.year"] == "2007"
    assert data_at(tmp_path / "a", VocSpec(root="elsewhere", year="2010"))["data.year"] == "2007"
    cityscapes(tmp_path / "b")
    assert data_at(tmp_path / "b") == {"data.kind": "cityscapes", "data.root": str(tmp_path / "b")}
    some_coco(tmp_path / "c")
    for folder, kind in (("a", "voc"), ("b", "cityscapes"), ("c", "coco")):  # whatever the recipe had
        for now in (CocoSpec(root="elsewhere"), spec("elsewhere"), VocSpec(root="elsewhere")):
            assert data_at(tmp_path / folder, now)["data.kind"] == kind
    (tmp_path / "VOCdevkit").mkdir()
    (tmp_path / "d" / "images").mkdir(parents=True)
    assert isinstance(spec_at(tmp_path / "d"), FolderSpec)


# -- torchvision's ---------------------------------------------------------------------------------------------


def test_cityscapes_has_the_classes_that_count(tmp_path):
    numbers = cityscapes(tmp_path)
    source = source_of(CityscapesSpec(root=str(tmp_path)), "pixels", size=(32, 32))
    assert len(source.classes) == 19
    assert source.classes[:2] == ("road", "sidewalk")
    ids = {one.id: one.train_id if 0 <= one.train_id < 19 else IGNORE for one in Cityscapes.classes}
    wanted = [[ids.get(int(n), IGNORE) for n in row] for row in numbers]
    image, pixels = source.val()[1]
    assert pixels.tolist() == wanted
    assert (image.shape, len(source.train())) == ((3, 32, 64), 2)
    assert source.quick_check() == ()
    with pytest.raises(DataError, match="no annotated test"):
        source.test()
    label_map(next((tmp_path / "gtFine/train/aachen").iterdir()), np.full((36, 64), 77, np.uint8))
    with pytest.raises(DataError, match="number 77, which is no class"):
        source.quick_check()
    (tmp_path / "gtFine").rename(tmp_path / "gtCoarse")
    assert spec_at(tmp_path).mode == "coarse"
    with pytest.raises(DataError, match=r"has no Cityscapes train part.*gtFine/train/ in it"):
        source_of(CityscapesSpec(root=str(tmp_path)), "pixels").train()
    with pytest.raises(DataError, match="has no Cityscapes train part"):
        source_of(CityscapesSpec(root=str(tmp_path / "gtCoarse")), "pixels").train()


def test_voc_gives_boxes_with_difficult_ones_as_crowds(tmp_path):
    voc(tmp_path, [("dog", 0, 6, 11, 30, 20), ("cat", 1, 1, 1, 64, 48)])
    source = source_of(VocSpec(root=str(tmp_path), eval_size=(48, 64)), "objects")
    assert source.summary.text.startswith("20 classes, 3 images (train 2, val 1), 6 objects: cat 3, dog 3")
    image, found = source.val()[0]
    assert found["boxes"].tolist() == [[5, 10, 30, 20], [0, 0, 64, 48]]
    assert [source.classes[label] for label in found["labels"]] == ["dog", "cat"]
    assert found["crowd"].tolist() == [False, True]
    assert (image.shape, source.quick_check()) == ((3, 48, 64), ())


def test_voc_gives_pixels_with_the_border_ignored(tmp_path):
    values = voc(tmp_path, [])
    source = source_of(VocSpec(root=str(tmp_path)), "pixels")
    assert source.classes[::12] == ("background", "dog")
    assert np.array_equal(source.val()[0][1].numpy(), values)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("unicorn", 0, 6, 11, 30, 20), "object 0: is of class 'unicorn'"),
        (("dog", 0, 66, 11, 80, 20), "object 0: its box .* has no area"),
        (("dog", 0, "x", 11, 80, 20), "bndbox/xmin is 'x'"),
    ],
)
def test_voc_files_that_cannot_be_meant_are_told_before_training(tmp_path, wrong, words):
    voc(tmp_path, [wrong])
    with pytest.raises(DataError, match=rf"\.xml.*{words}.*3 of 3 images"):
        source_of(VocSpec(root=str(tmp_path)), "objects").quick_check()
    with pytest.raises(DataError, match="has no VOC 2007 part 'train'"):
        source_of(VocSpec(root=str(tmp_path), year="2007"), "objects").train()
