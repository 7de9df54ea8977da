"""Tasks: the loop and every report speak of a task's metric; costs are those of the images as they are."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from tiny_grid import TINY_GRID
from torch.utils._python_dispatch import TorchDispatchMode
from train_tiny import tiny

from routespace.deploy.counters import torch_macs
from routespace.errors import DataError, RoutespaceError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost, measured_cost
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.grid.usage import EdgeUsage, sizes_from_json, usage_from_json, usage_to_json
from routespace.nn.heads import kinds as head_kinds
from routespace.nn.heads.base import Head
from routespace.nn.task_net import TaskNet
from routespace.nn.usage import UsageMeter, measure_usage
from routespace.train import run
from routespace.train.candidates import evaluate_candidates
from routespace.train.evaluate import evaluate
from routespace.train.macs import counted_macs, expected_macs, metered_macs, size_factor
from routespace.train.recipe.recipe import Recipe
from routespace.train.recipe.teaching import check_teacher
from routespace.train.tasks import kinds
from routespace.train.tasks.base import Metric, TaskSpec


class Brightness(Head):
    """A regression head: the mean of the coarsest map, times a number."""

    kind = "brightness"
    names = ("brightness",)

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(1))

    @classmethod
    def build(cls, spec, settings):
        return cls()

    def forward(self, output):
        return self.factor * output.maps[max(output.maps)].mean((1, 2, 3))

    def tensors(self, outputs):
        return (outputs,)


class Regress:
    """How bright images are: a task of one's own, judged by its mean error."""

    name = "brightness"
    metric = Metric("error", "levels", "minimise")

    def head(self, spec):
        return Brightness()

    def prepare(self, batch, device, *, training):
        return batch[0].to(device), batch[0].to(device).mean((1, 2, 3))

    def loss(self, outputs, targets):
        return (outputs - targets).square().mean()

    def score(self, outputs, targets):
        return None

    def meter(self, device):
        errors: list[float] = []
        return SimpleNamespace(
            update=lambda outputs, targets: errors.extend((outputs - targets).abs().tolist()),
            compute=lambda: {"error": sum(errors) / len(errors), "loss": sum(errors), "worst": max(errors)},
            by_class=lambda: None,
        )


class RegressSpec(TaskSpec):
    metric = Regress.metric
    kind: str = "brightness"

    def make(self, grid, train=None):
        return Regress()


@pytest.fixture
def own_task(monkeypatch):
    """A recipe of another task; until users can add tasks of their own it is put in by hand."""
    recipe = tiny()
    monkeypatch.setitem(kinds.TASKS, "brightness", RegressSpec)
    monkeypatch.setitem(head_kinds.HEADS, "brightness", (__name__, "Brightness"))
    return recipe.model_copy(update={"task": RegressSpec()})


def test_another_task_is_trained_measured_and_reported_by_its_own_metric(own_task, tmp_path):
    news = []
    result = run.train_recipe(own_task, tmp_path / "run", progress=news.append)
    assert result.metrics["metric"] == "error"
    assert result.metrics["error"] > 0
    assert "accuracy" not in result.metrics
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["error"] > 0 and line["train_error"] is None for line in lines)
    assert {item.metric.text(2.5) for item in news} == {"2.5 levels"}
    assert all(item.score is None for item in news)


@pytest.mark.parametrize(
    ("task", "message"),
    [("detekt", r"task: 'detekt' is no task; give classify"), ({"kind": "classify", "x": 1}, r"task\.x: unknown")],
)
def test_unknown_tasks_are_one_line(task, message):
    with pytest.raises(SpecError, match=message):
        Recipe.parse(tiny().to_data() | {"task": task})


def test_a_task_alone_is_its_name_in_yaml_and_hash():
    recipe = tiny()
    assert recipe.to_data()["task"] == "classify"
    assert Recipe.parse(recipe.to_data() | {"task": {"kind": "classify"}}).hash == recipe.hash
    none = {"grid": TINY_GRID | {"num_classes": 0}, "data": {"kind": "folder", "root": "x"}}
    with pytest.raises(SpecError, match=r"grid\.num_classes: 0 leaves nothing to tell apart"):
        Recipe.parse(recipe.to_data() | none)


