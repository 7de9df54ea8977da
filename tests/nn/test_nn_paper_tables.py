"""The papers' recipes at their real sizes: parameters and MACs against the tables of PVTv2, Swin and DiT.

PVTv2's staircase under each head is what PVTv2's authors built with mmdetection and mmsegmentation (arXiv
2106.13797). DiT's MACs on ADE20K (arXiv 2308.03409) are those of a routed network.
"""

import pytest
import torch

from routespace.deploy.counters import torch_macs
from routespace.grid.architecture import Architecture
from routespace.grid.graph import RoutingGrid
from routespace.nn.cost import network_cost
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet
from routespace.recipes import load_recipe

PLAIN = {  # recipe → M parameters, and GMACs where the tables tell them at the recipe's image size
    "dit_b1_coco_maskrcnn_1x": (33.7, None),
    "dit_b2_coco_maskrcnn_1x": (45.0, None),
    "dit_b3_coco_maskrcnn_1x": (64.9, None),
    "dit_b4_coco_maskrcnn_1x": (82.2, None),
    "dit_b1_ade20k_semfpn": (17.8, 34.2),
    "dit_b2_ade20k_semfpn": (29.1, 45.8),
    "dit_b3_ade20k_semfpn": (49.0, 62.4),
    "dit_b4_ade20k_semfpn": (66.3, 81.3),
    "dit_swinv2_t_coco_maskrcnn_3x": (47.8, None),  # Swin-T's; SwinV2 has 0.1 M more
    "dit_swinv2_t_ade20k_upernet": (60.0, 945 / 4),  # Swin-T's, of 512 × 2048 px; with another auxiliary head
}
RETINANET = {"b0": 13.0, "b1": 23.8, "b2": 35.1, "b3": 55.0, "b4": 72.3, "b5": 91.7}  # M parameters, PVTv2
ROUTED_GMACS = {  # DiT's table of ADE20K
    "dit_b1_ade20k_semfpn": 32.7,
    "dit_b2_ade20k_semfpn": 43.4,
    "dit_b3_ade20k_semfpn": 59.0,
    "dit_b4_ade20k_semfpn": 78.4,
}


def network(name, *, plain, **changes):
    """A recipe's network on the meta device: its shapes alone."""
    recipe = load_recipe(name).override(changes)
    with torch.device("meta"):
        grid = RoutingGrid(recipe.grid)
        architecture = Architecture.staircase(grid) if plain else recipe.architecture()
        head = recipe.task.make(recipe.grid).head(recipe.grid)
        return recipe, TaskNet(RouteNet(architecture, recipe.gates), head)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PLAIN))
def test_plain_networks_are_those_of_the_tables(name):
    _, net = network(name, plain=True)
    params, gmacs = PLAIN[name]
    cost = network_cost(net)
    assert cost.params / 1e6 == pytest.approx(params, abs=0.06 if "_b" in name else 1.0)
    if gmacs is not None:
        assert cost.macs / 1e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("size", list(RETINANET))
def test_retinanet_is_that_of_the_table(size):
    grid = {"preset": f"dit_{size}", "image_size": [800, 1333]}
    recipe, net = network("dit_b2_coco_retinanet_1x", plain=True, grid=grid)
    cost = network_cost(net)
    assert cost.params / 1e6 == pytest.approx(RETINANET[size], abs=0.06)
    older = recipe.override({"task.beyond": "pyramid"})
    with torch.device("meta"):
        of_pyramid = TaskNet(net.backbone, older.task.make(older.grid).head(older.grid))
    more = 9 * 256 * (net.spec.width(32) - 256)  # a convolution of 3 x 3 from the backbone's width, not from 256
    assert cost.params - network_cost(of_pyramid).params == more


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ROUTED_GMACS))
def test_a_backbone_within_its_budget_has_the_macs_of_the_papers_table(name):
    recipe, net = network(name, plain=False)
    head = network_cost(net).macs - network_cost(net.backbone).macs
    assert (recipe.budget_macs() + head) / 1e9 == pytest.approx(ROUTED_GMACS[name], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit_b2_coco_retinanet_1x", "dit_b1_coco_maskrcnn_3x", "dit_b1_ade20k_semfpn"])
def test_torch_counts_the_whole_network_at_its_size(name):
    recipe, net = network(name, plain=True)
    assert torch_macs(net, recipe.grid.image_size).macs == network_cost(net).macs


def test_schedules_are_the_papers():
    for size in ("b1", "b2", "b3", "b4"):
        for schedule, epochs, milestones in (("1x", 12, (8, 11)), ("3x", 36, (27, 33))):
            train = (recipe := load_recipe(f"dit_{size}_coco_maskrcnn_{schedule}")).train
            assert (train.epochs, train.batch_size, train.lr, train.weight_decay) == (epochs, 16, 1e-4, 1e-4)
            assert tuple(round(share * epochs, 2) for share in train.decay_fracs) == milestones
            steps = train.warmup_epochs * 118_287 * (1 - recipe.data.val_fraction) / train.batch_size
            assert steps == pytest.approx(500, rel=0.02)  # mmdetection's warm-up
            assert tuple(recipe.grid.image_size) == (800, 1333)
            assert recipe.data.shorter_sides == (() if schedule == "1x" else tuple(range(480, 801, 32)))
        train = (recipe := load_recipe(f"dit_{size}_ade20k_semfpn")).train
        assert (train.batch_size, train.lr, train.weight_decay, train.schedule) == (16, 1e-4, 1e-4, "poly")
        steps = train.epochs * (20_210 * (1 - recipe.data.val_fraction) // train.batch_size)
        assert steps == pytest.approx(40_000, rel=0.02)
        assert tuple(recipe.grid.image_size) == (512, 512)
