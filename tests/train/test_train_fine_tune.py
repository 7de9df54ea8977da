"""Training that starts from a given network: what was asked for holds, or is refused in a line."""

import os
import signal

import pytest
import torch
from train_photos import photos
from train_tiny import tiny

from routespace.errors import BundleError, SpecError
from routespace.grid.architecture import Architecture
from routespace.nn.task_net import TaskNet
from routespace.train.fine_tune import fit_to
from routespace.train.run import train_recipe
from routespace.train.stopping import TrainingStoppedError

CHOSEN = frozenset()  # nothing was asked for


def network(**changes):
    recipe = tiny(**changes)
    torch.manual_seed(1)
    return TaskNet.classifier(recipe.architecture(), recipe.gates).eval()


@pytest.fixture(scope="module")
def gated():
    return network()


@pytest.fixture(scope="module")
def static():
    return network(routing="static")


HOLDS = {
    "grid.image_size": 48,
    "gates.threshold": 0.3,
    "gates.rows": "image",
    "gates.keys": "kept",
    "budget.open_frac": 0.5,
    "budget.ratio": 0.9,
    "train.lr": 0.01,
    "seed": 4,
    "routing": "both",
}
REFUSED = {
    "grid.layers": (3, r"grid.layers: 3 was asked, but the given network has 2; leave it out"),
    "grid.max_down": (4, r"grid.max_down: 4 was asked, but the given network has 8"),
    "grid.outputs": ("pyramid", r"grid.outputs: pyramid was asked, but the given network has coarsest"),
    "grid.widths": ([8, 24], r"grid.widths: \[8, 24\] was asked, but the given network has \[8, 16\]"),
    "grid.preset": ("pvt_v2_b0", r"grid\..* was asked, but the given network has"),
    "gates.kind": ("sigmoid", r"gates.kind: 'sigmoid' was asked, but the given network's gates are of 'gumbel'"),
    "gates.rows": ("layer", r"gates.rows: 'layer' was asked, but the given network's gates are of 'token'"),
    "gates.skipped": ("mlp", r"gates.skipped: 'mlp' was asked, but the given network's gates are of 'identity'"),
    "gates.openness": (0.5, r"gates.openness: 0.5 was asked, with which only new gates begin"),
    "train.start": ("staircase", r"train.start: 'staircase' was asked"),
    "train.weights": (
        "timm:pvt_v2_b0",
        r"train.weights: 'timm:pvt_v2_b0' was asked; the given network has",
    ),
    "routing": ("depth", r"routing: depth was asked, but the given network keeps its own part of the grid"),
}
NO_GATES = {"gates.threshold": 0.3, "budget.ratio": 0.9, "budget.open_frac": 0.5, "gates.rows": "image"}


@pytest.mark.parametrize("field", HOLDS)
def test_what_can_hold_holds(gated, field):
    recipe = tiny().override({field: HOLDS[field]})
    fitted = fit_to(recipe, gated, asked={field}).recipe
    assert fitted.to_data() == recipe.to_data()


@pytest.mark.parametrize("field", REFUSED)
def test_what_cannot_hold_is_refused_in_one_line(gated, field):
    value, told = REFUSED[field]
    with pytest.raises(SpecError, match=told) as caught:
        fit_to(tiny().override({field: value}), gated, asked={field})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", NO_GATES)
def test_a_network_without_gates_refuses_what_is_of_gates(static, field):
    with pytest.raises(SpecError, match=f"{field}: .* was asked, but the given network has no gates"):
        fit_to(tiny().override({field: NO_GATES[field]}), static, asked={field})


def test_a_recipe_of_another_grid_takes_the_networks_and_says_so(gated):
    recipe = tiny(grid__layers=3, grid__image_size=40, data__digit_px=[16, 30])
    fitted = fit_to(recipe, gated, asked=CHOSEN)
    assert fitted.recipe.grid == gated.spec
    assert len(fitted.lines) == 1
    assert fitted.lines[0].startswith("grid: the given network's in place of the recipe's: ")
    assert "layers 2" in fitted.lines[0]
    assert "image_size 32x32" in fitted.lines[0]
    assert fit_to(tiny(), gated, asked=CHOSEN).lines == ()


def test_in_python_the_recipes_grid_must_be_the_networks(gated, tmp_path):
    with pytest.raises(SpecError, match=r"grid.layers: 3 was asked, but the given network has 2"):
        train_recipe(tiny(grid__layers=3), tmp_path / "run", init=gated)
    with pytest.raises(SpecError, match=r"routing: static was asked, but the given network has gates"):
        train_recipe(tiny(routing="static"), tmp_path / "run", init=gated)
    assert not (tmp_path / "run").exists()


def test_another_image_size_holds_with_its_macs(gated, tmp_path):
    lines = []
    recipe = tiny(train__epochs=0, grid__image_size=48)
    result = train_recipe(recipe, tmp_path / "run", init=gated, tell=lines.append)
    assert result.net.spec.image_size == (48, 48)
    assert result.metrics["base_macs"] == recipe.base_macs() > tiny().base_macs()
    assert result.metrics["target_macs"] == recipe.budget_macs()
    assert "images: 48x48 px; the given network is of 32x32 px" in lines
    given, found = gated.state_dict(), result.net.state_dict()
    assert all(torch.equal(given[name], found[name]) for name in given if ".gates." not in name)


@pytest.mark.parametrize("asked", [frozenset(), frozenset({"grid.num_classes"}), None])
def test_another_number_of_classes_gives_a_new_head(gated, asked, tmp_path):
    photos(tmp_path / "three")
    classes = {} if asked == frozenset() else {"grid.num_classes": 3}  # else the data tells
    data = {"data.kind": "folder", "data.root": str(tmp_path / "three"), "train.batch_size": 4}
    lines = []
    recipe = tiny(train__epochs=0).override(data | classes)
    net = train_recipe(recipe, tmp_path / "run", init=gated, asked=asked, tell=lines.append).net
    assert net.head.weight.shape == (3, 16)
    told = "head: new, for 3 classes; the given network has 10, all but its head is kept"
    assert [line for line in lines if line.startswith("head")] == [told]
    given, found = gated.backbone.state_dict(), net.backbone.state_dict()
    assert all(torch.equal(given[name], found[name]) for name in given if "gates." not in name)


def test_a_fine_tuning_is_resumed_exactly(gated, tmp_path):
    asked = frozenset({"grid.image_size", "budget.open_frac"})
    small = {"data__train_size": 32, "data__val_size": 16}
    recipe = tiny(grid__image_size=48, budget__open_frac=0.5, train__start="staircase", **small)
    whole = train_recipe(recipe, tmp_path / "whole", init=gated, asked=asked)

    def stop(progress):
        if progress.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingStoppedError):
        train_recipe(recipe, tmp_path / "part", init=gated, asked=asked, progress=stop)
    changed = tiny(grid__image_size=64, budget__open_frac=0.5, **small)
    with pytest.raises(BundleError, match="another recipe"):
        train_recipe(changed, tmp_path / "part", resume=True, asked={"grid.image_size"})
    with pytest.raises(BundleError, match="was started from another network"):
        train_recipe(recipe, tmp_path / "part", init=network(routing="static"), resume=True, asked=asked)
    resumed = train_recipe(recipe, tmp_path / "part", resume=True, asked=asked)
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, resumed.net.state_dict()[name]), name


def test_a_part_of_the_grid_stays_that_part(gated):
    part = gated.restrict(Architecture.staircase(gated.architecture.grid))
    assert fit_to(tiny(grid__image_size=48), part).architecture.edges == part.architecture.edges