def gated(**gates) -> TaskNet:
    torch.manual_seed(0)
    grid = RoutingGrid(GridSpec(**TINY_GRID))
    return TaskNet.classifier(Architecture.full(grid), GateSpec(openness=0.5, **gates))


@pytest.mark.parametrize("size", [(32, 32), (48, 40), (64, 96)])
def test_costs_are_those_of_the_images_as_they_are(size):
    net = gated().train()
    images = torch.randn(3, 3, *size)
    routes = net(images).routes
    usage = {name: EdgeUsage(*map(float, share)) for name, share in routes.detach().usage().items()}
    wanted = architecture_cost(net.architecture, gates=net.gate_spec, usage=usage, image_size=size).macs
    brought = wanted * size_factor(net, size)  # to the grid's size: what a budget counts
    assert expected_macs(net, routes, image_size=size).item() == pytest.approx(brought, rel=1e-6)
    assert counted_macs(net, usage, image_size=size) == pytest.approx(wanted)


def test_a_pass_over_images_of_several_sizes_counts_each_image_once():
    net = gated().eval()
    sizes = (2, (32, 32)), (1, (64, 48))
    batches = [(torch.randn(n, 3, *size), torch.zeros(n, dtype=torch.long)) for n, size in sizes]
    alone = [evaluate(net, [batch])["counted_macs"] for batch in batches]
    together = evaluate(net, batches)
    assert together["counted_macs"] == pytest.approx((2 * alone[0] + alone[1]) / 3)


def test_usage_of_several_sizes_is_a_share_of_all_tokens():
    net = gated().eval()
    batches = [torch.randn(2, 3, 32, 32), torch.randn(1, 3, 64, 64)]
    parts = [measure_usage(net, [batch]) for batch in batches]
    meter = UsageMeter()
    for batch in batches:
        meter.update(net(batch).routes, len(batch), size=batch.shape[-2:])
    for name, share in meter.usage().items():
        tokens = [part[name].tokens if name in part else 1.0 for part in parts]
        assert share.tokens == pytest.approx((2 * tokens[0] + 4 * tokens[1]) / 6)
    assert metered_macs(net, meter) > 0


