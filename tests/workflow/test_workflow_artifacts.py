"""Runs and bundles from Python: loading, extracting, evaluating, and what is refused before any work."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_grid import TINY_GRID
from workflow_tiny import TINY

from routespace import (
    Architecture,
    BundleError,
    Card,
    DataError,
    GridSpec,
    RoutingGrid,
    SpecError,
    TaskNet,
    evaluate_network,
    extract_bundle,
    load_bundle,
    load_recipe,
    load_run,
    save_bundle,
    train_recipe,
    verify,
)
from routespace.deploy.export.load import load_exported
from routespace.nn.running import pick_device
from routespace.preprocess import load_preprocess, preprocess_from_json
from routespace.workflow import extraction, series
from routespace.workflow.artifacts import load_artifact
from routespace.workflow.choosing import choose
from routespace.workflow.exporting import export_artifact
from routespace.workflow.fine_tuning import FineTuning, fine_tuned_recipe
from routespace.workflow.taking import saved, take_chosen


@pytest.fixture(scope="module")
def run(run_folder):
    """The folder of a finished run of a supernet."""
    return run_folder


def test_a_run_from_python_to_a_bundle(run, tmp_path):
    loaded = load_run(run)
    assert not loaded.net.training
    assert loaded.recipe == load_recipe(run)
    taken = extract_bundle(run, tmp_path / "small", macs=round(0.6 * loaded.recipe.base_macs()))
    small = load_bundle(tmp_path / "small")
    assert small.card == taken.card
    assert small.card.macs <= 0.6 * loaded.recipe.base_macs()
    assert verify(loaded.net, small.net.architecture, small.net).ok
    report = evaluate_network(small.net, loaded.recipe, split="val")
    assert report["accuracy"] == taken.score
    assert report["images"] == 32
    whole = evaluate_network(loaded.net, loaded.recipe, split="val", speed=False)
    assert whole["accuracy"] == taken.score_whole
    assert load_artifact(tmp_path / "small").require_recipe() == loaded.recipe


def test_a_part_is_fine_tuned_by_what_it_was_cut_from(run, tmp_path):
    lines = []
    found = load_run(run)
    chosen = choose(found, {"macs": round(0.6 * found.recipe.base_macs())})
    taken = take_chosen(found, chosen, tuning=FineTuning(1), tell=lines.append)
    assert saved(taken, found, tmp_path / "small").net is taken.net
    assert any(line.startswith(f"teacher: {run}, ") for line in lines)
    small = load_bundle(tmp_path / "small")
    before, cut, after = small.card.scores
    assert (before.value, cut.value) == (taken.score_whole, taken.score)
    assert (after.stage, after.value, after.images) == ("fine_tuned", taken.tuned["accuracy"], 32)
    assert taken.tuned["teacher"] == str(run)
    assert taken.tuned["epochs"] == 1
    assert small.net.architecture == chosen
    weights = found.net.restrict(chosen).state_dict()
    assert any(not torch.equal(weights[name], tensor) for name, tensor in small.net.state_dict().items())
    report = evaluate_network(small.net, found.recipe, split="val")
    assert report["accuracy"] == taken.tuned["accuracy"]


def test_what_a_fine_tuning_cannot_do_is_told(run, tmp_path):
    with pytest.raises(SpecError, match="finetune: 0 epochs are not allowed; give 1 or more"):
        FineTuning(0)
    found = load_run(run)
    assert fine_tuned_recipe(found, FineTuning(2, "none")).train.teacher is None
    elsewhere = replace(found, recipe=found.recipe.override({"train.device": "cuda"}))  # trained where a GPU was
    assert fine_tuned_recipe(elsewhere, FineTuning(2)).train.device == "auto"
    assert fine_tuned_recipe(found, FineTuning(2)).train.device == "cpu"


def test_what_a_recipes_teacher_saw_does_not_bind_a_fine_tuning_without_one(run):
    found = load_run(run)
    taught = found.recipe.override({"train.teacher": str(run), "train.teacher_images": "own"})
    found = replace(found, recipe=taught)
    assert fine_tuned_recipe(found, FineTuning(2, "none")).train.teacher_images == "resized"
    assert fine_tuned_recipe(found, FineTuning(2)).train.teacher_images == "own"


def test_gates_that_are_fine_tuned_slowly_do_not_become_faster(run):
    found = load_run(run)
    slow = replace(found, recipe=found.recipe.override({"train.gate_lr": 2e-5, "train.min_lr": 2e-5}))
    train = fine_tuned_recipe(slow, FineTuning(2), gated=True).train
    assert (train.gate_lr, train.min_lr) == (5e-6, 5e-6)


def test_a_teacher_that_cannot_teach_is_told_before_the_work(run, tmp_path, monkeypatch):
    for module, name in ((extraction, "take_as_wished"), (series, "_Chain")):
        monkeypatch.setattr(module, name, None)  # the work
    grid = RoutingGrid(GridSpec(**TINY_GRID | {"num_classes": 5}))
    net = TaskNet.classifier(Architecture.staircase(grid))
    save_bundle(net, tmp_path / "five", Card.of(net))
    base, refused = load_recipe(run).base_macs(), {
        "nosuch": r"train.teacher: .*nosuch: does not exist",
        "five": r"train.teacher: .*five: it tells 5 classes without names, the data has 10",
        "self": "'self' needs gates, and what is taken out has none",
    }  # fmt: skip
    for name, words in refused.items():
        tuning = FineTuning(1, name if name == "self" else str(tmp_path / name))
        with pytest.raises(SpecError, match=words):
            extract_bundle(run, tmp_path / "small", tuning=tuning)
        with pytest.raises(SpecError, match=words):
            series.extract_series(run, tmp_path / "small", macs=[0.6 * base, 0.5 * base], tuning=tuning)
    assert not (tmp_path / "small").exists()


def test_without_a_limit_the_recipe_s_own_budget_holds(run, tmp_path):
    taken = extract_bundle(run, tmp_path / "small", evaluated=False)
    assert taken.card.macs <= load_recipe(run).budget_macs()
    assert taken.score is None


def test_what_stands_in_the_way_is_told_before_anything_is_loaded(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for place in (tmp_path / "full", tmp_path / "full" / "thesis.txt", tmp_path / "full" / "thesis.txt" / "x"):
        with pytest.raises(BundleError, match=str(place)):
            extract_bundle(tmp_path / "no such run", place)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_what_is_no_run_is_told_by_what_it_is(run, tmp_path):
    extract_bundle(run, tmp_path / "small", evaluated=False)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("small", "is a bundle, not a run"),
        ("file", "is a file"),
        ("empty", "has no network"),
        ("none", "does not exist"),
    ):
        with pytest.raises(BundleError, match=words):
            load_run(tmp_path / name)


def test_only_held_out_splits_are_evaluated(run):
    loaded = load_run(run)
    with pytest.raises(SpecError, match="split: 'train' was given; give 'test' or 'val'"):
        evaluate_network(loaded.net, loaded.recipe, split="train")
    nowhere = loaded.recipe.override({"data.kind": "folder", "data.root": "/nowhere"})
    with pytest.raises(DataError, match="nowhere"):
        evaluate_network(loaded.net, nowhere)


def test_devices_by_their_words():
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if there else "cpu")
    for word in ("", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "meta"):
        if word == "cuda:" and there:
            continue
        with pytest.raises(SpecError, match="device"):
            pick_device(word)
    with pytest.raises(SpecError, match=f"device: 'cuda:{there}' is not there"):
        pick_device(f"cuda:{there}")


def test_a_card_tells_the_network_s_whole_life_and_on_which_images(run, tmp_path):
    part = extract_bundle(run, tmp_path / "part", macs=round(0.6 * load_recipe(run).base_macs()))
    assert [(score.stage, score.value) for score in part.card.scores] == [
        ("before_extraction", part.score_whole),
        ("extracted", part.score),
    ]
    assert {score.on for score in part.card.scores} == {"32 val images of digits at 64x64 px"}
    assert {score.metric for score in part.card.scores} == {part.metric} == {"accuracy"}
    given = load_artifact(tmp_path / "part")
    earlier = [score.model_dump(mode="json") for score in given.scores]
    recipe = load_recipe("digits_tiny", TINY)
    train_recipe(recipe, tmp_path / "tuned", init=given.net, earlier=earlier)
    tuned = extract_bundle(tmp_path / "tuned", tmp_path / "whole")
    assert tuned.card.architecture == part.card.architecture
    assert tuned.card.scores[:2] == part.card.scores
    assert [score.stage for score in tuned.card.scores] == ["before_extraction", "extracted", "fine_tuned"]
    assert tuned.card.scores[2].value == tuned.score == tuned.score_whole
    untimed = extract_bundle(tmp_path / "tuned", tmp_path / "unmeasured", evaluated=False)
    assert untimed.card.scores == tuned.card.scores  # the run's own result
    copied = extract_bundle(tmp_path / "part", tmp_path / "copied")  # a bundle of a bundle: its card goes on
    assert copied.card.scores == part.card.scores
    unknown = extract_bundle(run, tmp_path / "unknown", evaluated=False)
    assert unknown.card.scores == ()
    plain = train_recipe(recipe.override({"routing": "static"}), tmp_path / "plain")
    (score,) = extract_bundle(plain.folder, tmp_path / "static").card.scores
    assert (score.stage, score.value) == ("trained", plain.metrics["accuracy"])


def test_a_fine_tuning_that_was_resumed_still_knows_its_network(run, tmp_path):
    given = extract_bundle(run, tmp_path / "part", macs=round(0.6 * load_recipe(run).base_macs()))
    recipe, out = load_recipe("digits_tiny", TINY), tmp_path / "tuned"
    earlier = [score.model_dump(mode="json") for score in given.card.scores]
    train_recipe(recipe, out, init=given.net, earlier=earlier)
    (out / "result.json").unlink()
    train_recipe(recipe, out, resume=True, asked=())
    assert [score.stage for score in load_run(out).scores] == ["before_extraction", "extracted", "fine_tuned"]


def test_a_bundle_without_room_for_its_papers_is_none(run, tmp_path, monkeypatch):
    def full(path, *args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(BundleError, match="No space left"):
        extract_bundle(run, tmp_path / "small", evaluated=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # that such files predict as evaluation does is a quick test
@pytest.mark.parametrize("forms", [["pt2"], ["onnx", "pt2"]], ids=str)
def test_exports_carry_preprocess_and_class_names(run, forms, tmp_path):
    extract_bundle(run, tmp_path / "small", evaluated=False)
    bundle = load_artifact(tmp_path / "small")
    reports = export_artifact(bundle, tmp_path / "out", forms)
    assert [report.path.name for report in reports] == [f"model.{form}" for form in forms]
    beside = load_preprocess(tmp_path / "out")
    assert beside == (bundle.preprocess, bundle.classes)
    for report in reports:
        told = load_exported(report.path).metadata["preprocess"]
        assert preprocess_from_json(json.loads(told)) == beside
    assert bundle.classes == tuple("0123456789")


def test_bad_exports_leave_nothing(run, tmp_path):
    bundle = load_artifact(run)
    with pytest.raises(SpecError, match="at least"):
        export_artifact(bundle, tmp_path / "tiny", ["onnx"], image_size=(7, 7))
    with pytest.raises(SpecError, match="format: 'tflite' is not known; give one of onnx, pt2"):
        export_artifact(bundle, tmp_path / "tiny", ["onnx", "tflite"])
    assert not (tmp_path / "tiny").exists()
