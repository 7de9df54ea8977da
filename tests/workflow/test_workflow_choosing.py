"""Choosing a part by candidates: never worse than what usage derives, nor than plain staircases."""

import pytest
import torch
from dense_tiny import dense

from routespace import evaluate, extract_bundle, load_bundle, load_recipe, load_run, train_recipe
from routespace.deploy.derive import derive
from routespace.errors import BudgetError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.usage import EdgeUsage
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet
from routespace.train.data.loaders import make_loaders
from routespace.workflow.artifacts import Artifact
from routespace.workflow.choosing import choose, choose_best, choose_part, edge_scores
from routespace.workflow.neighbours import Neighbours
from routespace.workflow.proposing import candidates_within

TINY = [
    *("data.train_size=64", "data.val_size=16", "data.test_size=16", "train.batch_size=32", "train.epochs=1"),
    *("train.warmup_epochs=0", "grid.layers=3", "grid.embed_layers=all", "train.device=cpu"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A finished run of a supernet."""
    out = tmp_path_factory.mktemp("choosing") / "run"
    train_recipe(load_recipe("digits_tiny", TINY), out)
    run = load_run(out)
    with torch.no_grad():
        run.net.head.weight.mul_(30)  # parts that differ
    return run


@pytest.fixture(scope="module")
def limits(found):
    return {"macs": 0.7 * found.recipe.base_macs()}


def test_the_choice_is_the_best_of_all_candidates_and_fits(found, limits):
    parts = candidates_within(found, limits, count=8)
    assert set(parts.values()) == {"usage", "staircase", "sample"}
    assert all(architecture_cost(part).macs <= limits["macs"] for part in parts)
    assert all(found.net.architecture.contains(part) for part in parts)
    best = choose_best(found, limits, count=8, rounds=0)
    assert best.candidates - len(parts) in (0, 1)  # with what the edges' scores derive, if that is another
    images = make_loaders(found.recipe).val
    alone = {part: evaluate(found.net.restrict(part), images, expected=False)["accuracy"] for part in parts}
    assert best.score >= max(alone.values())
    assert best.score == evaluate(found.net.restrict(best.architecture), images, expected=False)["accuracy"]
    assert best.scores["usage"] == alone[choose(found, limits)]
    assert best.origin == parts.get(best.architecture, "kl")
    stairs = [part for part, origin in parts.items() if origin == "staircase"]
    assert best.scores["staircase"] == max(alone[part] for part in stairs)


@pytest.mark.slow
def test_a_search_goes_on_from_the_best_and_is_never_worse(found, limits):
    start = choose_best(found, limits, count=4, rounds=0)
    on = choose_best(found, limits, count=4, rounds=3)
    assert on.candidates > start.candidates
    assert on.score >= start.score
    assert "search" in on.scores
    assert architecture_cost(on.architecture).macs <= limits["macs"]
    assert found.net.architecture.contains(on.architecture)
    again = choose_best(found, limits, count=4, rounds=3)
    assert (again.architecture, again.score) == (on.architecture, on.score)


def test_neighbours_are_new_parts_near_the_given_ones(found):
    whole = found.net.architecture
    start = Architecture.staircase(whole.grid, (1, 1, 1, 0))
    near = Neighbours(whole, 0).of([start], 20, lambda part: architecture_cost(part).macs < 1e9, known=[start])
    assert len(set(near)) == len(near) == 20
    assert start not in near
    assert all(whole.contains(part) and part.is_static for part in near)
    blocks = [{name for name in part.edges if "transformer" in name} for part in (start, *near)]
    assert any(len(own) > len(blocks[0]) for own in blocks)
    assert any(len(own) < len(blocks[0]) for own in blocks)
    assert Neighbours(start, 0).of([start], 3, lambda part: True) == []  # nothing to choose


def test_a_part_by_what_happens_without_its_edges(found, limits, monkeypatch):
    scores = edge_scores(found, make_loaders(found.recipe).val)
    monkeypatch.setattr("routespace.workflow.choosing.edge_scores", lambda *_: scores)  # which takes seconds
    part = choose_part(found, limits, "kl")
    assert part == derive(found.net.architecture, found.usage, limits=limits, scores=scores)
    assert set(scores) == set(found.net.architecture.edges)


def test_all_staircases_are_tried_where_they_are_few(found, limits):
    parts = candidates_within(found, limits, count=1000)
    grid = found.net.architecture.grid
    for split in ((1, 1, 0, 0), (0, 1, 1, 1), (0, 0, 1, 2), (0, 0, 0, 0)):
        part = Architecture.staircase(grid, split)
        assert (part in parts) == (architecture_cost(part).macs <= limits["macs"]), split


def test_other_limits_hold_and_impossible_ones_are_told_before_the_work(found, limits, monkeypatch):
    least = min(architecture_cost(part).params for part in candidates_within(found, limits, count=4))
    both = limits | {"params": 1.5 * least}
    assert all(architecture_cost(part).params <= 1.5 * least for part in candidates_within(found, both, count=4))
    monkeypatch.setattr("routespace.workflow.choosing.edge_scores", None)  # a pass for each edge
    with pytest.raises(BudgetError, match="the least possible"):
        choose_best(found, {"macs": 1000})
    with pytest.raises(SpecError, match="give one, such as macs"):
        choose_best(found, {})


@pytest.mark.slow
def test_a_bundle_of_the_chosen_part(found, limits, tmp_path):
    taken = extract_bundle(found, tmp_path / "small", limits=limits, by="candidates")
    best = choose_best(found, limits)
    assert load_bundle(tmp_path / "small").net.architecture == best.architecture
    assert taken.score == best.score
    with pytest.raises(SpecError, match=r"by: 'guess' is not known; give usage or kl or candidates"):
        extract_bundle(found, tmp_path / "no", limits=limits, by="guess")
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_after_a_sandwich_candidates_are_the_usual_choice(tmp_path):
    sandwich = [*TINY, "train.mode=sandwich", "train.start=open", "budget.ratio=0.6"]
    train_recipe(load_recipe("digits_tiny", sandwich), tmp_path / "run")
    run = load_run(tmp_path / "run")
    taken = extract_bundle(run, tmp_path / "small")
    limits = {"macs": run.recipe.budget_macs()}
    assert taken.net.architecture == choose_best(run, limits).architecture
    assert taken.card.macs <= limits["macs"]


def test_heads_of_dense_tasks_stand_beside_a_limit(tmp_path):
    recipe = dense({"kind": "semantic", "classes": 11, "channels": 64})
    architecture = recipe.architecture()
    head = recipe.task.make(recipe.grid).head(recipe.grid)
    net = TaskNet(RouteNet(architecture, recipe.gates), head).eval()
    most = 0.7 * architecture_cost(architecture).macs
    assert head.cost(recipe.grid).macs > most
    found = candidates_within(Artifact(tmp_path, net, recipe, None, {}), {"macs": most}, count=4)
    assert set(found.values()) >= {"usage", "staircase"}
    assert all(architecture_cost(part).macs <= most for part in found)


@pytest.mark.parametrize("by", ["usage", pytest.param("candidates", marks=pytest.mark.slow)])
def test_rates_are_dropped_only_where_that_is_allowed(by, tmp_path):
    recipe = dense({"kind": "detect", "classes": 10, "width": 32, "finest": 4}, train__epochs=1, data__val_size=4)
    architecture = recipe.architecture()
    net = TaskNet(RouteNet(architecture, recipe.gates), recipe.task.make(recipe.grid).head(recipe.grid)).eval()
    unused = {
        name: EdgeUsage(0, 0) for name in architecture.edges if name.endswith("patch_embed") or "_r08_" in name
    }
    run = Artifact(tmp_path, net, recipe, None, unused)
    limits = {"macs": 0.9 * architecture_cost(architecture).macs}
    assert choose(run, limits).missing_rates == ()
    assert choose(run, limits, every_rate=False).missing_rates == (8,)
    parts = candidates_within(run, limits, count=6, every_rate=False)
    assert {part.missing_rates for part in parts} >= {(), (8,)}
    assert {part.missing_rates for part in candidates_within(run, limits, count=6)} == {()}
    taken = extract_bundle(
        run, tmp_path / "small", limits=limits, by=by, every_rate=False, evaluated=by == "usage"
    )
    told = [f"never reaches rates {rate}" for rate in taken.net.architecture.missing_rates]
    assert all(text in taken.card.remarks[0] for text in told)
    if by == "usage":
        assert taken.net.architecture.missing_rates == (8,)
        assert taken.images == 4
    assert taken.max_difference <= 1e-5
    assert load_bundle(tmp_path / "small").net.architecture == taken.net.architecture