class Copies(TorchDispatchMode):
    """Counts Python numbers that become tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += any(word in str(func) for word in ("lift_fresh", "scalar_tensor"))
        return func(*args, **(kwargs or {}))


def test_the_budgets_price_copies_no_numbers_to_the_device_at_each_step():
    def copies(layers: int) -> int:
        grid = RoutingGrid(GridSpec(**TINY_GRID | {"layers": layers}))
        net = TaskNet.classifier(Architecture.full(grid)).train()
        routes = net(torch.randn(2, 3, 32, 32)).routes
        expected_macs(net, routes)  # makes the table of prices
        with Copies() as counter:
            expected_macs(net, routes)
        return counter.seen

    assert copies(2) == copies(5) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_network_without_finite_numbers_cannot_be_evaluated(value):
    net = gated()
    torch.nn.init.constant_(net.head.weight, value)
    batch = torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.long)
    with pytest.raises(RoutespaceError, match="its loss on held-out images is nan"):
        evaluate(net, [batch])
    assert net.training


def test_no_images_are_an_error_for_costs_too():
    with pytest.raises(DataError, match="no images"):
        evaluate(gated(), [])


@pytest.mark.parametrize("changes", [{"train__teacher": "timm:resnet18"}, {"train__mode": "sandwich"}])
def test_a_task_without_soft_labels_refuses_a_teacher_in_one_line(changes):
    recipe = tiny(**changes)
    with pytest.raises(ValueError, match="task 'brightness' knows no soft labels; "):
        check_teacher(recipe.train, recipe.gates, RegressSpec(), routing=recipe.routing)


def test_the_loss_is_the_mean_of_all_images_however_they_come():
    """The last batch is smaller, and so is a batch of which some pictures could not be read."""
    torch.manual_seed(0)
    net = TaskNet.classifier(Architecture.full(RoutingGrid(GridSpec(**TINY_GRID)))).eval()
    images, labels = torch.randn(7, 3, 32, 32), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    with torch.no_grad():
        net.head.weight.normal_(std=3)
        wanted = float(torch.nn.functional.cross_entropy(net(images).logits, labels))
    for sizes in ([7], [4, 3], [6, 1], [1, 5, 0, 1]):
        batches = list(zip(images.split(sizes), labels.split(sizes), strict=True))
        assert evaluate(net, batches, expected=False)["loss"] == pytest.approx(wanted, rel=1e-5), sizes
    part = Architecture.staircase(net.architecture.grid)
    losses = [
        evaluate_candidates(net, [part], list(zip(images.split(n), labels.split(n), strict=True)))[0]["loss"]
        for n in (7, 4, 1)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_one_class_has_no_accuracy():
    net = TaskNet.classifier(Architecture.full(RoutingGrid(GridSpec(**TINY_GRID | {"num_classes": 1}))))
    batches = [(torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.long))]
    with pytest.raises(SpecError, match=r"num_classes: 1 class .* two classes or more"):
        evaluate(net, batches)


def test_measured_costs_are_one_function_of_sizes_and_shares():
    """What evaluation counts, what `cost` reads from a run's file, and what torch's counter says of open gates."""
    net = gated().eval()
    batches = [torch.randn(2, 3, 32, 32), torch.randn(1, 3, 64, 96), torch.randn(3, 3, 48, 40)]
    meter = UsageMeter()
    for batch in batches:
        meter.update(net(batch).routes, len(batch), size=batch.shape[-2:])
    parts = meter.by_size(net.spec.image_size)
    grid = net.architecture.grid
    kept = json.loads(json.dumps(usage_to_json(meter.usage(), grid, parts)))
    assert sizes_from_json(kept, grid) == parts
    assert usage_from_json(kept, grid) == meter.usage()
    alone = [size_factor(net, size) * counted_macs(net, use, image_size=size) for _, use, size in parts if size]
    own = [counted_macs(net, use) for _, use, size in parts if size is None]
    assert len(own) == 1
    assert metered_macs(net, meter) == pytest.approx((2 * own[0] + alone[0] + 3 * alone[1]) / 6)
    found = measured_cost(net.architecture, parts, gates=net.gate_spec)
    assert found.macs == pytest.approx(metered_macs(net, meter))
    assert sum(used["macs"] for used in found.used.values()) < found.macs
    everything = [part._replace(usage={}) for part in parts]
    assert measured_cost(net.architecture, everything, gates=net.gate_spec).totals == pytest.approx(
        architecture_cost(net.architecture, gates=net.gate_spec).totals
    )
    fed = measured_cost(net.architecture, everything, gates=net.gate_spec, as_fed=True)
    assert fed.macs == pytest.approx(
        sum(len(b) * torch_macs(net, tuple(b.shape[-2:]), meta=False).macs for b in batches) / 6
    )
    assert fed.params == sum(weight.numel() for weight in net.parameters())


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ([], "a list of"),
        ([{"size": [32], "images": 1, "edges": {}}], r"sizes\[0\]: size \[32\]"),
        ([{"size": [32, 32], "images": 0, "edges": {}}], "images 0"),
        ([{"size": [32, 32], "images": 1}], r"sizes\[0\]\.edges: missing"),
        ([{"size": [32, 32], "images": 1, "edges": {"l00_r04_transformer": 3}}], r"sizes\[0\]\.edges\.l00_r04"),
    ],
)
def test_sizes_that_cannot_be_meant_are_named(sizes, words):
    grid = RoutingGrid(GridSpec(**TINY_GRID))
    with pytest.raises(SpecError, match=words):
        sizes_from_json({"format": "routespace.usage/1", "edges": {}, "sizes": sizes}, grid)
