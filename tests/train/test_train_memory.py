"""What a training is told to take, against what autograd really keeps; and the batch that `auto` takes."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from dense_tiny import dense
from tiny_grid import TINY_GRID
from train_annotated import some_coco, source_of
from train_tiny import tiny

from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.heads.base import Head
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet, WithRest
from routespace.recipes import load_recipe, recipe_names
from routespace.train import batch as batch_module
from routespace.train import phases as phases_module
from routespace.train.batch import settled_batch
from routespace.train.data.loaders import Loaders
from routespace.train.memory import MARGIN, MemoryNeed, chosen_batch, free_memory, recipe_need, training_need
from routespace.train.optim import make_optimizer
from routespace.train.recipe.coco import CocoSpec
from routespace.train.run import train_recipe

SWIN = {name: value for name, value in TINY_GRID.items() if name != "sr_ratios"} | {
    "family": "swin_v2",
    "window": 4,
}
GATES = [
    {},
    pytest.param({"kind": "sigmoid", "relaxation": "soft"}, marks=pytest.mark.slow),
    pytest.param({"kind": "tanh"}, marks=pytest.mark.slow),
    {"capacity": True, "columns": "token", "early_stop": True},
    pytest.param({"selection": "random"}, marks=pytest.mark.slow),
    {"selection": "attention"},
    {"rows": "window", "columns": "token"},
    pytest.param({"rows": "layer", "columns": "layer", "keys": "kept"}, marks=pytest.mark.slow),
]


@pytest.fixture(autouse=True)
def told_of_each_network(monkeypatch):
    """Here what trainings take is never remembered."""
    monkeypatch.setattr(batch_module, "recipe_need", recipe_need)


def really_kept(net, images):
    """Bytes of the distinct storages that a real forward pass keeps, but for the network's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # alive until the graph goes, so no address comes twice

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(images).outputs
    assert out.requires_grad
    return sum(kept.values())


def of_pictures(count):
    return torch.randn(count, 3, 32, 32)


@pytest.mark.parametrize("routing", ["static", "both"])
@pytest.mark.parametrize("grid", [TINY_GRID, SWIN], ids=["pvt_v2", "swin_v2"])
def test_activations_are_what_autograd_keeps(grid, routing):
    recipe = tiny(routing=routing, gates={"openness": 0.9999}, grid=grid)
    need = recipe_need(recipe, recipe.architecture())
    torch.manual_seed(0)
    net = TaskNet.classifier(recipe.architecture(), recipe.gates).train()
    for count in (1, 3, 16):  # one image alone may be kept otherwise: what many keep tells of many
        told = need.shared + count * need.activations_per_image
        assert really_kept(net, of_pictures(count)) == pytest.approx(told, rel=0.01)


class Counting(Head):
    """A head of one's own that looks at each image by itself."""

    kind = "counting"
    names = ("brightness",)

    @classmethod
    def build(cls, spec, told):
        return cls()

    def forward(self, output):
        maps = output.maps[max(output.maps)]
        return torch.stack([maps[image].mean((1, 2)).exp() for image in range(maps.shape[0])])

    def tensors(self, outputs):
        return (outputs,)


def test_a_head_of_ones_own_may_count_its_images():
    recipe = tiny(gates={"openness": 0.9999})
    task = SimpleNamespace(head=lambda _: Counting())
    need = training_need(recipe.architecture(), recipe.train, gates=recipe.gates, task=task)
    torch.manual_seed(0)
    net = TaskNet(RouteNet(recipe.architecture(), recipe.gates), Counting()).train()
    for count in (1, 5):
        told = need.shared + count * need.activations_per_image
        assert really_kept(net, of_pictures(count)) == pytest.approx(told, rel=0.01)


def test_weights_gradients_and_moments_are_what_a_step_allocates():
    recipe = tiny(train__ema_decay=0.9)
    need = recipe_need(recipe, recipe.architecture())
    net = TaskNet.classifier(recipe.architecture(), recipe.gates).train()
    optimizer = make_optimizer(net, recipe.train)
    net(of_pictures(2)).logits.sum().backward()
    optimizer.step()

    def total(tensors):
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert need.weights == total([*net.parameters(), *net.buffers()]) == need.average
    assert need.gradients == total(parameter.grad for parameter in net.parameters())
    # A vector's own step counter is no moment; parameters without a gradient have no moments yet.
    assert need.optimiser == pytest.approx(total(moments), rel=0.01)
    assert recipe_need(recipe, recipe.architecture(), processes=2).gradients == 2 * need.gradients


