"""Detection is trained like everything else: routed, in groups of sizes, with AP in every report."""

import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from dense_tiny import dense, dense_net, pyramid_grid, target
from train_tiny import tiny

from routespace.deploy.removal import removal_scores
from routespace.errors import DataError, SpecError
from routespace.grid.architecture import Architecture
from routespace.nn.task_net import TaskNet
from routespace.nn.weights import load_net
from routespace.recipes import load_recipe
from routespace.train.candidates import evaluate_candidates
from routespace.train.data.loaders import make_loaders
from routespace.train.data.skipping import grouped
from routespace.train.evaluate import evaluate
from routespace.train.memory import training_need
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import train_recipe
from routespace.train.step_loss import StepLoss
from routespace.train.tasks.detect_spec import DetectSpec
from routespace.train.tasks.kinds import task_of_head

DETECT = {"kind": "detect", "classes": 10, "width": 32}
FCOS = {"kind": "detect", "classes": 10, "width": 64, "detector": "fcos"}
INSTANCE = {"kind": "instance", "classes": 10, "width": 32, "proposals": 50, "sampled": 32}
SMALL = {"train__batch_size": 8, "data__train_size": 64, "data__val_size": 12, "train__epochs": 1}


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("task", [DETECT, FCOS, INSTANCE])
def test_ap_rises_above_that_of_a_fresh_network(task, tmp_path):
    recipe = dense(
        task,
        routing="static",
        budget__ratio=None,
        grid__image_size=48,
        data__train_size=64 if task is INSTANCE else 192,
        data__val_size=24,
        data__digit_px=[28, 44],
        train__batch_size=8,
        train__epochs=3,
    )
    lines: list[str] = []
    result = train_recipe(recipe, tmp_path / "run", tell=lines.append)
    fresh = train_recipe(recipe.override({"train.epochs": 0}), tmp_path / "fresh")
    metric = "mask_ap" if task is INSTANCE else "box_ap"
    assert result.metrics["metric"] == metric
    for name in {metric, "box_ap"}:
        assert result.metrics[name] > fresh.metrics[name] + 0.02
        assert result.metrics[f"{name}50"] > result.metrics[f"{name}75"] >= 0
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["box_ap50"] > 0.05
    assert last[f"train_{metric}"] is None
    assert any(line.startswith("task: the grid has no maps at rates 16, 32") for line in lines)
    found = evaluate(load_net(tmp_path / "run" / "net"), make_loaders(recipe).val)
    assert found[metric] == pytest.approx(result.metrics[metric], abs=1e-3)


def test_gates_of_a_map_are_taught_and_calibrated_under_a_detector(tmp_path):
    recipe = dense(
        DETECT,
        routing="depth",
        gates={"source": "map", "opening": "share", "teach": "dense", "noise": 0.0},
        budget={"ratio": 0.6, "open_frac": 0.5, "settle_frac": 0.5},
        train__execution="packed",
        **SMALL | {"train__epochs": 2},
    )
    result = train_recipe(recipe, tmp_path / "run")
    assert result.metrics["counted_macs"] == pytest.approx(result.metrics["target_macs"], rel=0.1)
    assert result.metrics["counted_macs"] < 0.8 * result.metrics["base_macs"]
    assert not result.net.architecture.is_static


def test_a_step_of_several_sizes_is_the_mean_over_its_images():
    recipe = dense(DETECT, routing="static", budget__ratio=None)
    net = dense_net("detect", classes=10, width=32).eval()
    task = recipe.task.make(recipe.grid)
    sizes = (32, 32), (64, 40), (32, 32), (40, 64)
    items = [
        (torch.randn(3, *size), target(size, [[2, 2, 20 + 4 * n, 30]] * (n % 3), [n] * (n % 3)))
        for n, size in enumerate(sizes)
    ]
    step = StepLoss(net, task, None, recipe.train)
    whole = step(grouped(items), 0.5)
    alone = [step(grouped([item]), 0.5).losses.loss for item in items]
    torch.testing.assert_close(whole.losses.loss, sum(alone) / 4, rtol=1e-4, atol=1e-5)
    assert whole.losses.score.isnan()
    assert len(whole.outputs) == 3
    assert not any(part.requires_grad for one in whole.outputs for part in one.raw)


