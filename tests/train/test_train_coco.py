"""Annotations in COCO's format: what is read, what is left out, what is refused."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from dense_tiny import dense
from PIL import Image
from pycocotools.coco import COCO
from train_annotated import SQUARE, annotation, coco_data, noise, rle, some_coco, source_of, write_coco
from train_tiny import tiny

from routespace.errors import DataError, SpecError
from routespace.train.data.annotated.check import check_annotated
from routespace.train.data.annotated.coco import coco_annotations
from routespace.train.data.annotated.coco_file import read_coco, run_lengths
from routespace.train.data.loaders import Loaders, collate
from routespace.train.recipe.coco import CocoSpec
from routespace.train.recipe.data_kinds import data_at, spec_at
from routespace.train.recipe.targets import BACKGROUND

SIZES = [(48, 64), (64, 48)]


def spec(root, **fields):
    return CocoSpec(root=str(root), **{"hflip": 0.0, "eval_size": (48, 64)} | fields)


def oracle(file, image):
    """What pycocotools reads: boxes, categories and masks of an image."""
    coco = COCO(str(file))
    found = coco.loadAnns(coco.getAnnIds(imgIds=image))
    boxes = [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in found)]
    return boxes, [one["category_id"] for one in found], [coco.annToMask(one).astype(bool) for one in found]


def test_boxes_and_masks_are_those_of_pycocotools(tmp_path):
    hole = np.zeros((48, 64), bool)
    hole[5:40, 8:50], hole[10:20, 20:30] = True, False
    annotations = [
        annotation(1, 1),
        annotation(2, 1, 90, (2, 2, 9, 9), [[2, 2, 11, 2, 11, 11], [3.5, 30, 9, 30, 9, 41.5, 3, 40]]),
        annotation(3, 1, 90, (8, 5, 42, 35), rle(hole), crowd=1),
        annotation(4, 1, 3, (8, 5, 42, 35), rle(hole, compressed=False)),
    ]
    file = write_coco(tmp_path, coco_data(SIZES, annotations))
    boxes, categories, masks = oracle(file, 1)
    source = source_of(spec(file), "masks", whole=True)
    assert source.classes == ("cat", "dog")
    found = source.test()[0][1]
    assert found["boxes"].tolist() == boxes
    assert [[3, 90][label] for label in found["labels"]] == categories
    assert torch.equal(found["masks"], torch.from_numpy(np.stack(masks)))
    assert found["crowd"].tolist() == [False, False, True, False]
    assert found["area"].tolist() == [one["area"] for one in annotations]
    assert (found["size"].tolist(), found["fed"].tolist(), int(found["image_id"])) == ([48, 64], [48, 64], 1)


def test_all_that_is_known_follows_when_a_picture_is_resized(tmp_path):
    file = write_coco(tmp_path, coco_data([(96, 128), (128, 96)], [annotation(1, 1), annotation(2, 2)]))
    for number, fed in ((0, (48, 64)), (1, (64, 48))):
        image, found = source_of(spec(file), "masks", whole=True).test()[number]
        assert image.shape == (3, *fed)
        assert found["boxes"].tolist() == [[5, 3, 15, 11]]
        assert found["area"].tolist() == [320]
        (mask,) = found["masks"]
        assert mask.shape == fed
        ys, xs = mask.nonzero(as_tuple=True)
        assert (xs.min(), ys.min(), xs.max(), ys.max()) == (5, 3, 14, 10)
        assert mask.sum() == 80
        assert found["fed"].tolist() == list(fed)
        assert found["size"].tolist() == [2 * side for side in fed]


def test_pictures_without_objects_and_classes_without_pictures_are_fine(tmp_path):
    some_coco(tmp_path)
    categories = ((7, "ant"), (3, "cat"), (90, "dog"))
    write_coco(tmp_path, coco_data(SIZES, [], categories), "test")
    source = source_of(spec(tmp_path, val_fraction=0.4), "masks", classes=("dog", "cat", "ant"))
    groups, unreadable = collate([type("S", (), {"item": source.test()[i], "unreadable": ()}) for i in range(2)])
    assert not unreadable
    for group in groups:
        assert group.images.shape[0] == 1
        assert group.targets[0]["boxes"].shape == (0, 4)
        assert group.targets[0]["masks"].shape == (0, *group.images.shape[2:])
    found = [source.train()[i][1] for i in range(len(source.train()))]
    assert {int(label) for one in found for label in one["labels"]} <= {0, 1}  # by name: cat is 1
    assert 0 in [len(one["labels"]) for one in found]


def test_classes_of_pixels_are_the_background_and_the_categories(tmp_path):
    big, small = (0, 0, 40, 40), (10, 10, 10, 10)
    squares = [[[x, y, x + w, y, x + w, y + h, x, y + h]] for x, y, w, h in (small, big)]
    file = write_coco(
        tmp_path,
        coco_data([(48, 64)], [annotation(1, 1, 90, small, squares[0]), annotation(2, 1, 3, big, squares[1])]),
    )
    source = source_of(spec(file), "pixels", whole=True)
    assert source.classes == (BACKGROUND, "cat", "dog")
    pixels = source.test()[0][1]
    assert pixels.dtype == torch.int64
    assert pixels.shape == (48, 64)
    assert torch.bincount(pixels.flatten()).tolist() == [48 * 64 - 1600, 1500, 100]
    assert pixels[10, 10] == 2


# -- what annotations may not say --------------------------------------------------------------------------------


def bad(**changes):
    """An annotation of image 1 with other fields; None takes one away."""
    fields = annotation(17, 1) | changes
    return {name: value for name, value in fields.items() if value is not None}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (bad(image_id=9), ["annotation 17", "image 9", "not among its images"]),
        (bad(image_id=None), ["annotation 17", "image None"]),
        (bad(category_id=4), ["annotation 17", "category 4"]),
        (bad(bbox=None), ["annotation 17", "bbox"]),
        (bad(bbox=[1, 2, 3]), ["annotation 17", "[1, 2, 3]"]),
        (bad(bbox=[1, 2, 3, float("nan")]), ["annotation 17", "bbox"]),
        (bad(segmentation=None), ["annotation 17", "no segmentation"]),
        (bad(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), ["annotation 17", "polygon"]),
        (bad(segmentation=[["a", 2, 3, 4, 5, 6]]), ["annotation 17", "polygon"]),
        (bad(segmentation=rle(np.ones((20, 30), bool))), ["annotation 17", "[20, 30]", "[48, 64]"]),
        (bad(segmentation={"size": [48, 64], "counts": [5, 5]}), ["annotation 17", "run lengths"]),
        (bad(segmentation={"size": 48, "counts": [5, 5]}), ["annotation 17", "its mask is of 48"]),
        (bad(segmentation={"size": [48, 64], "counts": "54"}), ["annotation 17", "run lengths"]),
        (bad(segmentation={"size": [48, 64], "counts": "\u00ff"}), ["annotation 17", "run lengths"]),
        (bad(segmentation={"size": [48, 64], "counts": [1.5, 3070.5]}), ["annotation 17", "run lengths"]),
        (
            bad(segmentation={"size": [48, 64], "counts": "0PP4PPO"}),
            ["annotation 17", "run lengths"],
        ),  # one below 0
        (bad(segmentation=[[0, 0, 1e30, 0, 5, 5]]), ["annotation 17", "1e+30", "far outside"]),  # edges of 1e30 px
        (bad(segmentation=[[0, 0, 10**400, 0, 5, 5]]), ["annotation 17", "polygon"]),
        (bad(bbox=[1, 2, 10**400, 4]), ["annotation 17", "bbox"]),
        (bad(iscrowd="0"), ["annotation 17", "iscrowd is '0'"]),
        (bad(iscrowd=2), ["annotation 17", "iscrowd is 2"]),
        (bad(id=2**64), ["annotations[1]", "64 bits"]),
        (bad(id="x"), ["annotations[1]", "'x'"]),
        (bad(id=1), ["annotations[1]", "1 is there twice"]),
    ],
)
def test_what_cannot_be_meant_is_refused_with_file_and_id(tmp_path, wrong, words):
    file = write_coco(tmp_path, coco_data(SIZES, [annotation(1, 2), wrong]))
    with pytest.raises(DataError) as error:
        source_of(spec(file), "masks").train()
    for word in [str(file), *words]:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_whole_numbers_may_be_written_with_a_point(tmp_path):
    data = coco_data(SIZES, [annotation(1, 1), annotation(2, 2, 90)])
    wanted = read_coco(write_coco(tmp_path / "whole", data, pictures=False), masks=True)
    for row in (*data["images"], *data["categories"], *data["annotations"]):
        row |= {field: float(value) for field, value in row.items() if isinstance(value, int)}
    file = write_coco(tmp_path / "pointed", data, pictures=False)
    assert '"width": 64.0' in file.read_text()
    found = read_coco(file, masks=True)
    assert repr(found) == repr(wanted)
    COCO(str(file))  # takes them as well
    data["images"][0]["width"] = 63.5
    with pytest.raises(DataError, match=r"image 1: its width is 63\.5; give its pixels"):
        read_coco(write_coco(tmp_path / "half", data, pictures=False), masks=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.pop("annotations"), ["no list of annotations"]),
        (lambda data: data.update(categories=[]), ["categories is empty"]),
        (lambda data: data["categories"][0].pop("name"), ["category 3", "no name"]),
        (lambda data: data["categories"][0].update(name="dog"), ["two categories called 'dog'"]),
        (lambda data: data["images"][0].pop("height"), ["image 1", "height"]),
        (lambda data: data["images"][0].pop("file_name"), ["image 1", "file_name"]),
        (lambda data: data["images"][0].update(width=10**12), ["image 1", "width"]),
        (lambda data: data["images"][0].update(id=2**63), ["images[0]", "64 bits"]),
        (lambda data: data["images"].append(dict(data["images"][0])), ["images[2]", "id 1 is there twice"]),
    ],
)
def test_a_file_that_is_not_whole_is_refused(tmp_path, change, words):
    data = coco_data(SIZES, [annotation(1, 1)])
    change(data)
    file = tmp_path / "some.json"
    file.write_text(json.dumps(data))
    with pytest.raises(DataError) as error:
        source_of(spec(file), "objects").train()
    for word in [str(file), *words]:
        assert word in str(error.value)
    file.write_text("[1, 2")
    with pytest.raises(DataError, match="is not JSON"):
        source_of(spec(file), "objects").train()


def test_a_folder_of_pictures_that_is_missing_is_named(tmp_path):
    some_coco(tmp_path)
    some_coco(tmp_path, "val")
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(
        DataError, match=r"train\.json: has no folder of pictures \(looked for .*train/.*train_images"
    ):
        source_of(spec(tmp_path), "objects").train()
    assert len(source_of(spec(tmp_path, train_images="elsewhere"), "objects").train()) == 6


def test_a_mark_before_the_text_is_none_of_it(tmp_path):
    file = some_coco(tmp_path)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    some_coco(tmp_path, "val")
    assert source_of(spec(tmp_path), "objects").classes == ("cat", "dog")


def test_what_is_of_no_area_or_no_polygon_is_left_out_and_told(tmp_path):
    annotations = [
        annotation(1, 1),
        annotation(2, 1, bbox=(5, 5, 0, 9)),
        annotation(3, 2, bbox=(70, 5, 9, 9)),
        annotation(4, 2, bbox=(-5, -5, 15, 15)),
        annotation(5, 2, segmentation=[[1, 1, 9, 9]]),
        annotation(6, 2, segmentation=[]),
        annotation(7, 2, segmentation=[[1, 1, 9, 9], *SQUARE]),
    ]
    file = write_coco(tmp_path, coco_data(SIZES, annotations))
    source = source_of(spec(file, val_fraction=0.5), "masks")
    lines = source.summary.warnings
    assert any("2 boxes without area" in line and "annotation 2 of image 1" in line for line in lines)
    assert any("2 objects without a polygon" in line and "annotation 5 of image 2" in line for line in lines)
    alone = write_coco(tmp_path / "alone", coco_data(SIZES, annotations[:2]))
    one = check_annotated(coco_annotations(spec(alone), "objects"), spec(alone)).findings[-1]
    assert one.path == str(alone)
    assert one.detail == "1 box without area or outside of its picture left out (annotation 2 of image 1)"
    found = source_of(spec(file), "objects", whole=True).test()[1][1]
    assert found["boxes"].tolist()[0] == [-5, -5, 10, 10]  # judged as it stands there
    assert len(found["boxes"]) == 4  # boxes need no polygons
    some_coco(tmp_path, "val")
    learned = source_of(spec(tmp_path), "objects").train()[1][1]["boxes"]  # on 64 × 48 pixels
    assert len(learned) == 4
    assert ((learned >= 0) & (learned <= torch.tensor([48, 64, 48, 64]))).all()
    assert len(source_of(spec(file), "masks", whole=True).test()[1][1]["boxes"]) == 2


@pytest.mark.parametrize(("crowded", "what"), [("train", "to learn from"), ("val", "to measure by")])
def test_a_part_of_crowds_alone_is_refused_before_anything_is_trained(tmp_path, crowded, what):
    for split in ("train", "val"):
        some_coco(tmp_path, split)
    file = tmp_path / "annotations" / f"instances_{crowded}.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"annotations": [one | {"iscrowd": 1} for one in data["annotations"]]}))
    source = source_of(spec(tmp_path), "objects")
    assert sum(source.summary.counts[crowded].values()) == 6
    with pytest.raises(DataError, match=f"instances_{crowded}.json: 6 images without any object {what}"):
        source.quick_check()
    assert source_of(spec(tmp_path), "pixels").quick_check() == ()


def test_pictures_that_are_missing_or_of_another_size_are_told_before_training(tmp_path):
    file = some_coco(tmp_path)
    (tmp_path / "train/2.png").unlink()
    noise(tmp_path / "train/4.png", (20, 20))
    source = source_of(spec(tmp_path, val_fraction=0.4), "objects")
    with pytest.raises(DataError, match=r"2 of 6 images.*skip_bad=2"):
        source.quick_check()
    words = source_of(spec(tmp_path, val_fraction=0.4, skip_bad=2), "objects").quick_check()
    assert any("4.png: has 20 × 20 pixels upright" in word and "image 4" in word for word in words)
    with pytest.raises(DataError, match="64 × 48"):
        source_of(spec(file), "objects", whole=True).test()[3]
    report = check_annotated(coco_annotations(spec(tmp_path), "masks"), spec(tmp_path))
    assert not report.ok
    assert [finding.problem for finding in report.findings] == ["unreadable", "annotation"]
    assert report.text == "2 classes, 6 images (train 6), 6 objects"


def test_pictures_that_no_annotations_name_are_told(tmp_path):
    for split in ("train", "val"):
        some_coco(tmp_path, split)
    noise(tmp_path / "val/more/extra.png", (40, 40))
    findings = check_annotated(coco_annotations(spec(tmp_path), "objects"), spec(tmp_path)).findings
    (found,) = (one for one in findings if one.problem == "left out")  # both parts have the same pictures
    assert found.path == str(tmp_path / "val")
    assert found.detail == "1 picture that no annotations name (more/extra.png)"


def test_a_picture_of_both_sides_is_told(tmp_path):
    some_coco(tmp_path)
    some_coco(tmp_path, "val", 3)
    for number in (1, 2):
        noise(tmp_path / f"val/{number}.png", SIZES[number - 1], 100 + number)
    report = check_annotated(coco_annotations(spec(tmp_path), "masks"), spec(tmp_path))
    assert report.ok
    (finding,) = report.findings
    assert (finding.problem, finding.path) == ("duplicate", str(tmp_path / "val/3.png"))
    assert finding.detail == f"the same as {tmp_path / 'train/3.png'}, in train and val"


def test_a_copy_among_what_is_held_out_is_told(tmp_path):
    some_coco(tmp_path)
    given = spec(tmp_path, val_fraction=0.4)
    trained, held = source_of(given, "objects").parts
    one, other = next((a, b) for a in trained.images for b in held.images if a.size == b.size)
    shutil.copy(one.place, other.place)
    (finding,) = check_annotated(coco_annotations(given, "objects"), given).findings
    assert {finding.path, finding.detail.split(",")[0].removeprefix("the same as ")} == {one.place, other.place}
    assert finding.detail.endswith(", one of them held out for validation")


def test_a_picture_that_is_named_twice_is_told(tmp_path):
    for split in ("train", "val"):
        file = some_coco(tmp_path, split)
        (tmp_path / split).rename(tmp_path / f"{split}_pictures")
        data = json.loads(file.read_text())
        for image in data["images"]:
            image["file_name"] = f"{split}_pictures/{image['file_name']}"
        if split == "train":
            data["images"].append(data["images"][1] | {"id": 70})
        else:
            data["images"][2]["file_name"] = "train_pictures/3.png"
        file.write_text(json.dumps(data))
    given = spec(tmp_path, train_images=".", val_images=".")
    report = check_annotated(coco_annotations(given, "objects"), given)
    found = {one.path: one.detail for one in report.findings}
    second, third = (str(tmp_path / f"train_pictures/{number}.png") for number in (2, 3))
    assert found[second] == f"named 2 times by {tmp_path / 'annotations/instances_train.json'} (images 2, 70)"
    assert found[third] == "there twice, in train and val"
    (warning,) = source_of(given, "objects").summary.warnings
    assert warning.startswith(f"1 validation image is trained on, too ({third})")


def test_names_with_backslashes_between_folders_are_found(tmp_path):
    file = some_coco(tmp_path)
    noise(tmp_path / "train/deep/er/2.png", SIZES[1], 2)
    data = json.loads(file.read_text())
    data["images"][1]["file_name"] = "deep\\er\\2.png"
    file.write_text(json.dumps(data))
    image = coco_annotations(spec(tmp_path), "objects").part("train").images[1]
    assert image.place == str(tmp_path / "train/deep/er/2.png")
    assert source_of(spec(tmp_path), "objects").quick_check() == ()
    for picture in data["images"]:  # the folder's own name in front
        picture["file_name"] = f"train\\{picture['file_name']}"
    file.write_text(json.dumps(data))
    assert source_of(spec(tmp_path), "objects").quick_check() == ()


def test_run_lengths_are_those_that_pycocotools_packs():
    for seed in range(20):
        rows = np.random.default_rng(seed).random((60, 70)) < 0.1 * (seed % 9 + 1)
        rows[20:] = False
        plain = rle(rows, compressed=False)["counts"]
        assert run_lengths(rle(rows)["counts"]) == plain


# -- parts, kinds and files ---------------------------------------------------------------------------------------


def test_parts_are_found_where_coco_and_others_put_them(tmp_path, monkeypatch):
    some_coco(tmp_path / "a", "train", 6)
    some_coco(tmp_path / "a", "val", 3)
    source = source_of(spec(tmp_path / "a"), "objects")
    assert source.summary.text == "2 classes, 9 images (train 6, val 3), 9 objects: cat 6, dog 3"
    monkeypatch.chdir(tmp_path)
    assert source_of(spec("a"), "objects").summary.text == source.summary.text  # from the folder above
    with pytest.raises(DataError, match="no annotated test images"):
        source.test()
    cut = source_of(spec(tmp_path / "a", val="cut", val_fraction=0.4), "objects")
    assert (len(cut.train()) + len(cut.val()), len(cut.test())) == (6, 3)
    assert {image.key for image in cut.parts.val.images} == {f"{n}.png" for n in range(1, 7)} - {
        image.key for image in cut.parts.train.images
    }
    data = tmp_path / "a" / "annotations"
    (data / "instances_train.json").rename(data / "instances_train2017.json")
    (tmp_path / "a/train").rename(tmp_path / "a/train2017")
    assert len(source_of(spec(tmp_path / "a"), "objects").train()) == 6
    (tmp_path / "b").mkdir()
    shutil.move(tmp_path / "a/train2017", tmp_path / "b/train")
    (data / "instances_train2017.json").rename(tmp_path / "b/train/_annotations.coco.json")
    assert len(source_of(spec(tmp_path / "b", val_fraction=0.4), "objects").train()) >= 1
    with pytest.raises(DataError, match=r"looked for annotations/instances_train2017\.json"):
        source_of(spec(tmp_path / "a"), "objects").train()
    with pytest.raises(DataError, match=r"mend data\.val_annotations"):
        source_of(spec(tmp_path / "b", val_annotations="nosuch.json"), "objects").train()
    alone = tmp_path / "b/train/_annotations.coco.json"
    with pytest.raises(DataError, match=r"data\.val_annotations: means nothing where data\.root is one file"):
        source_of(spec(alone, val_annotations="val.json"), "objects").train()


@pytest.mark.parametrize(
    ("file", "folder"), [("result.json", "images"), ("annotations/instances_val2017.json", "val2017")]
)
def test_file_names_may_begin_with_the_folder_that_they_lie_in(tmp_path, file, folder):
    data = coco_data(SIZES, [annotation(1, 1), annotation(2, 2)])
    for image in data["images"]:
        image["file_name"] = f"{folder}/{image['file_name']}"
        noise(tmp_path / image["file_name"], (image["height"], image["width"]))
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(json.dumps(data))
    source = source_of(spec(tmp_path / file, val_fraction=0.5), "objects")
    assert source.quick_check() == ()
    assert sorted(image.place for part in source.parts for image in part.images) == sorted(
        str(tmp_path / image["file_name"]) for image in data["images"]
    )


def test_a_path_tells_its_kind(tmp_path):
    file = some_coco(tmp_path)
    assert data_at(file) == {"data.kind": "coco", "data.root": str(file)}
    assert isinstance(spec_at(tmp_path), CocoSpec)
    source = source_of(spec_at(file).model_copy(update={"val_fraction": 0.4}), "objects", size=(48, 64))
    assert len(source.train()) + len(source.val()) == 6
    assert source.record.to_json()["counts"]["train"] == {"(images)": len(source.train())}


def test_datasets_travel_to_processes_that_start_afresh(tmp_path):
    some_coco(tmp_path)
    source = source_of(spec(tmp_path, val_fraction=0.4, photometric=True), "masks")
    for dataset in (source.train(), source.val()):
        copied = pickle.loads(pickle.dumps(dataset))
        assert torch.equal(copied[0][0], dataset[0][0])


def test_another_class_than_the_networks_is_refused(tmp_path):
    file = some_coco(tmp_path)
    with pytest.raises(DataError, match="class 'dog' is none of the network's 2"):
        source_of(spec(file), "objects", classes=("cat", "ant"), whole=True).test()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"resize": [2.0, 0.5]}, "resize"),
        ({"eval_size": [64, 48]}, "eval_size"),
        ({"shorter_sides": [4000]}, "shorter_sides"),
        ({"photometric": "x"}, "photometric"),
    ],
)
def test_fields_that_are_not_allowed(fields, words):
    with pytest.raises((SpecError, ValueError), match=words):
        CocoSpec(**fields).check((64, 64), channels=3, classes=2, target="objects")


def test_labels_cannot_be_had_of_annotations():
    with pytest.raises(ValueError, match="the task asks for label"):
        CocoSpec().check((64, 64), channels=3, classes=2, target="label")


def test_an_unreadable_picture_is_left_out_while_training(tmp_path):
    some_coco(tmp_path, count=6)
    some_coco(tmp_path, "val", 3)
    path = tmp_path / "train/4.png"
    path.write_bytes(path.read_bytes()[:2000])  # its header is fine
    recipe = tiny(train__batch_size=6).model_copy(update={"data": spec(tmp_path, skip_bad=1)})
    loaders = Loaders(recipe, source_of(recipe.data, "masks"))
    loaders.set_epoch(0)
    with pytest.warns(UserWarning, match=r"4\.png: .*left out \(1 of at most 1\)"):
        (groups,) = loaders.train
    assert sum(len(group.images) for group in groups) == 6
    recipe = recipe.model_copy(update={"data": spec(tmp_path)})
    with pytest.raises(DataError, match=r"4\.png"):
        list(Loaders(recipe, source_of(recipe.data, "masks")).train)


def test_a_picture_that_lies_on_its_side_is_turned_upright(tmp_path):
    file = write_coco(tmp_path, coco_data([(64, 48)], [annotation(1, 1)]), pictures=False)
    path, exif = noise(tmp_path / "train/1.png", (48, 64)), Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    source = source_of(spec(file), "objects", whole=True)
    assert source.annotations.trouble(source.test().images[0]) is None
    assert source.test()[0][0].shape == (3, 64, 48)
    data = json.loads(file.read_text())
    data["images"][0] |= {"height": 48, "width": 64}  # annotated as it lies
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match="48 × 64 pixels upright"):
        source_of(spec(file), "objects", whole=True).test()[0]


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_transparent_pictures_are_fed_too(tmp_path, channels):
    some_coco(tmp_path)
    fed = spec(tmp_path).preprocess((48, 64), channels).inside(multiple=16)
    source = source_of(spec(tmp_path, val_fraction=0.4), "masks", fed=fed)
    assert {len(data[0][0]) for data in (source.train(), source.val())} == {channels}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"eval_size": [4, 64]},
            r"data\.eval_size: \[4, 64\] px is too small for this grid; give at least 8 px a side",
        ),
        ({"shorter_sides": [16, 4]}, r"data\.shorter_sides: \[16, 4\] px is too small for this grid"),
    ],
)
def test_sides_that_no_token_fits_in_are_told_by_the_field_that_was_given(fields, words):
    recipe = dense({"kind": "detect", "classes": 10})
    assert recipe.override({"data": {"kind": "coco", "root": "photos"}}).preprocess.size == (32, 32)
    with pytest.raises(SpecError, match=words):
        recipe.override({"data": {"kind": "coco", "root": "photos", **fields}})
