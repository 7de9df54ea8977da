"""A trained network moved to another image size: the same weights, and the recipe of that size."""

import pytest
import torch
from dense_tiny import dense, dense_net
from train_tiny import tiny
from workflow_tiny import logits

from routespace import (
    BundleError,
    SpecError,
    TaskNet,
    evaluate_network,
    extract,
    load_recipe,
    load_run,
    verify,
)
from routespace.deploy.extract import resized
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.preprocess import Preprocess
from routespace.train.macs import counted_macs
from routespace.train.recipe.resizing import resized_recipe
from routespace.workflow.artifacts import Artifact


@pytest.fixture(scope="module")
def run(run_folder):
    """A finished run of a supernet on images of 64 px."""
    return load_run(run_folder)


@pytest.mark.parametrize("size", [(48, 48), (40, 56), (96, 96)])
def test_a_moved_network_computes_the_same_and_costs_what_such_images_cost(run, size):
    moved = run.resized(size)
    whole = run.net.architecture
    assert moved.net.spec.image_size == size
    assert moved.net.architecture.edges == whole.edges
    assert moved.net.execution == run.net.execution
    assert torch.equal(logits(moved.net, size), logits(run.net, size))
    assert counted_macs(moved.net, {}) == architecture_cost(whole, image_size=size, gates=run.net.gate_spec).macs
    assert counted_macs(moved.net, run.usage) == pytest.approx(counted_macs(run.net, run.usage, image_size=size))
    assert (moved.usage, moved.scores, moved.folder, moved.card) == (run.usage, run.scores, run.folder, None)


def test_its_weights_are_its_own(run):
    moved = run.resized(48)
    before = logits(run.net, (48, 48))
    with torch.no_grad():
        for parameter in moved.net.parameters():
            parameter.zero_()
    assert torch.equal(logits(run.net, (48, 48)), before)


def test_its_images_are_of_that_size_and_what_is_on_them_shrinks_along(run):
    moved = run.resized(48)
    assert moved.recipe.grid.image_size == moved.preprocess.size == (48, 48)
    assert moved.recipe.data.digit_px == (21, 42)  # of 28 to 56
    images, _ = next(iter(moved.held_out().val))
    assert images.shape[-2:] == (48, 48)
    report = evaluate_network(moved.net, moved.recipe, split="val", speed=False)
    assert report["images"] == 32
    assert report["macs"] == counted_macs(moved.net, {})
    kept = {"grid", "data", "train", "gates", "budget"}
    assert moved.recipe.model_dump(include=kept - {"grid", "data"}) == run.recipe.model_dump(
        include=kept - {"grid", "data"}
    )
    assert run.recipe.grid.image_size == (64, 64)


def test_its_own_size_is_itself(run):
    assert run.resized(64) is run
    assert run.resized((64, 64)) is run


def test_a_recipe_that_was_given_for_the_data_alone_goes_by_the_network_s_size(run, tmp_path):
    given = load_recipe("digits_small", ["grid.image_size=96", "data.digit_px=[24,48]"])
    moved = Artifact(tmp_path, run.net, given, None, None).resized(32)
    assert moved.recipe.grid.image_size == (32, 32)
    assert moved.recipe.data.digit_px == (12, 24)  # of the network's 64 px
    assert moved.preprocess is None


def test_without_a_recipe_the_size_is_that_of_the_middle_that_is_cut_out(run, tmp_path):
    fed = Preprocess(size=(64, 64), crop_pct=0.875)
    moved = Artifact(tmp_path, run.net, None, None, None, fed, ("a",)).resized((48, 32))
    assert moved.recipe is None
    assert moved.preprocess == Preprocess(size=(48, 32), crop_pct=0.875)
    whole = Artifact(tmp_path, run.net, None, None, None, fed.inside(multiple=32), ("a",))
    with pytest.raises(BundleError, match=r"has no recipe.yaml; name the recipe of its data with --recipe"):
        whole.resized(48)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (20, "image_size: 20x20 px is too small for this grid of family pvt_v2; give at least 32 px a side"),
        ("96", "image_size: '96' is not allowed; give a side from 1 to 16384 px, or two"),
        (True, "image_size: True is not allowed"),
        (0, "image_size: 0 is not allowed"),
        (99_999, "image_size: 99999 is not allowed"),
        ((96, 96, 3), r"image_size: \(96, 96, 3\) is not allowed"),
        (48.0, "image_size: 48.0 is not allowed"),
    ],
)
def test_sizes_that_the_grid_does_not_take_are_told_in_its_words(run, size, words):
    with pytest.raises(SpecError, match=words):
        run.resized(size)