@pytest.mark.parametrize("task", [FCOS, INSTANCE])
def test_a_validation_loss_does_not_depend_on_the_batches(task):
    recipe = dense(task, **SMALL)
    net = dense_net(**task)
    whole = evaluate(net, make_loaders(recipe).val)
    single = evaluate(net, make_loaders(recipe.override({"train.batch_size": 1})).val)
    assert whole["loss"] == pytest.approx(single["loss"], rel=1e-5)


@pytest.mark.slow
def test_parts_of_a_supernet_are_measured_as_each_alone():
    net = dense_net("instance", classes=10, width=16, proposals=10, sampled=8, score_threshold=0.0)
    grid = net.architecture.grid
    parts = [Architecture.staircase(grid, split) for split in ([1, 1], [0, 2], [2, 0])]
    loader = make_loaders(dense(INSTANCE, **SMALL)).val
    together = evaluate_candidates(net, parts, loader)
    for part, found in zip(parts, together, strict=True):
        alone = evaluate(net.restrict(part), loader)
        assert {name for name in found if "_ap" in name} >= {"mask_ap", "box_ap", "box_ap50"}
        for name in ("mask_ap", "box_ap", "loss", "counted_macs"):
            assert found[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-4)
    scores = removal_scores(net, loader, base=net.architecture.opened())
    assert all(score > 0 for name, score in scores.items() if name.endswith("transformer"))


def test_a_detector_starts_from_a_classifiers_backbone(tmp_path):
    classifier = train_recipe(tiny(train__epochs=0, data__val_size=4), tmp_path / "classifier")
    lines: list[str] = []
    recipe = dense(DETECT, **SMALL | {"train__epochs": 0, "train__weights": str(classifier.folder)})
    found = train_recipe(recipe, tmp_path / "run", tell=lines.append).net.state_dict()
    given = classifier.net.state_dict()
    kept = [name for name in given if name.startswith(("backbone.stem", "backbone.edges"))]
    assert all(torch.equal(found[name], given[name]) for name in kept)
    assert len(kept) > 50
    assert any(line.endswith("new: gates, outputs (rate 4), head") for line in lines), lines


