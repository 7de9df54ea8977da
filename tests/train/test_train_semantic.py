"""Semantic segmentation: what its loss and meter say, and that it trains by the loop that all tasks share."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from train_pixels import pixels
from train_tiny import tiny

from routespace.errors import RoutespaceError, SpecError
from routespace.grid.sample import sample_static
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet
from routespace.train.candidates import evaluate_candidates
from routespace.train.data.loaders import make_loaders
from routespace.train.data.skipping import Group
from routespace.train.evaluate import evaluate
from routespace.train.run import train_recipe
from routespace.train.step_loss import StepLoss
from routespace.train.tasks import semantic
from routespace.train.tasks.semantic import Semantic, full_size, rows_at_full_size

CPU = torch.device("cpu")
K = 4
HELD_OPEN = {"gates__teach": "dense", "budget__open_frac": 0.5}


def network(recipe):
    torch.manual_seed(0)
    head = recipe.task.make(recipe.grid).head(recipe.grid)
    return TaskNet(RouteNet(recipe.architecture(), recipe.gates), head)


def by_hand(pairs):
    """mIoU, share of right pixels and mean loss over (logits (K, h, w), target (H, W)), counted with sets."""
    right, loss, classes = 0, 0.0, {c: [0, 0] for c in range(K)}
    total = 0
    for logits, target in pairs:
        full = F.interpolate(logits[None], target.shape, mode="bilinear", align_corners=False)[0]
        answers, known = full.argmax(0).numpy(), target.numpy() != 255
        truth = target.numpy()
        loss -= full.log_softmax(0).gather(0, torch.where(target == 255, 0, target)[None])[0][target != 255].sum()
        right, total = right + (answers[known] == truth[known]).sum(), total + known.sum()
        for c in range(K):
            mine, theirs = (answers == c) & known, (truth == c) & known
            classes[c][0] += (mine & theirs).sum()
            classes[c][1] += (mine | theirs).sum()
    shares = [inside / union for inside, union in classes.values() if union]
    return {"miou": np.mean(shares), "pixel_accuracy": right / total, "loss": float(loss) / total}


def examples(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for size in sizes:
        logits = torch.randn(K, 4, 6, generator=generator) - torch.tensor([0.0, 0, 0, 99])[:, None, None]
        target = torch.randint(K - 1, size, generator=generator)  # the last class occurs nowhere
        pairs.append((logits, torch.where(torch.rand(size, generator=generator) < 0.2, 255, target)))
    return pairs


def test_pixels_are_counted_at_the_targets_size_whatever_it_is():
    pairs = examples([(16, 24), (33, 50), (7, 9)])
    meter = Semantic(K).meter(CPU)
    meter.update(torch.stack([logits for logits, _ in pairs[:2]]), [target for _, target in pairs[:2]])
    meter.update(pairs[2][0][None], pairs[2][1][None])
    assert meter.compute() == pytest.approx(by_hand(pairs), rel=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "channels last"])
def test_rows_are_those_of_the_whole_map(layout):
    for (h, w), size in (
        ((4, 6), (16, 24)),
        ((5, 7), (33, 50)),
        ((7, 9), (3, 4)),
        ((1, 1), (5, 3)),
        ((6, 6), (6, 6)),
    ):
        logits = torch.randn(2, K, h, w).contiguous(memory_format=layout)
        for step in (1, 2, size[0]):
            tops = range(0, size[0], step)
            found = [rows_at_full_size(logits, size, range(top, min(top + step, size[0]))) for top in tops]
            torch.testing.assert_close(torch.cat(found, 2), full_size(logits, size), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("numbers", [1, 150, 700, 2000, 10**6])
def test_large_pictures_are_counted_in_parts_as_the_whole_is(numbers, monkeypatch):
    same, others = examples([(16, 24)] * 3), examples([(16, 24), (33, 50), (70, 9)], seed=1)
    monkeypatch.setattr(semantic, "AT_ONCE", numbers)  # of K × 16 × 24 = 1536 each of the same
    meter = Semantic(K).meter(CPU)
    meter.update(*(torch.stack(part) for part in zip(*same, strict=True)))
    meter.update(torch.stack([logits for logits, _ in others]), [target for _, target in others])
    assert meter.compute() == pytest.approx(by_hand(same + others), rel=1e-5)


def test_measuring_takes_no_more_memory_than_its_parts():
    sizes = list[int]()

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(
                t.numel() for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor) and not t._is_view()
            )
            return out

    meter, target = Semantic(40).meter(CPU), torch.zeros(500, 600, dtype=torch.long)
    with Watching():
        meter.update(torch.randn(1, 40, 125, 150), [target])
    assert 40 * target.numel() > 2 * semantic.AT_ONCE >= 2 * max(sizes) > 0
    assert meter.compute()["loss"] > 0


def test_the_loss_is_the_mean_over_pixels_that_have_a_class():
    pairs = examples([(16, 24), (16, 24)])
    outputs, targets = (torch.stack(part) for part in zip(*pairs, strict=True))
    task = Semantic(K)
    assert float(task.loss(outputs, targets)) == pytest.approx(by_hand(pairs)["loss"], rel=1e-5)
    assert float(task.loss(outputs, list(targets))) == pytest.approx(by_hand(pairs)["loss"], rel=1e-5)
    outputs.requires_grad_()
    task.loss(outputs, torch.full_like(targets, 255)).backward()
    assert torch.equal(outputs.grad, torch.zeros_like(outputs))


def test_classes_weigh_what_the_recipe_says():
    logits, targets = torch.randn(2, K, 4, 4), torch.randint(K, (2, 4, 4))
    targets[0, 0] = 255
    weights = [0.1, 1.0, 2.0, 1.0]
    expected = F.cross_entropy(logits, targets, weight=torch.tensor(weights), ignore_index=255)
    torch.testing.assert_close(Semantic(K, class_weights=weights).loss(logits, targets), expected)
    with pytest.raises(SpecError, match="class_weights: 2 numbers for 11 classes"):
        pixels().override({"task.class_weights": [0.1, 1.0]})


def test_nothing_known_is_nothing_found():
    meter = Semantic(K).meter(CPU)
    meter.update(torch.randn(1, K, 2, 2), torch.full((1, 8, 8), 255))
    assert meter.compute() == {"loss": 0.0}  # the metric is left out where there is nothing to measure it by


def test_the_score_of_a_batch_is_its_mean_iou_where_the_logits_are():
    outputs = torch.eye(K)[torch.arange(8).view(1, 2, 4) % K].movedim(-1, 1)
    targets = outputs.argmax(1).repeat_interleave(4, 1).repeat_interleave(4, 2)
    task = Semantic(K)
    assert task.score(outputs, targets) == 1
    assert task.score(outputs, list(targets)) == 1
    targets[targets == 0] = 1  # class 0 has a union and nothing in common, class 1 shares half of its
    assert task.score(outputs, targets) == pytest.approx((0 + 0.5 + 1 + 1) / 4)


def test_soft_labels_are_those_of_each_place():
    ours, theirs = torch.randn(2, K, 3, 5), torch.randn(2, K, 3, 5)
    task = Semantic(K)
    places = [(2 * x.log_softmax(1)).movedim(1, -1).reshape(-1, K) for x in (ours / 3, theirs / 3)]
    flat = F.kl_div(places[0] / 2, places[1] / 2, reduction="batchmean", log_target=True) * 9
    torch.testing.assert_close(task.soft_loss(ours, theirs, 3.0), flat)
    assert task.soft_loss(ours, ours, 3.0) == pytest.approx(0, abs=1e-6)
    assert math.isfinite(task.soft_loss(ours, torch.randn(2, K, 6, 10), 3.0))


def test_images_of_several_sizes_are_one_step():
    recipe = pixels()
    task = recipe.task.make(recipe.grid, recipe.train)
    step = StepLoss(network(recipe).eval(), task, None, recipe.train)
    groups = [
        Group(torch.randn(n, 3, *size), torch.randint(11, (n, *size)))
        for n, size in ((2, (32, 32)), (1, (64, 48)))
    ]
    whole = step(groups, 0.5).losses
    alone = [step([group], 0.5).losses for group in groups]
    torch.testing.assert_close(whole.task_loss, (2 * alone[0].task_loss + alone[1].task_loss) / 3)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["semantic_fpn", "upernet"])
def test_four_images_are_learned_by_heart(decoder):
    recipe = pixels(task__decoder=decoder, data__digit_px=[20, 32])
    net, task = network(recipe), recipe.task.make(recipe.grid)
    images, targets = next(iter(make_loaders(recipe).val))
    images, targets = images[:4], targets[:4]
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    net.train()
    with net.deciding_as(held=net.architecture.opened()):
        for _ in range(100):
            optimizer.zero_grad()
            task.loss(net(images).outputs, targets).backward()
            optimizer.step()
        found = evaluate(net.eval(), [Group(images, targets)], expected=False)
    assert found["miou"] > 0.7
    assert found["pixel_accuracy"] > 0.9


@pytest.mark.parametrize(
    "changes",
    [
        {"train__execution": "packed"},
        pytest.param({"train__teacher": "self"}, marks=pytest.mark.slow),
        {"train__mode": "sandwich"},
        {"task__decoder": "upernet", **HELD_OPEN},
    ],
    ids=["routed and packed", "self-taught", "sandwich", "gates taught by the dense pass"],
)
def test_it_trains_like_every_task(changes, tmp_path):
    recipe = pixels(**changes)
    fresh = evaluate(network(recipe), make_loaders(recipe).val)
    result = train_recipe(recipe, tmp_path / "run")
    found = result.metrics
    assert (found["task"], found["metric"]) == ("semantic", "miou")
    assert found["loss"] < 0.9 * fresh["loss"]
    if recipe.train.mode == "plain":
        assert found["counted_macs"] == pytest.approx(found["target_macs"], rel=0.1)
    measured = evaluate(result.net, make_loaders(recipe).val)
    assert {name: measured[name] for name in ("miou", "loss")} == pytest.approx(
        {name: found[name] for name in ("miou", "loss")}, rel=1e-3
    )


def test_another_network_of_the_task_teaches_pixels(tmp_path):
    train_recipe(pixels(train__epochs=0, train__warmup_epochs=0, routing="static"), tmp_path / "big")
    taught = {"train__epochs": 1, "train__teacher": str(tmp_path / "big")}
    assert train_recipe(pixels(**taught), tmp_path / "run").metrics["teacher_macs"] > 0
    with pytest.raises(SpecError, match="it gives no logits of classes; give a classifier"):
        train_recipe(tiny(**taught), tmp_path / "other")


def test_candidates_are_what_each_is_alone():
    recipe = pixels()
    net = network(recipe).eval()
    parts, batches = sample_static(net.architecture.grid, 4, seed=0), list(make_loaders(recipe).val)
    for part, found in zip(parts, evaluate_candidates(net, parts, batches), strict=True):
        alone = evaluate(net.restrict(part), batches)
        for name in ("miou", "pixel_accuracy", "loss", "counted_macs"):
            assert found[name] == pytest.approx(alone[name], rel=1e-6), name


def test_packed_execution_gives_the_same_pixels():
    recipe = pixels(gates__openness=0.5)
    net, images = network(recipe).eval(), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        dense, packed = (net.decide(execution=mode)(images).outputs for mode in ("dense", "packed"))
    torch.testing.assert_close(dense, packed, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task__classes": 10}, r"task\.classes: 10 with 3 channels does not fit data.kind 'digits'; give .*11"),
        ({"task__classes": 256}, r"task\.classes: "),
        ({"task__channels": 100}, r"task\.channels: "),
        ({"train__mixup": 0.2}, r"train\.mixup: it mixes labels of whole images"),
        ({"grid__outputs": "coarsest"}, r"grid\.outputs: task 'semantic' reads the maps of all rates"),
        ({"grid__num_classes": 11}, r"grid\.num_classes: 11 is of a classifier"),
    ],
)
def test_what_does_not_fit_is_one_line(changes, message):
    with pytest.raises(RoutespaceError, match=message):
        pixels(**changes)
