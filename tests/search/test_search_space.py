"""search/space.py, candidate.py and sampler.py: what a space is, and which points of it are tried."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from tiny_grid import TINY_GRID

from routespace.errors import BudgetError, RoutespaceError, SpecError
from routespace.search.candidate import RecipeCandidate
from routespace.search.problem import recipe_problem
from routespace.search.sampler import Points, Rank, make_sampler
from routespace.search.space import Space
from routespace.train.macs import closed_macs
from routespace.train.recipe.recipe import Recipe


def recipe(space: dict[str, Any], **search: Any) -> Recipe:
    return Recipe.parse(
        {"name": "tiny", "grid": TINY_GRID, "data": {"digit_px": [8, 24]}, "search": {"space": space, **search}}
    )


def test_every_kind_of_field_is_drawn_in_its_type() -> None:
    made = recipe(
        {
            "budget.ratio": {"low": 0.3, "high": 0.65, "step": 0.1},
            "train.lr": {"low": 1e-4, "high": 1e-2, "log": True},
            "grid.layers": {"low": 2, "high": 6, "step": 2},
            "grid.depths": [1, [1, 2], [2, 1]],
            "gates.rows": ["token", "layer"],
            "gates.early_stop": [True, False],
            "train.clip_grad": [None, 1.0],
        }
    )
    space = Space.of(made)
    seen: dict[str, set[Any]] = {name: set() for name in space.distributions}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(60):
        changes = space.suggest(study.ask())
        assert set(changes) == set(space.distributions)
        for name, value in changes.items():
            seen[name].add(tuple(value) if isinstance(value, list) else value)
    assert seen["budget.ratio"] == {0.3, 0.4, 0.5, 0.6}  # .65 is reached by no step
    assert seen["grid.layers"] == {2, 4, 6}
    assert all(type(value) is int for value in seen["grid.layers"])
    assert seen["grid.depths"] == {1, (1, 2), (2, 1)}
    assert seen["gates.early_stop"] == {True, False}
    assert seen["train.clip_grad"] == {None, 1.0}
    assert len(seen["train.lr"]) == 60
    assert min(seen["train.lr"]) < 3e-4
    assert space.size == math.inf


def test_points_of_a_finite_space() -> None:
    space = Space.of(recipe({"budget.ratio": {"low": 0.2, "high": 0.6, "step": 0.2}, "grid.depths": [1, [1, 2]]}))
    points = [space.decode(point) for point in space.points()]
    assert space.size == len(points) == 6
    assert {"budget.ratio": 0.6, "grid.depths": [1, 2]} in points


def test_the_recipes_own_point() -> None:
    made = recipe({"budget.ratio": [0.5, 0.7], "grid.depths": [1, [1, 2]], "gates.rows": ["token", "image"]})
    assert Space.of(made).values_in(made) == {"budget.ratio": 0.5, "grid.depths": 1, "gates.rows": "token"}
    listed = made.override({"grid.depths": [1, 2]})
    assert Space.of(listed).values_in(listed) == {
        "budget.ratio": 0.5,
        "grid.depths": "[1,2]",
        "gates.rows": "token",
    }
    outside = recipe({"budget.ratio": [0.6, 0.7]})
    assert Space.of(outside).values_in(outside) is None
    between = recipe({"budget.ratio": {"low": 0.3, "high": 0.7, "step": 0.15}})
    assert Space.of(between).values_in(between) is None


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"grid.layer": [2]}, r"grid\.layer: unknown field"),
        ({"nothing.layers": [2]}, r"nothing\.layers: unknown field"),
        ({"gates.rows": ["token", "tokn"]}, r"search\.space\.gates\.rows: 'tokn' is not allowed"),
        ({"budget.ratio": {"low": -1.0, "high": 0.5}}, r"search\.space\.budget\.ratio: -1\.0 is not allowed"),
        ({"grid.layers": {"low": 2.5, "high": 4}}, r"search\.space\.grid\.layers: 2\.5 is not allowed"),
        ({"gates.rows": ["token", "token"]}, r"search\.space\.gates\.rows: 'token' stands twice"),
        ({"gates": ["token"]}, r"search\.space\.gates: is a section; name one of its fields: gates\.kind"),
        ({"name": ["a", "b"]}, r"search\.space\.name: cannot be searched"),
        ({"search.trials": [1, 2]}, r"search\.space\.search\.trials: cannot be searched"),
        ({}, r"search\.space: .* varies nothing"),
        (
            {"train.epochs": {"low": 1, "high": 3, "step": 0.5}},
            r"search\.space\.train\.epochs: 1\.5 is not allowed",
        ),
        ({"train.epochs": {"low": 1.0, "high": 3.0}}, r"search\.space\.train\.epochs: 1\.7.* is not allowed"),
        ({"train.lr": {"low": 0.1, "high": 1e300}}, r"search\.space\.train\.lr\.low: .* neither beyond 2\^53"),
        ({"seed": {"low": 0, "high": 10**400}}, r"search\.space\.seed\.low: 0 .* neither beyond 2\^53"),
        ({"train.lr": {"low": 0.1, "high": 9.0, "step": 1e-300}}, r"step: 1e-300 is too small for 0\.1 to 9\.0"),
        ({"train.lr": {"low": 0.1, "high": 9.0, "step": float("inf")}}, r"step: inf must be above 0, and not bey"),
    ],
)
def test_a_wrong_space_is_named(space: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Space.of(recipe(space))


def test_no_search_and_a_field_that_stands_twice() -> None:
    with pytest.raises(SpecError, match="varies nothing"):
        Space.of(recipe({"budget.ratio": [0.5]}).override({"search": None}))
    with pytest.raises(SpecError, match=r"search\.overrides\.train\.epochs: is in search\.space too"):
        Space.of(recipe({"train.epochs": [1, 2]}, overrides={"train.epochs": 3}))


def test_candidate_costs_keys_and_limits() -> None:
    made = recipe(
        {"budget.ratio": [0.5], "grid.depths": [1]},
        overrides={"train.epochs": 3},
        limits={"macs": 100_000, "params": 12_000},
    )
    one = RecipeCandidate.of(made, {"budget.ratio": 0.5})
    assert one.recipe.train.epochs == 3
    assert one.recipe.search is None
    assert one.planned["macs"] == made.budget_macs()
    assert one.violations["macs"] == pytest.approx(one.planned["macs"] / 100_000 - 1)
    assert not one.feasible  # by its parameters
    # However it is written, the same training has the same key.
    macs = RecipeCandidate.of(made, {"budget.macs": one.planned["macs"], "budget.ratio": 0.9})
    spelled = RecipeCandidate.of(made, {"grid.depths": [1, 1], "data.workers": 2, "train.device": "cpu"})
    less_memory = RecipeCandidate.of(made, {"train.grad_checkpointing": True})
    assert one.key == macs.key == spelled.key == less_memory.key
    others = [{"budget.ratio": 0.6}, {"train.lr": 5e-4}, {"gates.rows": "layer"}, {"seed": 1}, {"grid.layers": 3}]
    assert len({one.key, *(RecipeCandidate.of(made, change).key for change in others)}) == 6
    # A static architecture has neither gates nor a budget.
    static = {"routing": "static"}
    assert (
        RecipeCandidate.of(made, static).key
        == RecipeCandidate.of(made, {**static, "gates.rows": "layer", "budget.ratio": 0.9}).key
    )
    fixed = made.override({"gates.opening": "share", "routing": "depth", "gates.source": "map"})
    least = closed_macs(fixed.architecture(), fixed.gates) / fixed.base_macs()
    with pytest.raises(BudgetError, match="leaves no tokens to gates that open a share"):
        RecipeCandidate.of(fixed, {"budget.ratio": least + 1e-3})
    with pytest.raises(RoutespaceError, match="depths: 2 numbers for 3 layers"):
        RecipeCandidate.of(made, {"grid.layers": 3, "grid.depths": [1, 2]})


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "random"])
def test_samplers_never_repeat_and_find_the_last_point(kind: Any) -> None:
    made = recipe({"budget.ratio": [0.5, 0.6, 0.7], "grid.layers": [2, 3], "grid.depths": [1, [1, 2], [2, 1, 1]]})
    points = Points(recipe_problem(made))
    study = optuna.create_study(directions=["maximize", "minimize"])
    drawn, ranks = [], []
    for number in range(18):
        trials = study.get_trials(deepcopy=False)
        assert points.left(trials)
        study.sampler = make_sampler(kind, points, trials, seed=0, number=number, trials=18)
        trial = study.ask()
        changes = points.space.suggest(trial)
        ranks.append(points.ranking(trials)(trial.params))
        drawn.append(str(changes))
        study.tell(trial, (changes["budget.ratio"], changes["grid.layers"]))
    assert len(set(drawn)) == 18
    # Two layers go with 1 and [1, 2], three with 1 and [2, 1, 1]: legal points come first.
    assert ranks == [Rank.GOOD] * 12 + [Rank.ILLEGAL] * 6
    assert not points.left(study.get_trials(deepcopy=False))


def test_a_trials_draw_depends_on_its_number_alone() -> None:
    """A study that was interrupted goes on with the points it would have drawn."""
    made = recipe({"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}})

    def run(numbers: list[int], seed: int) -> list[float]:
        points = Points(recipe_problem(made))
        study = optuna.create_study()
        found = []
        for number in numbers:
            known = study.get_trials(deepcopy=False)
            study.sampler = make_sampler("random", points, known, seed=seed, number=number, trials=4)
            trial = study.ask()
            found.append(points.space.suggest(trial)["train.lr"])
            study.tell(trial, 0.0)
        return found

    whole = run([0, 1, 2, 3], seed=0)
    assert len(set(whole)) == 4
    assert run([2, 3], seed=0) == whole[2:]
    assert run([0, 1], seed=1) != whole[:2]
