"""The classifier's mean over what its map's last row computed (`pool: computed`)."""

import pytest
import torch
from modes import assert_modes_agree
from tiny_grid import TINY_GRID
from torch.nn import functional as F

from routespace import (
    Architecture,
    Card,
    GateSpec,
    GridSpec,
    RouteNet,
    RoutingGrid,
    TaskNet,
    extract,
    load_bundle,
    save_bundle,
)
from routespace.errors import SpecError
from routespace.nn.heads.classify import Classifier
from routespace.nn.routing.routes import EdgeRoute, Routes
from routespace.recipes import load_recipe
from routespace.train.plain import plain_recipe, smaller_recipe


def routed(rows: str = "token", **gates: object) -> TaskNet:
    """A staircase whose rows are gated, with a mean over what the last one computes."""
    spec = GridSpec.parse(TINY_GRID)
    torch.manual_seed(0)
    architecture = Architecture.routed(RoutingGrid(spec), "depth")
    backbone = RouteNet(architecture, GateSpec(rows=rows, openness=0.5, **gates))
    return TaskNet(
        backbone, Classifier(spec.width(spec.max_down), spec.num_classes, spec.max_down, pool="computed")
    )


def last_row(net: TaskNet) -> str:
    return max(name for name in net.edges if name.endswith("r08_transformer"))


def choosing(net: TaskNet, images: torch.Tensor, kept: torch.Tensor) -> Routes:
    """Everything computed, but in the last row at the coarsest rate what is given."""
    routes = dict(Routes.full(net, images))
    routes[last_row(net)] = EdgeRoute.of(kept)
    return Routes(routes)


def test_the_mean_is_over_what_the_last_row_computed_and_over_all_where_that_is_nothing():
    net, images = routed().eval(), torch.randn(3, 3, 32, 32)
    kept = torch.rand(3, 16) < 0.4
    kept[0], kept[1, 3] = False, True
    output = net.backbone(images, routes=choosing(net, images, kept))
    tokens = output.maps[8].flatten(2).transpose(1, 2)
    logits = net.head(output)
    for image in range(3):
        mean = tokens[image][kept[image]].mean(0) if kept[image].any() else tokens[image].mean(0)
        wanted = F.linear(mean, net.head.weight, net.head.bias)
        assert torch.allclose(logits[image], wanted, atol=1e-6)


@pytest.mark.parametrize(
    "gates",
    [
        {},
        {"rows": "window", "window": 2},
        {"source": "map", "opening": "share"},
        {"relaxation": "soft", "kind": "sigmoid"},
        {"kind": "tanh"},
        {"rows": "image"},
        {"keys": "kept"},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_every_way_of_computing_gives_the_same(gates, training):
    net = routed(noise=0.0, final_noise=0.0, **gates).train(training)
    assert_modes_agree(net, torch.randn(3, 3, 32, 32), None)


def test_where_no_gate_chooses_among_tokens_the_mean_is_over_all():
    net, images = routed().eval(), torch.randn(2, 3, 32, 32)
    stairs = Architecture.staircase(net.architecture.grid)
    plain = extract(net, stairs)
    assert plain.head.pool == "computed"
    tokens = plain(images, features=True).features[8].flatten(2).mean(2)
    assert torch.allclose(plain(images).logits, F.linear(tokens, net.head.weight, net.head.bias), atol=1e-6)
    with net.deciding_as(held=stairs):
        assert torch.allclose(net(images).logits, plain(images).logits, atol=1e-5)


def test_what_is_computed_is_taught_by_what_the_classifier_hears():
    """Which tokens are in the mean matters to the loss, so the last row's gate has a gradient from there."""
    net = routed(noise=0.0).train()
    out = net.backbone(torch.randn(4, 3, 32, 32))
    computed = out.computed[8]
    grad = torch.autograd.grad(net.head(out).square().sum(), computed)[0]
    assert grad.abs().sum() > 0
    assert computed.requires_grad


def test_a_bundle_knows_what_its_mean_is_over(tmp_path):
    net, images = routed().eval(), torch.randn(2, 3, 32, 32)
    save_bundle(net, tmp_path / "net", Card.of(net))
    again = load_bundle(tmp_path / "net").net.eval()
    assert again.head.pool == "computed"
    assert torch.equal(again(images).logits, net(images).logits)
    assert Classifier(8, 5, 16).settings() == {}  # files of before there was a choice stay as they are


def test_recipes_say_it_and_refuse_what_it_is_not():
    recipe = load_recipe("digits_map", ["task.pool=computed"])
    assert recipe == load_recipe("digits_map", ["task={kind: classify, pool: computed}"])
    assert recipe.task.make(recipe.grid).head(recipe.grid).pool == "computed"
    assert load_recipe("digits_map", ["task=classify"]).task.make(recipe.grid).head(recipe.grid).pool == "all"
    plain = smaller_recipe(load_recipe("digits_sparse"), 3.6e6)
    assert plain.task.make(plain.grid).head(plain.grid).pool == "all"
    assert plain_recipe(load_recipe("digits_sparse"), 3.6e6).task == plain.task
    for changes, said in (
        (["routing=static"], "needs rows that are gated; routing 'static' has none, give task.pool=all"),
        (["routing=scale", "gates={}"], "routing 'scale' has none"),
        (["gates={rows: image}"], "rows 'image' do not"),
    ):
        with pytest.raises(SpecError, match=said):
            load_recipe("digits_sparse", changes)
    with pytest.raises(SpecError, match=r"task\.classify\.pool|task\.pool"):
        load_recipe("digits_map", ["task={kind: classify, pool: kept}"])
