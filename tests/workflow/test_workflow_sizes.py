"""Extraction at another image size: the part, the bundle, fine-tuning, and the best of several sizes."""

import re

import numpy as np
import pytest
import torch
from dense_tiny import dense, dense_net
from PIL import Image
from workflow_tiny import logits

from routespace import (
    BudgetError,
    Predictor,
    SpecError,
    derive,
    evaluate_network,
    extract_bundle,
    load_run,
    verify,
)
from routespace.grid.cost import architecture_cost
from routespace.train.macs import counted_macs
from routespace.workflow.artifacts import Artifact, load_artifact
from routespace.workflow.choosing import choose
from routespace.workflow.cutting import cut_down
from routespace.workflow.fine_tuning import FineTuning
from routespace.workflow.sizing import choose_size


@pytest.fixture(scope="module")
def run(run_folder):
    """A finished run of a supernet on images of 64 px."""
    return load_run(run_folder)


def test_the_part_is_that_of_the_moved_network(run, tmp_path):
    moved, limit = run.resized(48), 0.5 * run.recipe.base_macs()
    taken = extract_bundle(run, tmp_path / "small", macs=limit, image_size=48)
    part = choose(moved, {"macs": limit})
    assert taken.net.architecture == part
    whole = moved.net.restrict(part).eval()
    assert (logits(taken.net, (48, 48)) - logits(whole, (48, 48))).abs().max() <= 1e-6
    assert taken.card.macs == architecture_cost(part, image_size=48).macs <= limit
    assert (
        architecture_cost(choose(run, {"macs": limit})).macs <= limit < architecture_cost(part, image_size=64).macs
    )
    report = verify(run.net, part, taken.net)  # the original: it is moved there
    assert report.ok
    assert report.keys == (len(taken.net.state_dict()), len(run.net.state_dict()))
    assert not verify(run.net, part, moved.net.restrict(part)).shared_weights
    assert verify(moved.net, part, moved.net.restrict(part)).shared_weights


def test_the_bundle_is_of_the_new_size_through_and_through(run, tmp_path):
    taken = extract_bundle(run, tmp_path / "small", image_size=48)
    assert taken.card.macs <= run.recipe.budget_macs()  # that of the recipe's own size
    bundle = load_artifact(tmp_path / "small")
    assert bundle.recipe == run.resized(48).recipe
    assert bundle.preprocess.size == (48, 48)
    before, after = bundle.scores
    assert (before.image_size, after.image_size) == ((64, 64), (48, 48))
    assert before.value == evaluate_network(run.net, run.recipe, split="val", speed=False)["accuracy"]
    assert after.value == evaluate_network(bundle.net, bundle.recipe, split="val")["accuracy"] == taken.score
    assert before.on == "32 val images of digits at 64x64 px"
    assert bundle.card.provenance.parent == run.net.architecture.hash
    assert bundle.card.provenance.recipe_hash == run.recipe.hash
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)).save(photo)
    fed = torch.from_numpy(bundle.preprocess.read(photo))[None]
    assert fed.shape == (1, 3, 48, 48)
    (found,) = Predictor(tmp_path / "small")([photo])
    with torch.no_grad():
        wanted = taken.net(fed).logits.softmax(1)[0].sort(descending=True).values
    assert found.scores == pytest.approx(wanted[: len(found.scores)].tolist(), abs=1e-5)


def test_it_is_fine_tuned_at_that_size_in_steps_as_well(run, tmp_path):
    moved, tuning = run.resized(48), FineTuning(2, most_cut=0.2)
    limit = {"macs": 0.7 * counted_macs(moved.net, moved.usage)}
    stage = cut_down(moved, limit, tuning, by="usage")
    assert stage.cuts == 1
    assert stage.artifact.net.spec.image_size == (48, 48)
    taken = extract_bundle(run, tmp_path / "small", limits=limit, image_size=48, tuning=tuning)
    assert taken.card.macs <= limit["macs"]
    assert taken.net.spec.image_size == (48, 48)
    assert [score.image_size for score in taken.card.scores] == [(64, 64), (48, 48), (48, 48)]
    assert taken.tuned["teacher"] == str(run.folder)
    report = evaluate_network(taken.net, moved.recipe, split="val")
    assert report["accuracy"] == taken.tuned["accuracy"]


