"""search/latency.py: the limit of latency, and what a trial is predicted to take before it is trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_evaluator import fresh
from tiny_grid import TINY_GRID

from routespace.deploy.latency.profiling import profile
from routespace.deploy.latency.table import LatencyTable, predict, save_table
from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.weights import load_net
from routespace.search import load_study, run_study
from routespace.search.candidate import RecipeCandidate
from routespace.search.evaluator import Workplace, train_candidate
from routespace.search.latency import even_usage, planned_ms, study_table, used_ms
from routespace.train.recipe.recipe import Recipe

GRID = RoutingGrid(GridSpec.parse(TINY_GRID))
RATIOS = {"budget.ratio": [0.5, 0.8, 1.1]}
TINY = {"name": "tiny", "grid": TINY_GRID, "data": {"digit_px": [8, 24]}}


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    """Times of our own choice: on maps this small, measured ones need not rise with the share of tokens."""
    table = profile(GRID, gates=GateSpec(), batch=2, rounds=3, subnets=0, clock="cpu")
    return table.model_copy(
        update={"parts": tuple(part.model_copy(update={"ms": part.keep**0.5}) for part in table.parts)}
    )


@pytest.fixture
def study(table: LatencyTable, tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe with a search that has the table; keywords are fields of its search."""
    path = tmp_path / "table.json"
    save_table(table, path)

    def make(**search: Any) -> Recipe:
        return Recipe.parse(TINY | {"search": {"space": RATIOS, "latency_table": str(path)} | search})

    return make


def quick(candidate: RecipeCandidate, place: Workplace) -> dict[str, float]:
    return {"accuracy": 0.5, "macs": 1.0}


def test_a_trial_beyond_the_limit_is_not_trained(
    table: LatencyTable, study: Callable[..., Recipe], tmp_path: Path
) -> None:
    free = study(objectives=["accuracy", "latency_ms"])
    planned = {
        ratio: RecipeCandidate.of(free, {"budget.ratio": ratio}, table).planned["latency_ms"]
        for ratio in (0.5, 0.8, 1.1)
    }
    limit = (planned[0.5] + planned[0.8]) / 2
    found = run_study(study(limits={"latency_ms": limit}), tmp_path / "study", evaluator=quick, trials=3)
    assert (found.count("finished"), found.count("pruned")) == (1, 2)
    for trial in found.trials:
        assert trial.planned["latency_ms"] == planned[trial.changes["budget.ratio"]]
        if trial.state == "pruned":
            assert trial.reason is not None
            assert trial.reason.startswith(f"latency_ms: {trial.planned['latency_ms']:.6g} is above the limit")
            assert trial.violations == {"latency_ms": pytest.approx(trial.planned["latency_ms"] / limit - 1)}
            assert trial.folder is None
    assert found == load_study(tmp_path / "study")
    with pytest.raises(SpecError, match=r"search\.limits\.latency_ms was .*, now is"):
        run_study(study(limits={"latency_ms": 2 * limit}), tmp_path / "study", evaluator=quick, trials=3)


def test_what_a_trained_network_takes_counts_in_the_end(study: Callable[..., Recipe], tmp_path: Path) -> None:
    def slow(candidate: RecipeCandidate, place: Workplace) -> dict[str, float]:
        return {"accuracy": 0.5, "macs": 1.0, "latency_ms": 2000.0}

    found = run_study(study(limits={"latency_ms": 1000}), tmp_path / "study", evaluator=slow, trials=1)
    assert [trial.violations for trial in found.trials] == [{"latency_ms": 1.0}]


def test_a_real_trial_is_measured_by_the_table(
    study: Callable[..., Recipe], table: LatencyTable, tmp_path
) -> None:
    settings = {"train.epochs": 0, "data.train_size": 64, "data.val_size": 16, "train.device": "cpu"}
    candidate = RecipeCandidate.of(study().override({"search.overrides": settings}), {}, table)
    found = train_candidate(candidate, fresh(tmp_path / "run"), objectives=("accuracy",), table=table)
    assert found["latency_ms"] == used_ms(table, load_net(tmp_path / "run/net"), tmp_path / "run")
    whole = predict(table, Architecture.full(GRID)) / 2
    assert 0 < found["latency_ms"] <= whole


