"""What evaluation tells of each class, against scikit-learn and pycocotools; and classes that are weighed."""

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools.cocoeval import COCOeval
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight
from test_train_coco_meter import CLASSES, judged, output, scene, with_masks
from torch.nn import functional as F
from train_photos import photo_recipe, photos
from train_tiny import tiny

from routespace.errors import BundleError, SpecError
from routespace.train.balance import balanced
from routespace.train.data.source import make_source
from routespace.train.recipe.parts import TrainSpec
from routespace.train.recipe.targets import IGNORE
from routespace.train.run import train_recipe
from routespace.train.run_folder import RunFolder
from routespace.train.tasks.base import Metric
from routespace.train.tasks.by_class import most_taken_for
from routespace.train.tasks.classify import Classify
from routespace.train.tasks.coco_meter import CocoMeter
from routespace.train.tasks.semantic import Semantic

CPU = torch.device("cpu")


def answers(classes, count, seed=0):
    """Labels, of all classes but the last, and logits that are often right."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes - 1, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator) + 1.5 * F.one_hot(labels, classes)
    return labels, logits


def metered(meter, labels, logits):
    for part in range(0, len(labels), 7):
        meter.update(logits[part : part + 7], labels[part : part + 7])
    return meter


@pytest.mark.parametrize("classes", [3, 8])
def test_classes_of_images_are_scikit_learns(classes):
    labels, logits = answers(classes, 100)
    meter = metered(Classify(classes).meter(CPU), labels, logits)
    found, by_class, named = meter.compute(), meter.by_class(), logits.argmax(1)
    wanted = metrics.confusion_matrix(labels, named, labels=range(classes))
    counts = np.zeros_like(wanted)
    for (label, answer), count in by_class.confusion.items():
        counts[label, answer] = count
    assert (counts == wanted).all()
    there = labels.unique().tolist()
    assert found["balanced_accuracy"] == pytest.approx(
        metrics.recall_score(labels, named, labels=there, average="macro")
    )
    recall, precision = (
        score(labels, named, labels=range(classes), average=None, zero_division=np.nan)
        for score in (metrics.recall_score, metrics.precision_score)
    )
    for label, row in enumerate(by_class.rows):
        assert row.get("accuracy", np.nan) == pytest.approx(recall[label], nan_ok=True)
        assert row.get("precision", np.nan) == pytest.approx(precision[label], nan_ok=True)
        assert row.get("images", 0) == wanted[label].sum()
    if classes > 5:
        top = metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(classes))
        assert found["top5_accuracy"] == pytest.approx(top)
    else:
        assert "top5_accuracy" not in found


def test_the_class_that_most_were_taken_for():
    assert most_taken_for({(0, 0): 9, (0, 1): 2, (0, 2): 3, (1, 1): 4, (2, 1): 1, (2, 0): 1}) == {0: 2, 2: 0}
    meter = metered(Classify(3).meter(CPU), *answers(3, 30))
    named = meter.by_class().named(("ant", "bee", "cat"))
    assert named["ant"]["taken_for"] in ("bee", "cat")
    assert set(named["cat"]) <= {"precision"}, "no image was of it"
    told = meter.by_class().named_confusion(("ant", "bee", "cat"))
    assert sum(sum(row.values()) for row in told.values()) == 30


def test_a_pass_without_images_has_nothing_of_any_class():
    meter = Classify(3).meter(CPU)
    assert meter.by_class().rows == ({}, {}, {})
    assert "balanced_accuracy" not in meter.compute()


def test_classes_of_pixels_are_scikit_learns():
    classes, generator = 4, torch.Generator().manual_seed(1)
    wanted = torch.randint(classes - 1, (3, 12, 16), generator=generator)
    wanted[0, :4] = IGNORE
    logits = torch.randn(3, classes, 3, 4, generator=generator)
    meter = Semantic(classes).meter(CPU)
    meter.update(logits, wanted)
    named = F.interpolate(logits, (12, 16), mode="bilinear").argmax(1)
    known = wanted != IGNORE
    iou = metrics.jaccard_score(wanted[known], named[known], labels=range(classes), average=None, zero_division=0)
    found = meter.by_class()
    assert [row["iou"] for row in found.rows] == pytest.approx(iou)
    assert [row.get("pixels", 0) for row in found.rows] == [int((wanted == n).sum()) for n in range(classes)]
    assert meter.compute()["miou"] == pytest.approx(np.mean(iou))
    wrong = metrics.confusion_matrix(wanted[known], named[known], labels=range(classes))
    np.fill_diagonal(wrong, 0)
    assert found.taken_for == {n: int(row.argmax()) for n, row in enumerate(wrong) if row.any()}


def test_ap_of_each_class_is_pycocotools_with_that_class_alone():
    pictures, meter = scene(25), CocoMeter(Metric("box_ap", "%", "maximise"), CLASSES + 1)
    for target, found in pictures:
        meter.update(output([found]), [target])
    rows = meter.by_class().rows
    assert rows == (meter.compute(), meter.by_class().rows)[1], "asked before and after"
    coco, told = judged(pictures)
    for label in range(CLASSES):
        judge = COCOeval(coco, coco.loadRes(told), "bbox")
        judge.params.catIds = [label]
        with contextlib.redirect_stdout(io.StringIO()):
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        row = rows[label]
        assert [row["box_ap"], row["box_ap50"], row["box_ap75"]] == pytest.approx(list(judge.stats[:3]), abs=1e-5)
        known = [target["labels"][~target["crowd"]] for target, _ in pictures]
        assert row["objects"] == sum(int((labels == label).sum()) for labels in known)
    assert rows[CLASSES] == {}, "no object was of it"


def test_ap_of_masks_and_boxes_of_each_class():
    meter = CocoMeter(Metric("mask_ap", "%", "maximise"), CLASSES)
    for target, found in map(with_masks, scene(12)):
        meter.update(output([found]), [target])
    found, rows = meter.compute(), meter.by_class().rows
    for name in ("box_ap", "mask_ap", "mask_ap75"):
        assert np.mean([row[name] for row in rows]) == pytest.approx(found[name], abs=1e-6)


@pytest.mark.parametrize("mixed", [False, True])
def test_losses_weigh_classes_and_measures_do_not(mixed):
    labels, logits = answers(4, 12)
    weights = [1.0, 2.0, 0.5, 3.0]
    task = Classify(4, TrainSpec(label_smoothing=0.1), class_weights=weights)
    targets = torch.softmax(torch.randn(12, 4), 1) if mixed else labels
    given = torch.tensor(weights)
    if mixed:
        each = -(F.log_softmax(logits, 1) * targets * given).sum(1)
        wanted = each.mean()
    else:
        smooth = 0.9 * F.one_hot(labels, 4) + 0.1 / 4
        wanted = -(F.log_softmax(logits, 1) * smooth * given).sum() / given[labels].sum()
    assert task.loss(logits, targets) == pytest.approx(float(wanted), abs=1e-5)
    plain = metered(Classify(4).meter(CPU), labels, logits).compute()
    assert metered(task.meter(CPU), labels, logits).compute() == plain


def unequal(folder):
    """Photographs of three classes: 12 ants, 12 cats, and 3 dogs."""
    photos(folder, count=12)
    for path in sorted((folder / "train" / "dog").rglob("*.png"))[3:]:
        path.unlink()
    return folder


def test_balanced_weights_are_scikit_learns_and_stay_with_the_run(tmp_path):
    folder = unequal(tmp_path / "photos")
    recipe = photo_recipe(folder, task__class_weights="balanced", train__epochs=1)
    source = make_source(recipe)
    labels = [label for _, label in source.train().items]
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    weighed = balanced(recipe, source)
    assert weighed.task.class_weights == pytest.approx(wanted, rel=1e-3)
    assert balanced(weighed, source) == weighed
    train_recipe(recipe, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert run.read_recipe().task.class_weights == weighed.task.class_weights
    train_recipe(recipe, tmp_path / "run", resume=True)
    with pytest.raises(BundleError, match="class_weights"):
        train_recipe(recipe.override({"task.class_weights": None}), tmp_path / "run", resume=True)


def test_weights_in_recipes():
    recipe = tiny()
    assert recipe.to_data()["task"] == "classify"
    pooled = recipe.override({"task.pool": "all", "task.class_weights": [1.0] * 10})
    assert pooled.task.class_weights == (1.0,) * 10
    assert recipe.override({"task.class_weights": None}).hash == recipe.hash
    with pytest.raises(SpecError, match=r"task\.class_weights: 3 numbers for 10 classes; .* or balanced"):
        recipe.override({"task.class_weights": [1, 2, 3]})
    for bad in ("equal", [0.0] * 10, [-1.0] * 10):
        with pytest.raises(SpecError, match="class_weights"):
            recipe.override({"task.class_weights": bad})