def test_of_several_sizes_the_best_on_validation_is_taken(run, tmp_path):
    limits, sizes = {"macs": 0.5 * run.recipe.base_macs()}, [32, (48, 64), 64, (64, 64)]
    found = choose_size(run, sizes, limits, way="usage")
    assert [each.image_size for each in found.tried] == [(32, 32), (48, 64), (64, 64)]
    for each in found.tried:
        moved = run.resized(each.image_size)
        part = choose(moved, limits)
        report = evaluate_network(moved.net.restrict(part), moved.recipe, split="val")
        assert (each.score, each.macs) == (report["accuracy"], architecture_cost(part).macs)
    best = max(found.tried, key=lambda each: (each.score, -each.macs))
    assert found.artifact.net.spec.image_size == best.image_size
    taken = extract_bundle(run, tmp_path / "small", limits=limits, image_size=sizes)
    assert taken.net.architecture == found.part
    assert taken.tried == found.tried
    assert taken.score == best.score


def test_of_equals_the_one_of_the_fewest_macs_is_taken(run, monkeypatch):
    monkeypatch.setattr("routespace.workflow.sizing.evaluate", lambda net, *args, **options: {"accuracy": 0.5})
    for sizes in ([48, 64], [64, 48]):
        found = choose_size(run, sizes, {"macs": 0.9 * run.recipe.base_macs()}, way="usage")
        fewest = min(found.tried, key=lambda each: each.macs)
        assert found.artifact.net.spec.image_size == fewest.image_size


def test_sizes_at_which_nothing_fits_are_left_out_with_a_word(run, tmp_path):
    least = min_macs(run)
    found = choose_size(run, [64, 32], {"macs": least - 1}, way="usage")
    fine, fits = found.tried
    assert (fine.macs, fine.score) == (None, None)
    assert "least possible" in fine.why_not
    assert fits.macs < least
    assert found.artifact.net.spec.image_size == (32, 32)
    with pytest.raises(
        BudgetError, match=r"image_size: nothing fits at any of 2 sizes; at 32x32 px: macs: .*least"
    ):
        extract_bundle(run, tmp_path / "no", macs=1000, image_size=[64, 32])
    with pytest.raises(SpecError, match="image_size: none was given"):
        extract_bundle(run, tmp_path / "no", image_size=[])
    with pytest.raises(SpecError, match="image_size: 8x8 px is too small"):
        extract_bundle(run, tmp_path / "no", image_size=[64, 8])
    assert not (tmp_path / "no").exists()


def min_macs(run) -> int:
    """The fewest that a part of the network takes."""
    with pytest.raises(BudgetError) as told:
        derive(run.net.architecture, run.usage, macs=1)
    return int(re.search(r"least possible\D*(\d+)", str(told.value))[1])


def test_a_static_network_and_a_bundle_are_taken_whole_at_another_size(run, tmp_path):
    extract_bundle(run, tmp_path / "static", evaluated=False)
    static = load_artifact(tmp_path / "static")
    taken = extract_bundle(static, tmp_path / "small", image_size=(40, 56))
    assert taken.net.architecture.edges == static.net.architecture.edges
    assert torch.equal(logits(taken.net, (40, 56)), logits(static.net, (40, 56)))
    assert [score.image_size for score in taken.card.scores] == [(64, 64), (40, 56)]
    same = extract_bundle(static, tmp_path / "same", image_size=64)  # its own size changes nothing
    assert same.net.architecture == static.net.architecture


def test_the_candidates_of_a_smaller_size_are_evaluated_there(run, tmp_path):
    limits, moved = {"macs": 0.5 * run.recipe.base_macs()}, run.resized(48)
    taken = extract_bundle(run, tmp_path / "small", limits=limits, image_size=48, by="candidates")
    used = evaluate_network(moved.net.restrict(choose(moved, limits)), moved.recipe, split="val")
    assert taken.score >= used["accuracy"]
    assert taken.net.spec.image_size == (48, 48)
    assert taken.card.macs <= limits["macs"]


def test_what_finds_objects_is_extracted_at_a_smaller_size(tmp_path):
    recipe = dense({"kind": "detect", "classes": 10}, data__digits_per_scene=[1, 2])
    net = dense_net("detect", classes=10).eval()
    found = Artifact(tmp_path, net, recipe, None, {}, recipe.preprocess, tuple("0123456789"))
    taken = extract_bundle(
        found, tmp_path / "small", macs=0.8 * recipe.base_macs(), image_size=24, evaluated=False
    )
    assert load_artifact(tmp_path / "small").preprocess.size == (24, 24)
    assert verify(net, taken.net.architecture, taken.net).ok