def test_the_plan_spends_the_budget_evenly(study: Callable[..., Recipe], table: LatencyTable) -> None:
    own = study().override({"search": None})
    for routing in ("both", "depth", "scale"):
        recipe = own.override({"routing": routing})
        architecture = recipe.architecture()
        gates = recipe.gates
        usages = [even_usage(architecture, share, gates) for share in (0.0, 0.25, 1.0)]
        macs = [architecture_cost(architecture, gates=gates, usage=usage).macs for usage in usages]
        times = [planned_ms(table, recipe, architecture, macs=round(each)) for each in (*macs, 10 * macs[2])]
        spent = predict(table, architecture, usages[1]) / table.batch
        assert times[0] < times[1] < times[2] == times[3]
        assert times[1] == pytest.approx(spent, rel=1e-3)
        assert times[2] == predict(table, architecture) / table.batch
    scale = even_usage(own.override({"routing": "scale"}).architecture(), 0.5, own.gates)
    depth = even_usage(own.override({"routing": "depth"}).architecture(), 0.5, own.gates)
    for name in (name for name in depth if name.endswith("transformer")):
        assert depth[name][:2] == (0.5, 1.0)  # by token, of every image
    assert set(scale) == {name for name in GRID.edges if name.endswith("patch_embed") or "r08_transformer" in name}


def test_a_static_trial_takes_what_the_table_says(study: Callable[..., Recipe], table: LatencyTable) -> None:
    found = RecipeCandidate.of(study(overrides={"routing": "static"}), {}, table)
    assert found.planned["latency_ms"] == predict(table, Architecture.staircase(GRID)) / table.batch


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"limits": {"latency_ms": 3}, "latency_table": None}, r"search\.limits\.latency_ms: 3 ms .* --latency"),
        ({"limits": {"latency_ms": 3}, "space": {"grid.depths": [1, 2]}}, r"varies grid\.depths"),
        ({"limits": {}}, r"add latency_ms to search\.objectives or to search\.limits"),
        ({"limits": {"macs": "1M"}}, "nothing asks for it"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    study: Callable[..., Recipe], search: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        run_study(study(**search), tmp_path / "study", evaluator=quick, trials=1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "study").exists()


def test_a_limit_is_a_number_above_zero(study: Callable[..., Recipe]) -> None:
    for value in (0, -1, "fast", float("nan")):
        with pytest.raises(SpecError, match=r"search\.limits\.latency_ms"):
            study(limits={"latency_ms": value})
    with pytest.raises(
        SpecError, match=r"search\.limits\.watts: unknown field; allowed: params, macs, bytes, latency_ms"
    ):
        study(limits={"watts": 1})
    made = study(limits={"bytes": 9}).override(
        {"search.limits.latency_ms": 2.5, "search.limits.macs": "1M", "search.limits.bytes": None}
    )
    assert made.search is not None
    assert made.search.limits == {"macs": 1_000_000, "latency_ms": 2.5}
    assert Recipe.from_yaml(made.to_yaml()) == made


def test_a_point_without_a_table_says_so(study: Callable[..., Recipe]) -> None:
    with pytest.raises(SpecError, match="there is none"):
        RecipeCandidate.of(study(limits={"latency_ms": 3}), {})


def test_gates_that_the_table_does_not_know_are_said_once(study: Callable[..., Recipe], tmp_path: Path) -> None:
    limits = {"latency_ms": 1000}
    save_table(profile(GRID, rounds=3, subnets=0, clock="cpu"), tmp_path / "plain.json")
    plain = {"limits": limits, "latency_table": str(tmp_path / "plain.json")}
    with pytest.warns(UserWarning, match="holds no gates") as caught:
        run_study(study(**plain), tmp_path / "study", evaluator=quick, trials=3)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=r"of another kind \(rows\)"):
        study_table(study(limits=limits, overrides={"gates.rows": "layer"}))
    with pytest.warns(UserWarning, match=r"varies gates\.rows"):
        study_table(study(limits=limits, space={"gates.rows": ["token", "layer"]}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study_table(study(limits=limits, space={"gates.openness": [0.5, 0.9]}))
        study_table(study(**plain, overrides={"routing": "static"}))