def two_processes(recipe, folder) -> dict:
    """The result of a training by two processes, in `folder`/two."""
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "routespace.cli", "train", str(folder / "recipe.yaml"), "--out", str(folder / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((folder / "two" / "result.json").read_text())
    assert result["processes"] == 2
    assert result["images"] == recipe.data.val_size
    return result


@pytest.mark.slow
def test_two_processes_train_and_measure_like_one(tmp_path):
    """Half of each step's images on each; of nine validation images one has five and the other four."""
    recipe = dense(DETECT, routing="static", budget__ratio=None, **SMALL | {"data__val_size": 9})
    one = train_recipe(recipe, tmp_path / "one")
    result = two_processes(recipe, tmp_path)
    two = load_net(tmp_path / "two" / "net")
    for (name, a), b in zip(one.net.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0.05, msg=name)
    again = evaluate(two, make_loaders(recipe).val)
    for name in ("box_ap", "box_ap50", "box_ap_s", "loss"):
        assert result[name] == pytest.approx(again[name], rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_two_processes_train_masks_under_gates(tmp_path):
    """Which proposals are learned from is drawn in each process; what is measured is of all images."""
    recipe = dense(INSTANCE, **SMALL | {"data__train_size": 32, "data__val_size": 5})
    result = two_processes(recipe, tmp_path)
    again = evaluate(load_net(tmp_path / "two" / "net"), make_loaders(recipe).val)
    for name in ("mask_ap", "box_ap", "loss"):
        assert result[name] == pytest.approx(again[name], rel=1e-4, abs=1e-4)


def test_pictures_without_any_object_cannot_be_evaluated_with():
    net = dense_net("detect", classes=4, width=32)
    batch = torch.randn(1, 3, 32, 32), [target((32, 32), [], [])]
    with pytest.raises(DataError, match="no held-out image has anything to measure box_ap by"):
        evaluate(net, [batch])


def test_memory_counts_the_loss_too():
    recipe = dense(DETECT)
    few = training_need(recipe.architecture(), recipe.train, task=recipe.task.make(recipe.grid))
    many = recipe.task.model_copy(update={"classes": 80}).make(recipe.grid)
    more = training_need(recipe.architecture(), recipe.train, task=many)
    anchors, again = 9 * (16 + 4 + 1), 70 * 4  # of a 32-pixel image; bytes of the classes that are more
    assert more.per_image - few.per_image > 3 * anchors * again  # logits, their targets, their loss


def test_a_networks_task_is_read_from_its_head(tmp_path):
    net: TaskNet = dense_net("detect", classes=4, width=64, detector="fcos", nms_threshold=0.4)
    task = task_of_head(net.head, net.spec)
    assert task.name == "detect"
    assert task.metric.name == "box_ap"
    assert task.head(net.spec).settings() == net.head.settings()


def test_recipes_keep_what_a_task_is_told():
    recipe = dense(FCOS)
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again == recipe
    assert again.hash == recipe.hash
    assert again.task.nms_threshold is None
    assert recipe.num_classes == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid__outputs": "coarsest"}, r"grid\.outputs: task 'detect' reads the maps of all rates; set it to"),
        ({"grid__num_classes": 10}, r"grid\.num_classes: 10 is of a classifier, and task 'detect' has none"),
        ({"task__detector": "ssd"}, r"task\..*detector: 'ssd' is not allowed; give 'retinanet' or 'fcos'"),
        ({"task__classes": 7}, r"task\.classes"),
        ({"train__teacher": "timm:resnet18"}, r"train\.teacher: .*task 'detect' knows no soft labels"),
        ({"train__label_smoothing": 0.1}, r"train\.label_smoothing: the losses of task 'detect' have none"),
    ],
)
def test_recipes_that_do_not_fit_are_one_line(changes, message):
    with pytest.raises(SpecError, match=message):
        dense(DETECT, **changes)


def test_another_detector_has_its_own_anchors_or_none():
    """FCOS refuses anchors, and a recipe of RetinaNet may have some, which nobody could take out of it."""
    retinanet = load_recipe("digits_detect")
    fcos = retinanet.override({"task.detector": "fcos", "task.width": 64})
    assert fcos.task == DetectSpec(classes=10, width=64, convs=1, detector="fcos")
    assert fcos.override({"task.detector": "retinanet", "task.anchor_scale": 2}).task.anchor_scale == 2
    with pytest.raises(SpecError, match="anchor_scale: fcos has no anchors; leave it out"):
        retinanet.override({"task.detector": "fcos", "task.anchor_scale": 2})
    assert retinanet.override({"task.detector": "retinanet"}) == retinanet


def test_while_training_what_teaches_nothing_stays_behind_and_the_rest_moves_in_one_piece():
    task = DetectSpec(classes=3).make(pyramid_grid().spec)
    known = target((32, 32), [[1, 1, 9, 9], [2, 2, 20, 20], [5, 5, 5, 9]], [0, 1, 2])
    known["crowd"] = torch.tensor([False, True, False])
    batch = torch.zeros(2, 3, 32, 32), [known, target((32, 32), [], [])]
    for device in map(torch.device, ("cpu", "meta")):
        images, (first, second) = task.prepare(batch, device, training=True)
        assert images.device == first["boxes"].device == second["labels"].device == device
        assert (first["boxes"].shape, second["boxes"].shape) == ((1, 4), (0, 4))
        assert first["size"].device == torch.device("cpu")
        _, (first, _) = task.prepare(batch, device, training=False)
        assert (first["boxes"].shape, first["crowd"].shape) == ((3, 4), (3,))