def test_checkpointing_and_low_precision_are_seen():
    recipe = tiny(grid__layers=3)
    architecture = recipe.architecture()
    need, checkpointed, low = (
        recipe_need(changed, architecture)
        for changed in (
            recipe,
            recipe.override({"train.grad_checkpointing": True}),
            recipe.override({"train.precision": "bf16"}),
        )
    )
    assert checkpointed.activations_per_image < 0.8 * need.activations_per_image
    assert low.activations_per_image < 0.9 * need.activations_per_image
    assert need.shared == checkpointed.shared == 0 < low.shared <= need.weights / 2
    assert checkpointed.fixed == need.fixed == low.fixed - low.shared


@pytest.mark.parametrize("gates", GATES, ids=str)
def test_every_kind_of_gate_can_be_told(gates):
    recipe = tiny(gates=gates)
    generator = torch.get_rng_state()
    need = recipe_need(recipe, recipe.architecture())
    static = recipe_need(recipe, Architecture.staircase(recipe.architecture().grid))
    assert static.activations_per_image < need.activations_per_image < 4 * static.activations_per_image
    assert torch.equal(
        torch.get_rng_state(), generator
    )  # the training that follows draws what it would have drawn


QUICK = ("digits_detect",)  # the others take as much time and differ less
DIGITS = [name for name in recipe_names() if name.startswith("digits")]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in DIGITS]
)
def test_every_recipe_of_digits_can_be_told(name):
    recipe = load_recipe(name)
    assert recipe_need(recipe, recipe.architecture()).activations_per_image > 0


@pytest.mark.slow
def test_a_large_grid_is_told_without_taking_its_memory():
    grid = RoutingGrid(GridSpec(layers=2, size="b2", image_size=(4096, 4096)))
    recipe = tiny(grid__image_size=[4096, 4096], data__digit_px=[500, 900])
    need = recipe_need(recipe, Architecture.full(grid))
    assert need.activations_per_image > 20e9


NEED = MemoryNeed(
    weights=100, gradients=100, optimiser=200, average=0, shared=0, activations_per_image=8, working_per_image=2
)


def test_the_largest_batch():
    assert (NEED.fixed, NEED.per_image, NEED.of_batch(4)) == (400, 10, 440)
    free = 1000 / (1 - MARGIN)
    assert NEED.most_images(free + 1) == 60
    assert NEED.most_images(100) == 0
    assert "400" not in NEED.text()


@pytest.mark.parametrize(
    ("free", "images", "processes", "even", "wanted"),
    [
        (1000 / (1 - MARGIN) + 1, 10_000, 1, False, 32),  # 60 fit
        (1000 / (1 - MARGIN) + 1, 10_000, 3, False, 96),  # in each
        (10**9, 10**6, 1, False, 1024),
        (10**9, 10**6, 3, False, 768),  # 1024 / 3 in each, and a power of two
        (10**9, 100, 1, False, 8),  # eight steps and more
        (10**9, 7, 1, False, 1),
        (10**9, 7, 2, True, 4),
        (None, 600, 1, False, 64),
    ],
)
def test_auto_takes_a_power_of_two_that_fits(free, images, processes, even, wanted):
    assert chosen_batch(NEED, free, images=images, processes=processes, even=even) == wanted


def test_auto_says_when_nothing_fits():
    with pytest.raises(SpecError, match=r"batch_size.*not even a batch of 1 fits.*410 B.*grad_checkpointing"):
        chosen_batch(NEED, 450, images=100)


def test_auto_is_chosen_once_and_kept(tmp_path, monkeypatch):
    lines = []
    recipe = tiny(train__batch_size="auto", train__epochs=1)
    out = tmp_path / "run"
    result = train_recipe(recipe, out, tell=lines.append)
    assert result.metrics["batch_size"] == 8  # eight steps of 64 images
    assert any(line.startswith("memory: weights") for line in lines)
    assert any(line.startswith("train.batch_size: 8") for line in lines)
    assert "batch_size: 8" in (out / "recipe.yaml").read_text()
    monkeypatch.setattr(batch_module, "chosen_batch", lambda *_, **__: 2)  # a machine with less memory
    (out / "result.json").unlink()
    again = train_recipe(recipe, out, resume=True)
    assert again.metrics["batch_size"] == 8
    kept = json.loads((out / "result.json").read_text())
    assert kept["accuracy"] == result.metrics["accuracy"]


