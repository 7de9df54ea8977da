"""The seams of a search: another kind of candidate needs a Problem alone, and a study keeps no networks."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from fake_evaluator import recipe
from optuna.distributions import CategoricalDistribution
from tiny_grid import TINY_GRID

from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.task_net import TaskNet
from routespace.search import pareto, run_study, trial_folder
from routespace.search.candidate import RecipeCandidate
from routespace.search.evaluator import Workplace
from routespace.search.objectives import directions
from routespace.search.problem import Problem
from routespace.search.records import records
from routespace.search.runner import Loop, StudyCall
from routespace.search.space import Space
from routespace.search.storage import Worker

GRID = RoutingGrid(GridSpec.parse(TINY_GRID))


@dataclass(frozen=True)
class SubnetCandidate:
    """A part of one supernet, whose weights all parts share."""

    architecture: Architecture
    limit: float
    violations: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.architecture.hash

    @property
    def planned(self) -> Mapping[str, float]:
        return architecture_cost(self.architecture).totals

    @property
    def feasible(self) -> bool:
        return self.planned["macs"] <= self.limit


def test_parts_of_a_supernet_are_searched_by_the_same_loop(tmp_path: Path) -> None:
    """No training, no recipe: a space of the rates' layers, and the supernet's own weights."""
    supernet, images = TaskNet.classifier(Architecture.full(GRID)).eval(), torch.zeros(1, 3, 32, 32)
    splits = {"[2,0]": (2, 0), "[1,1]": (1, 1), "[0,2]": (0, 2)}

    def evaluate(candidate: SubnetCandidate, place: Workplace) -> dict[str, float]:
        with torch.inference_mode():
            score = supernet.restrict(candidate.architecture)(images).logits.softmax(1).max()
        return {"accuracy": float(score), "macs": candidate.planned["macs"]}

    limit = 1.5 * min(architecture_cost(Architecture.staircase(GRID, split)).macs for split in splits.values())
    problem: Problem[SubnetCandidate] = Problem(
        space=Space({"split": CategoricalDistribution(tuple(splits))}, {"split": splits}),
        decode=lambda changes: SubnetCandidate(Architecture.staircase(GRID, changes["split"]), limit),
        evaluate=evaluate,
        objectives=("accuracy", "macs"),
        limits={"macs": limit},
    )
    study = optuna.create_study(directions=directions(problem.objectives))
    wanted = StudyCall(9, "random", 9, seed=0, retry_failed=True, progress=None)
    with Worker(tmp_path) as worker:
        Loop(study, problem, wanted=wanted, out=tmp_path).run(worker)
    found = records(study.trials, problem.objectives, tmp_path)
    assert sorted(trial.changes["split"] for trial in found) == [[0, 2], [1, 1], [2, 0]]  # each of them once
    finished = [trial for trial in found if trial.values is not None]
    assert finished
    assert all(trial.values["macs"] <= limit for trial in finished if trial.values)


@pytest.fixture
def no_garbage() -> None:
    """Here it is looked for, which the fixture of that name spares the other studies."""


@pytest.mark.parametrize("fails", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.slow
def test_memory_does_not_grow_over_trials(tmp_path: Path, fails: bool) -> None:
    """When a trial begins, the networks of those before it are gone, trained or failed."""
    nets, alive = list[weakref.ref[Any]](), list[int]()

    def evaluate(candidate: RecipeCandidate, place: Workplace) -> dict[str, float]:
        gc.collect()
        alive.append(sum(net() is not None for net in nets))
        net = TaskNet.classifier(candidate.architecture, candidate.recipe.gates)
        nets.append(weakref.ref(net))
        if fails and len(nets) > 1:
            raise RuntimeError(f"with {net} in its frames")
        return {"accuracy": 0.5, "macs": 1.0}

    run_study(recipe(), tmp_path, evaluator=evaluate, trials=4)
    assert alive == [0, 0, 0, 0]
    gc.collect()
    assert all(net() is None for net in nets)


def test_a_real_training_leaves_no_network_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nets, made = list[weakref.ref[Any]](), TaskNet.__init__

    def counted(net: TaskNet, *parts: Any) -> None:
        made(net, *parts)
        nets.append(weakref.ref(net))

    monkeypatch.setattr(TaskNet, "__init__", counted)
    data = {"data.train_size": 32, "data.val_size": 8, "data.test_size": 1, "train.batch_size": 16}
    quick = {"train.epochs": 1, "train.warmup_epochs": 0, "train.device": "cpu", "train.ema_decay": 0.5}
    tiny = recipe({"budget.ratio": [0.9]}, overrides=data | quick)
    assert run_study(tiny, tmp_path, trials=1).count("finished") == 1
    assert len(nets) >= 1
    gc.collect()
    assert [net for net in nets if net() is not None] == []


def test_other_things_in_place_of_a_study_or_a_recipe():
    with pytest.raises(SpecError, match="study: 'runs/search' was given; give a StudyRecord"):
        trial_folder("runs/search", 0)
    with pytest.raises(SpecError, match="recipe: 'digits_tiny' was given; give a Recipe"):
        Space.of("digits_tiny")
    with pytest.raises(SpecError, match="trials: 3 was given; give a list of TrialRecords"):
        pareto(3)
