"""Trainings on annotated pictures: from a folder to a run, evaluated on other pictures, and resumed."""

import json
import os
import signal

import pytest
import torch
from train_annotated import annotation, coco_data, some_coco, write_coco
from train_tiny import tiny

from routespace.errors import DataError, SpecError
from routespace.nn.task_net import TaskNet
from routespace.preprocess import load_preprocess
from routespace.train.data.annotated.written import write_scenes
from routespace.train.data.evaluation import evaluation_loaders
from routespace.train.data.source import count_classes
from routespace.train.evaluate import evaluate
from routespace.train.fine_tune import fit_to
from routespace.train.run import train_recipe
from routespace.train.start import Start, make_net
from routespace.train.stopping import TrainingStoppedError

PYRAMID = {"grid.outputs": "pyramid", "grid.num_classes": 0, "train.batch_size": 2, "train.epochs": 1}
PYRAMID |= {"routing": "static", "budget.ratio": None}
DETECT = PYRAMID | {"task": {"kind": "detect", "classes": 2, "width": 16}}
SEMANTIC = PYRAMID | {"task": {"kind": "semantic", "classes": 11, "channels": 64}}


def detecting(root, **changes):
    data = {"kind": "coco", "root": str(root), "val_fraction": 0.4, "shorter_sides": [24, 32]}
    return tiny().override(DETECT | {"grid.image_size": [32, 48], "data": data} | changes)


def test_boxes_are_trained_and_evaluated_on_other_files(tmp_path):
    some_coco(tmp_path / "a", count=9)
    lines = []
    result = train_recipe(detecting(tmp_path / "a"), tmp_path / "run", tell=lines.append)
    assert any(line.startswith("2 classes, 9 images (train ") and " objects: " in line for line in lines)
    data = json.loads((tmp_path / "run/data.json").read_text())
    assert sum(counts["(images)"] for counts in data["counts"].values()) == 9
    preprocess, classes = load_preprocess(tmp_path / "run")
    assert (preprocess.fit, preprocess.multiple, preprocess.size) == ("inside", 8, (32, 48))
    assert classes == ("cat", "dog")
    names = ((5, "dog"), (8, "cat"))  # other numbers in another order: found by name
    other = write_coco(tmp_path / "b", coco_data([(64, 96)], [annotation(1, 1, 8), annotation(2, 1, 5)], names))
    loaders = evaluation_loaders(
        detecting(tmp_path / "a"), result.net.spec, preprocess=preprocess, classes=classes, data=other
    )
    (group,) = loaders.test
    assert group.targets[0]["labels"].tolist() == [0, 1]
    assert group.images.shape == (1, 3, 32, 48)
    assert 0 <= evaluate(result.net, loaders.test)["box_ap"] <= 1
    wrong = write_coco(tmp_path / "c", coco_data([(64, 96)], [annotation(1, 1, 1)], ((1, "bird"),)))
    with pytest.raises(DataError, match="class 'bird' is none of the network's 2"):
        _ = evaluation_loaders(
            detecting(tmp_path / "a"), result.net.spec, preprocess=preprocess, classes=classes, data=wrong
        ).test


def test_the_wrong_number_of_classes_is_one_line(tmp_path):
    some_coco(tmp_path)
    recipe = detecting(tmp_path, **{"task.classes": 3})
    assert count_classes(recipe) == 2
    with pytest.raises(
        DataError, match=r"task\.classes: 3, but .* has 2 classes \(cat, dog\); set task\.classes=2"
    ):
        train_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_that_is_fine_tuned_takes_the_classes_of_the_data(tmp_path):
    some_coco(tmp_path)
    net = train_recipe(detecting(tmp_path, **{"train.epochs": 0, "train.batch_size": 2}), tmp_path / "run").net
    recipe = detecting(tmp_path, **{"task.classes": 5})
    fitted = fit_to(recipe, net, asked=(), classes=count_classes(recipe))
    assert (fitted.recipe.num_classes, fitted.recipe.grid.num_classes) == (2, 0)
    assert fitted.lines == ("task.classes: 2, as many as the data has",)
    lines = []
    run = train_recipe(
        recipe.override({"train.epochs": 0}), tmp_path / "more", init=net, asked=(), tell=lines.append
    )
    assert "task.classes: 2, as many as the data has" in lines
    assert torch.equal(*(next(iter(one.head.parameters())) for one in (run.net, net)))
    assert not any(line.startswith("head: new") for line in lines)
    other = recipe.override({"task.classes": 3})
    make_net(Start.of(other, net), other.task.make(other.grid, other.train), net, tell=lines.append)
    assert lines[-1] == "head: new, for 3 classes; all but its head is kept of the given network"
    classifier = TaskNet.classifier(tiny().architecture())
    with pytest.raises(SpecError, match="task: 'detect' reads pyramid maps, and the given network gives coarsest"):
        fit_to(recipe, classifier, asked=())


def test_pixels_are_trained_and_evaluated_in_the_size_of_the_pictures(tmp_path):
    few = {"data.train_size": 8, "data.val_size": 3, "data.test_size": 3, "grid.image_size": [48, 64]}
    write_scenes(tiny().override(few), "pixels", tmp_path / "data")
    data = {"kind": "segmentation", "root": str(tmp_path / "data"), "photometric": True, "eval_size": [24, 64]}
    recipe = tiny().override(SEMANTIC | {"grid.image_size": 24, "data": data})
    run = train_recipe(recipe, tmp_path / "run")
    assert 0 <= run.metrics["miou"] <= 1
    loaders = evaluation_loaders(recipe, run.net.spec)
    for group, count in zip(loaders.test, (2, 1), strict=True):
        assert group.images.shape == (count, 3, 24, 32)
        assert group.targets.shape == (count, 48, 64)


def test_a_training_on_groups_of_sizes_is_resumed_exactly(tmp_path):
    some_coco(tmp_path / "data", count=9)
    some_coco(tmp_path / "data", "val", 3)
    recipe = detecting(tmp_path / "data", **{"routing": "both", "data.photometric": True})

    def stop(progress):
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = train_recipe(recipe, tmp_path / "whole").net.state_dict()
    with pytest.raises(TrainingStoppedError):
        train_recipe(recipe, tmp_path / "run", progress=stop)
    resumed = train_recipe(recipe, tmp_path / "run", resume=True).net.state_dict()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
