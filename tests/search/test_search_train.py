"""search/evaluator.py: a study of real, very small trainings."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dense_tiny import dense
from fake_evaluator import fresh
from PIL import Image

from routespace.deploy.latency.profiling import profile
from routespace.deploy.latency.table import predict, save_table
from routespace.errors import GridError, SpecError
from routespace.grid.cost import architecture_cost
from routespace.grid.graph import RoutingGrid
from routespace.grid.usage import usage_from_json
from routespace.nn.cost import network_cost
from routespace.nn.weights import load_net
from routespace.search import load_study, run_study, trial_folder
from routespace.search.candidate import RecipeCandidate
from routespace.search.evaluator import train_candidate
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import train_recipe

RECIPE = """
name: tiny
grid: {layers: 2, max_down: 8, widths: [8, 16], heads: [1, 2], mlp_ratios: [2, 2], sr_ratios: [2, 1],
       image_size: 32, num_classes: 10}
data: {digit_px: [8, 24], train_size: 64, val_size: 32, test_size: 32}
train: {epochs: 1, batch_size: 32, device: cpu}
search:
  space:
    budget.ratio: {low: 0.6, high: 1.0, step: 0.1}
    grid.depths: [1, [1, 2]]
    gates.rows: [token, layer]
"""


def test_a_study_from_first_trial_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("routespace.train.data.loaders.Loaders.test", property(fail_test_split))
    recipe, steps = Recipe.from_yaml(RECIPE), list[Any]()
    first = run_study(recipe, tmp_path, trials=2, progress=lambda news: steps.append(news.training))
    assert first.count("finished") == 2
    assert {step.stage for step in steps if step} >= {"train", "evaluate"}
    study = run_study(recipe, tmp_path, trials=3)
    assert study == load_study(tmp_path)
    assert [trial.state for trial in study.trials] == ["finished"] * 3
    assert study.trials[:2] == first.trials
    assert study.best
    for trial in study.trials:
        folder = trial_folder(study, trial.number)
        result = json.loads((folder / "result.json").read_text())
        assert trial.values == {"accuracy": result["accuracy"], "macs": result["counted_macs"]}
        net = load_net(folder / "net")
        assert net.architecture.hash == trial.architecture
        assert trial.planned["params"] == trial.metrics["params"] == sum(p.numel() for p in net.parameters())
        # The values are those of the architecture with the usage that lies beside them.
        usage = usage_from_json(json.loads((folder / "usage.json").read_text()), net.architecture.grid)
        counted = architecture_cost(net.architecture, gates=net.gate_spec, usage=usage).macs
        assert trial.metrics["macs"] == pytest.approx(counted, rel=1e-6)
        assert trial.metrics["bytes"] == network_cost(net, usage=usage).bytes
        assert not (folder / "checkpoint").exists()
        ran = Recipe.from_yaml((folder / "recipe.yaml").read_text())
        assert ran == recipe.override({**trial.changes, "search": None})


def fail_test_split(_: object) -> None:
    raise AssertionError("a study looked at the test split")


def test_a_latency_table_predicts_the_objective(tmp_path: Path) -> None:
    recipe = Recipe.from_yaml(RECIPE).override(
        {"search.space": {"budget.ratio": [0.6, 0.9]}, "search.objectives": ["accuracy", "latency_ms"]}
    )
    path = tmp_path / "table.json"
    table = profile(RoutingGrid(recipe.grid), gates=recipe.gates, rounds=3, subnets=0, clock="cpu")
    save_table(table, path)
    tabled = recipe.override({"search.latency_table": str(path)})
    study = run_study(tabled, tmp_path / "study", trials=2)
    for trial in study.trials:
        folder = trial_folder(study, trial.number)
        net = load_net(folder / "net")
        usage = usage_from_json(json.loads((folder / "usage.json").read_text()), net.architecture.grid)
        assert trial.values["latency_ms"] == pytest.approx(predict(table, net.architecture, usage))
    assert run_study(tabled, tmp_path / "study", trials=2).trials == study.trials
    with pytest.raises(SpecError, match="measures them"):
        run_study(recipe, tmp_path / "study", trials=3)
    with pytest.raises(SpecError, match=r"varies grid\.depths"):
        run_study(tabled.override({"search.space": {"grid.depths": [1, 2]}}), tmp_path / "other", trials=1)
    # The grid of the trials counts, not the recipe's own.
    moved = tabled.override({"grid.layers": 3, "search.overrides": {"grid.layers": 2}})
    assert run_study(moved, tmp_path / "moved", trials=1).count("finished") == 1
    with pytest.raises(GridError, match="latency table"):
        run_study(tabled.override({"grid.layers": 3}), tmp_path / "other", trials=1)
    with pytest.raises(SpecError, match=r"search\.objectives"):
        run_study(tabled.override({"search.objectives": ["accuracy"]}), tmp_path / "other", trials=1)
    with pytest.raises(SpecError, match="cannot be read"):
        run_study(recipe.override({"search.latency_table": "nowhere.json"}), tmp_path / "other", trials=1)
    assert not (tmp_path / "other").exists()


def test_an_interrupted_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    candidate = RecipeCandidate.of(Recipe.from_yaml(RECIPE), {"train.epochs": 2})
    whole = train_recipe(candidate.recipe, tmp_path / "whole").metrics

    def stop(news: Any) -> None:
        if news.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        train_candidate(candidate, fresh(folder, report=stop), objectives=())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1  # of the first epoch; the second is in its midst
    found = train_candidate(candidate, fresh(folder, resume=True), objectives=())
    assert (found["accuracy"], found["loss"], found["macs"]) == (
        whole["accuracy"],
        whole["loss"],
        whole["counted_macs"],
    )


@pytest.mark.filterwarnings("ignore:fewer than 5 validation images")
def test_an_interrupted_training_goes_on_though_its_data_is_named_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run keeps the absolute path of its data; the study's recipe may name it from the working folder."""
    monkeypatch.chdir(tmp_path)
    for number in range(16):
        picture = Path(f"photos/train/{'ab'[number % 2]}/{number}.png")
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (9 * number, 0, 0)).save(picture)
    data = {"kind": "folder", "root": "photos", "val_fraction": 0.25}
    changes = {"data": data, "grid.num_classes": 2, "train.epochs": 2, "train.batch_size": 4}
    recipe = Recipe.from_yaml(RECIPE).override(changes | {"search.space": {"budget.ratio": [0.9]}})
    candidate, epochs = RecipeCandidate.of(recipe, {}), list[int]()

    def stop(news: Any) -> None:
        if news.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train_candidate(candidate, fresh(tmp_path / "run", report=stop), objectives=())
    place = fresh(tmp_path / "run", resume=True, report=lambda news: epochs.append(news.epoch))
    train_candidate(candidate, place, objectives=())
    assert set(epochs) == {2}