def test_windows_that_were_asked_for_must_fit_the_smaller_map():
    spec = GridSpec(
        layers=2, max_down=8, family="swin_v2", widths=(8, 16), heads=(1, 2), mlp_ratios=(2, 2), window=4,
        image_size=32, num_classes=10,
    )  # fmt: skip
    net = TaskNet.classifier(Architecture.full(RoutingGrid(spec))).eval()
    moved = resized(net, 20)
    assert torch.equal(logits(moved, (20, 20)), logits(net, (20, 20)))
    with pytest.raises(SpecError, match="window: 4 does not fit the finest map of 3x3 tokens; give at most 3"):
        resized(net, 12)


def test_held_gates_are_held_at_the_new_size():
    recipe = tiny()
    net = TaskNet.classifier(recipe.architecture()).eval()
    net.decide(held=Architecture.staircase(net.architecture.grid))
    assert torch.equal(logits(resized(net, 24), (24, 24)), logits(net, (24, 24)))


def test_a_part_of_a_bare_backbone_is_compared_at_its_own_size():
    whole = TaskNet.classifier(tiny().architecture()).eval().backbone
    moved = resized(whole, 24)
    part = Architecture.staircase(moved.architecture.grid)
    report = verify(whole, part, extract(moved, part))
    assert report.ok
    assert report.max_difference <= 1e-6
    assert whole.spec.image_size == (32, 32)


def test_tiny_objects_keep_eight_pixels_and_a_budget_its_share():
    recipe = tiny(data__digit_px=[9, 30], budget__macs=200_000, budget__ratio=None)
    small = resized_recipe(recipe, (16, 16))
    assert small.data.digit_px == (8, 15)
    whole = recipe.architecture()
    share = architecture_cost(whole, image_size=16).macs / architecture_cost(whole).macs
    assert small.budget.macs == round(200_000 * share)
    scenes = tiny(data={"kind": "scenes", "object_px": [7, 30]})
    assert resized_recipe(scenes, (24, 40)).data.object_px == (7, 22)  # by the shorter side; it was under eight
    assert resized_recipe(scenes, (64, 64)).data.object_px == (14, 60)


def test_what_finds_objects_moves_where_its_recipe_says_how_large_pictures_go_in(tmp_path):
    recipe = dense({"kind": "detect", "classes": 10}, data__digits_per_scene=[1, 2])
    net = dense_net("detect", classes=10).eval()
    fed = recipe.preprocess
    moved = Artifact(tmp_path, net, recipe, None, {}, fed, tuple("0123456789")).resized(24)
    assert moved.recipe.data.digit_px == (12, 22)
    assert moved.preprocess == moved.recipe.preprocess
    assert moved.preprocess.size == (24, 24)
    images, _ = next(iter(moved.held_out().val))
    assert images[0].shape[-2:] == (24, 24)
    pictures = recipe.override({"data": {"kind": "coco", "root": str(tmp_path)}})
    assert resized_recipe(pictures, (24, 24)).preprocess.size == (24, 24)
    sized = pictures.override({"data.eval_size": [32, 48]})
    with pytest.raises(SpecError, match=r"image_size: data.eval_size \[32, 48\] says how large"):
        Artifact(tmp_path, net, sized, None, {}).resized(24)
    drawn = pictures.override({"data.shorter_sides": [24, 32]})
    with pytest.raises(SpecError, match=r"image_size: data.shorter_sides \[24, 32\] says how large"):
        Artifact(tmp_path, net, drawn, None, {}).resized(24)