def test_telling_changes_nothing(tmp_path):
    """A training that tells of its memory gives the weights of one that does not."""
    told, untold = (
        train_recipe(tiny(train__epochs=1), tmp_path / name, tell=tell)
        for name, tell in (("told", lambda _: None), ("untold", None))
    )
    ours = copy.deepcopy(told.net.state_dict())
    assert all(torch.equal(tensor, ours[name]) for name, tensor in untold.net.state_dict().items())


def test_a_batch_that_does_not_fit_is_warned_of(monkeypatch):
    recipe = tiny()
    need = recipe_need(recipe, recipe.architecture())
    monkeypatch.setattr(batch_module, "free_memory", lambda *_: need.of_batch(16) - 1)
    lines = []
    with pytest.warns(UserWarning, match=r"train.batch_size: 16 takes about .* are free.*grad_checkpointing=true"):
        found = settled_batch(recipe, recipe.architecture(), Accelerator(cpu=True), images=64, tell=lines.append)
    assert found == recipe
    assert len(lines) == 1


def test_free_memory_is_shared_among_processes():
    device = torch.device("cpu")
    whole, half = free_memory(device), free_memory(device, 2)
    assert half == pytest.approx(whole / 2, rel=0.1)


@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_pictures_of_sizes_of_their_own_are_told_by_these(size):
    recipe = dense({"kind": "detect", "classes": 10, "width": 32}, gates={"openness": 0.9999})
    architecture, task = recipe.architecture(), recipe.task.make(recipe.grid, recipe.train)
    need = recipe_need(recipe, architecture, size=size)
    torch.manual_seed(0)
    net = TaskNet(RouteNet(architecture, recipe.gates), task.head(recipe.grid)).train()
    kept, own = {}, {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = WithRest(net)(torch.randn(2, 3, *size))
    assert alive is not None
    assert sum(kept.values()) == pytest.approx(need.shared + 2 * need.activations_per_image, rel=0.02)


@pytest.mark.parametrize("group", [True, False])
def test_the_largest_pictures_are_those_that_training_feeds(tmp_path, group):
    some_coco(tmp_path, count=9)
    fields = {"eval_size": (48, 128), "shorter_sides": (32, 80), "val_fraction": 0.3, "group": group}
    source = source_of(CocoSpec(root=str(tmp_path), **fields), "objects")
    recipe = dense({"kind": "detect", "classes": 10}, train__batch_size=2)
    loaders, seen = Loaders(recipe, source), []
    for epoch in range(8):
        loaders.set_epoch(epoch)
        seen += [tuple(group.images.shape[2:]) for groups in loaders.train for group in groups]
    assert math.prod(loaders.largest) == max(math.prod(size) for size in seen)
    assert Loaders(recipe, source_of(CocoSpec(root=str(tmp_path), **fields), "pixels")).largest == (32, 32)


def test_the_line_tells_of_which_pictures(tmp_path):
    recipe, said = dense({"kind": "detect", "classes": 10, "width": 32}, train__batch_size="auto"), []
    small, large = (
        settled_batch(
            recipe, recipe.architecture(), Accelerator(cpu=True), images=10_000, size=size, tell=said.append
        ).train.batch
        for size in (None, (512, 1024))
    )
    assert large <= small
    assert "at most, of 512×1024 px" in said[2]
    assert "at most, of" not in said[0]


def test_a_teacher_is_there_before_the_free_memory_is_looked_at(tmp_path, monkeypatch):
    class LookedError(Exception):
        pass

    def looked(*_):
        raise LookedError

    loaded = []
    monkeypatch.setattr(phases_module, "teacher_of", lambda *_: loaded.append("teacher"))
    monkeypatch.setattr(batch_module, "free_memory", looked)
    recipe = tiny(train__batch_size="auto", train__teacher=str(tmp_path / "bundle"))
    with pytest.raises(LookedError):
        train_recipe(recipe, tmp_path / "run")
    assert loaded == ["teacher"]
    assert not (tmp_path / "run").exists()