def test_a_folder_without_a_run_or_of_another_one_starts_anew(tmp_path: Path) -> None:
    made = RecipeCandidate.of(Recipe.from_yaml(RECIPE), {"train.epochs": 0})
    (tmp_path / "run").mkdir()
    (tmp_path / "run/architecture.json").write_text("{")  # killed while it began
    train_candidate(made, fresh(tmp_path / "run", resume=True), objectives=())
    elsewhere = replace(made, recipe=made.recipe.override({"data.workers": 1}))
    train_candidate(elsewhere, fresh(tmp_path / "run", resume=True), objectives=())
    assert Recipe.from_yaml((tmp_path / "run/recipe.yaml").read_text()) == made.recipe
    other = replace(made, recipe=made.recipe.override({"seed": 1}))
    found = train_candidate(other, fresh(tmp_path / "run", resume=True), objectives=("latency_ms",))
    assert found["latency_ms"] > 0
    assert Recipe.from_yaml((tmp_path / "run/recipe.yaml").read_text()) == other.recipe


@pytest.mark.slow
def test_a_study_of_detectors_wants_ap_against_macs(tmp_path: Path) -> None:
    space = {"search": {"space": {"budget.ratio": [0.6, 0.9]}}}
    small = {"batch_size": 8, "epochs": 1, "device": "cpu"}
    recipe = dense({"kind": "detect", "classes": 10, "width": 32}, routing="depth", data__val_size=8)
    recipe = Recipe.parse(recipe.to_data() | space).override({f"train.{name}": small[name] for name in small})
    study = run_study(recipe.override({"data.train_size": 16}), tmp_path, trials=2)
    assert [trial.state for trial in study.trials] == ["finished"] * 2
    for trial in study.trials:
        result = json.loads((trial_folder(study, trial.number) / "result.json").read_text())
        assert trial.values == {"box_ap": result["box_ap"], "macs": result["counted_macs"]}
        assert "box_ap50" in result
