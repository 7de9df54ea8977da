"""Training with a cheap path for skipped tokens: its price is in the budget, and it learns with free gates."""

import pytest
import torch
from train_tiny import tiny

from routespace.deploy.extract import extract
from routespace.grid.usage import EdgeUsage
from routespace.nn.task_net import TaskNet
from routespace.train.macs import counted_macs
from routespace.train.run import train_recipe
from routespace.train.shares import RowShares

MAP = {
    "routing": "depth",
    "gates": {"source": "map", "opening": "share", "teach": "dense", "noise": 0.0, "skipped": "mlp"},
    "budget": {"ratio": 0.75, "open_frac": 0.5, "settle_frac": 0.5},
}


def test_shares_leave_the_path_its_macs():
    given = tiny(**MAP)
    target, architecture = given.budget_macs(), given.architecture()
    shares = RowShares.of(given, architecture, target)
    plain = RowShares.of(given.override({"gates.skipped": "identity"}), architecture, target)
    assert all(0 < shares.final[name] < plain.final[name] for name in plain.final)
    usage = {name: EdgeUsage(share, 1.0, 1.0, 1 - share) for name, share in shares.final.items()}
    net = TaskNet.classifier(architecture, given.gates)
    assert counted_macs(net, usage) == pytest.approx(target) == shares.macs(1.0)
    assert shares.macs(0.0) == plain.macs(0.0) == counted_macs(net, {})


@pytest.mark.slow
def test_it_learns_once_gates_are_free_meets_the_budget_and_can_be_trained_on(tmp_path):
    given = tiny(**MAP, train__execution="packed", train__epochs=2)
    result = train_recipe(given, tmp_path / "run")
    assert result.metrics["counted_macs"] == pytest.approx(given.budget_macs(), rel=0.05)
    name, path = next(iter(result.net.backbone.skips.items()))
    learned = path.last.weight.clone()
    assert learned.any()
    again = train_recipe(tiny(train__epochs=1), tmp_path / "fine", init=result.net, asked=["train.epochs"]).net
    assert not torch.equal(again.backbone.skips[name].last.weight, learned)
    small = extract(again, again.architecture.opened())
    assert not any(".skips." in key for key in small.state_dict())


def test_it_does_not_learn_while_gates_are_held_open(tmp_path):
    budget = MAP["budget"] | {"open_frac": 0.98, "settle_frac": 0.98}
    net = train_recipe(tiny(**(MAP | {"budget": budget}), train__epochs=1), tmp_path / "run").net
    assert not any(bool(path.last.weight.any()) for path in net.backbone.skips.values())
