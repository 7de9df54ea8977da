"""One taught map from end to end: shares that meet the budget, labels of the dense pass, resuming, warm starts."""

import os
import signal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from train_tiny import tiny

from routespace.deploy.extract import extract
from routespace.errors import BudgetError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.usage import EdgeUsage
from routespace.nn.task_net import TaskNet
from routespace.train.calibrate import calibrate_threshold
from routespace.train.data.loaders import make_loaders
from routespace.train.macs import counted_macs
from routespace.train.run import train_recipe
from routespace.train.shares import RowShares, agree_on_cuts, solved
from routespace.train.stopping import TrainingStoppedError
from routespace.train.teaching import DensePass, GateTeacher, labels

MAP = {
    "routing": "depth",
    "gates": {"source": "map", "opening": "share", "teach": "dense", "noise": 0.0},
    "budget": {"ratio": 0.6, "open_frac": 0.5, "settle_frac": 0.5},
}


def recipe(**changes):
    return tiny(**(MAP | {"train__execution": "packed"} | changes))


def test_shares_meet_the_budget_and_grow_with_the_rate():
    sides, routed = {"a": 4 / 96, "b": 8 / 96, "c": 32 / 96}, {"a": 1000, "b": 400, "c": 100}
    for left in (30.0, 300.0, 900.0, 1499.0):
        found = solved(sides, routed, left)
        assert sum(routed[name] * share for name, share in found.items()) == pytest.approx(left, rel=1e-6)
        assert 0 < found["a"] <= found["b"] <= found["c"] <= 1
    assert solved(sides, routed, -5.0) == dict.fromkeys(sides, 0.0)
    found = solved(sides, routed, 300.0)  # all of the same object
    areas = [(np.sqrt(share) - sides[name]) ** 2 for name, share in found.items() if share < 1]
    assert areas == pytest.approx([areas[0]] * len(areas))


def test_shares_fall_when_gates_are_let_go_and_follow_what_validation_costs():
    given = recipe(budget__open_frac=0.2, budget__settle_frac=0.4)
    target = given.budget_macs()
    shares = RowShares.of(given, given.architecture(), target)
    assert set(shares.at(0.2).values()) == {1.0}
    assert shares.at(0.4) == shares.at(1.0) == shares.final
    assert shares.at(0.3) == pytest.approx({name: (1 + share) / 2 for name, share in shares.final.items()})
    usage = {name: EdgeUsage(share, 1.0, 1.0) for name, share in shares.final.items()}
    net = TaskNet.classifier(given.architecture(), given.gates)
    assert counted_macs(net, usage) == pytest.approx(target) == shares.macs(1.0)
    shares.correct(1000.0, 900.0, 0.3)  # still moving
    assert shares.excess == 0
    shares.correct(1000.0, 900.0, 0.4)
    assert shares.macs(1.0) == pytest.approx(target + 100)


def test_shares_settle_no_sooner_than_gates_are_let_go():
    given = recipe(budget__open_frac=0.5, budget__settle_frac=0.1)
    shares = RowShares.of(given, given.architecture(), given.budget_macs())
    assert set(shares.at(0.4).values()) == {1.0}
    assert shares.at(0.5) == shares.final
    shares.correct(1000.0, 900.0, 0.4)  # gates were held open
    assert shares.excess == 0
    shares.correct(1000.0, 900.0, 0.5)
    assert shares.excess == -100


def test_shares_without_a_budget_and_where_they_mean_nothing():
    free = recipe(budget__ratio=None, gates__keep=0.3)
    assert set(RowShares.of(free, free.architecture(), None).final.values()) == {0.3}
    plain = tiny(routing="depth")
    assert RowShares.of(plain, plain.architecture(), 1e6) is None
    both = recipe(routing="both")
    with pytest.raises(BudgetError, match="l00_r04_patch_embed is gated too; take routing 'depth'"):
        RowShares.of(both, both.architecture(), 1e6)
    low = recipe()
    with pytest.raises(BudgetError, match="leaves no tokens to gates that open a share"):
        RowShares.of(low, low.architecture(), RowShares.of(low, low.architecture(), None).fixed)
    floor = RowShares.of(low, low.architecture(), None).fixed
    (line,) = RowShares.of(low, low.architecture(), 1.001 * floor).lines()
    assert "lets l00_r04_transformer compute 0." in line
    assert RowShares.of(low, low.architecture(), 2 * floor).lines() == ()
    with pytest.raises(SpecError, match=r"budget\.control: gates that open a share"):
        recipe(budget__control=0.5)


def test_labels_are_the_tokens_that_the_loss_would_miss_most():
    x, y, gradient = (torch.randn(3, 20, 4) for _ in range(3))
    gradient[1] *= 100  # an image of which the loss speaks louder gets no more labels for it
    found = labels(DensePass(x, y, (4, 5)), gradient, 0.15).numpy()
    worth = np.linalg.norm(gradient, axis=2) * np.linalg.norm(y - x, axis=2)
    worth /= worth.mean(1, keepdims=True)
    assert found.sum() == 9
    assert worth[found == 1].min() > worth[found == 0].max()


@pytest.mark.parametrize("hw", [(4, 6), (5, 5)])
def test_a_scouts_labels_are_squares_whose_surroundings_are_worth_most(hw):
    x, y, gradient = (torch.randn(2, hw[0] * hw[1], 4) for _ in range(3))
    found = labels(DensePass(x, y, hw), gradient, 0.3, squares=True).view(2, *hw).numpy()
    worth = (np.linalg.norm(gradient, axis=2) * np.linalg.norm(y - x, axis=2)).reshape(2, *hw)
    worth /= worth.mean((1, 2), keepdims=True)
    rows, columns = range(0, hw[0], 2), range(0, hw[1], 2)
    square = np.array([[worth[:, r : r + 2, c : c + 2].mean((1, 2)) for c in columns] for r in rows])
    around = np.array(
        [
            [square[max(0, r - 1) : r + 2, max(0, c - 1) : c + 2].mean((0, 1)) for c in range(len(columns))]
            for r in range(len(rows))
        ]
    )
    worth = around[np.arange(hw[0])[:, None] // 2, np.arange(hw[1])[None] // 2].transpose(2, 0, 1)
    assert 0.15 < found.mean() <= 0.3  # squares are labelled whole
    assert worth[found == 1].min() > worth[found == 0].max()


def taught(execution="dense", **gates):
    torch.manual_seed(0)
    architecture = Architecture.routed(RoutingGrid(tiny().grid), "depth")
    net = TaskNet.classifier(architecture, GateSpec(**({"source": "map", "teach": "dense"} | gates)))
    return net.train().decide(execution=execution, held=architecture.opened())


def one_pass(net, precision=torch.float32):
    """A backward pass that is watched, then the teaching; the gradients before and after."""
    teacher, accelerator = GateTeacher(net), Accelerator(cpu=True)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with teacher.watching([], on=True), torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        loss = net(images).logits.float().logsumexp(1).sum()
    loss.backward()
    before = {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}
    teacher.teach(accelerator)
    return before, {name: p.grad for name, p in net.named_parameters()}


@pytest.mark.parametrize(
    ("source", "seeing"), [("map", {"context": 3}), ("own", {"context": 3}), ("map", {"scout": 2})]
)
def test_labels_reach_the_gates_and_nothing_else(source, seeing):
    before, after = one_pass(taught(source=source, **seeing))
    gates = {name for name in before if name.startswith("backbone.gates")}
    assert len(gates) == (2 if source == "map" else 4) + (8 if "scout" in seeing else 0)
    for name, gradient in after.items():
        if name in gates:
            assert before[name] is None
            assert gradient.abs().sum() > 0
        else:
            assert torch.equal(gradient, before[name])


@pytest.mark.parametrize("seeing", [{"context": 1}, {"context": 3}, {"context": 5, "source": "own"}, {"scout": 2}])
def test_a_fused_optimiser_takes_the_labels_gradients_as_they_are(seeing):
    nets = [taught(**seeing) for _ in range(2)]
    for net, fused in zip(nets, (True, False), strict=True):
        one_pass(net)
        torch.optim.SGD(net.gates.parameters(), lr=1.0, fused=fused).step()
    before = dict(taught(**seeing).gates.named_parameters())
    for (name, one), other in zip(nets[0].gates.named_parameters(), nets[1].gates.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), name
        assert one.grad is None or not torch.equal(one, before[name]), name


@pytest.mark.parametrize("scout", [0, 2])
def test_teaching_is_the_same_however_the_pass_is_computed(scout):
    _, dense = one_pass(taught(scout=scout))
    checkpointed = taught("packed", scout=scout)
    checkpointed.set_grad_checkpointing()
    for net in (taught("packed", scout=scout), taught("auto", scout=scout), checkpointed):
        for name, gradient in one_pass(net)[1].items():
            assert torch.allclose(gradient, dense[name], atol=1e-5), name
    _, short = one_pass(taught(scout=scout), torch.bfloat16)
    for name in (name for name in dense if "gates" in name):
        assert torch.nn.functional.cosine_similarity(short[name].flatten(), dense[name].flatten(), 0) > 0.8


def test_a_taught_gate_is_settled_when_it_is_let_go():
    net = taught()
    gate = net.gates["l00_r04_transformer"]
    teacher = GateTeacher(net)
    with torch.no_grad():
        gate.weight.add_(1.0)
    with teacher.watching([], on=False):
        net(torch.randn(2, 3, 32, 32)).logits.sum().backward()
    teacher.teach(Accelerator(cpu=True))
    assert torch.equal(gate.weight, gate.ema_weight)
    assert not any(edge._forward_hooks for edge in net.edges.values())


def test_windows_of_shifted_attention_follow_a_map_and_meet_the_budget(tmp_path):
    given = recipe(
        grid__family="swin_v2", grid__sr_ratios=None, grid__window=4, gates__rows="window", gates__window=4,
        budget__ratio=0.88, train__epochs=4, data__train_size=160,
    )  # fmt: skip
    metrics = train_recipe(given, tmp_path / "run").metrics
    assert metrics["counted_macs"] == pytest.approx(metrics["target_macs"], rel=0.05)


@pytest.mark.parametrize("scout", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_it_learns_where_the_digit_is_and_meets_its_budget(tmp_path, scout):
    given = recipe(
        gates__scout=scout, gates__scout_width=4, train__epochs=4, data__train_size=160, train__ema_decay=0.9
    )
    result = train_recipe(given, tmp_path / "run")
    target = result.metrics["target_macs"]
    assert result.metrics["counted_macs"] == pytest.approx(target, rel=0.03)
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(records) == 4
    assert '"budget_loss": 0.0' in records[-1]
    net = result.net
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = calibrate_threshold(net, list(make_loaders(given).val), 0.9 * target)  # by one shift of all
    assert found.macs < target
    assert all(torch.equal(tensor, weights[name]) for name, tensor in net.state_dict().items())
    static = extract(net, net.architecture.opened())
    assert not [name for name in static.state_dict() if "gates" in name]
    again = train_recipe(tiny(train__epochs=1), tmp_path / "fine", init=net, asked=["train.epochs"])
    assert again.net.gate_spec.scout == scout
    assert again.net.gate_spec.source == "map"  # a network that is trained on keeps its gates, taught before


def test_a_training_that_is_stopped_again_and_again_goes_on_as_if_it_had_not(tmp_path):
    given, folder = recipe(train__epochs=4), tmp_path / "stopped"
    whole = train_recipe(given, tmp_path / "whole")
    # Taught, let go, corrected.
    for number, where in enumerate((("train", 1, 2), ("validate", 2, 4), ("train", 3, 4))):

        def stop(news, where=where):
            if (news.stage, news.epoch, news.step) == where:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(TrainingStoppedError):
            train_recipe(given, folder, progress=stop, resume=number > 0)
    resumed = train_recipe(given, folder, resume=True)
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, resumed.net.state_dict()[name]), name
    assert resumed.metrics["counted_macs"] == whole.metrics["counted_macs"]


def test_it_starts_from_a_plain_network_of_another_image_size(tmp_path):
    plain = train_recipe(tiny(routing="static", budget__ratio=None, train__epochs=1), tmp_path / "start")
    lines = []
    given = recipe(
        grid__image_size=48, train__weights=str(tmp_path / "start"), train__epochs=0, train__warmup_epochs=0
    )
    net = train_recipe(given, tmp_path / "run", tell=lines.append).net
    assert any(line.endswith("new: gates") for line in lines)
    own = net.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in plain.net.state_dict().items())
    small = train_recipe(recipe(), tmp_path / "small").net
    larger = train_recipe(
        recipe(grid__image_size=48, train__epochs=1), tmp_path / "larger", init=small, asked=["grid.image_size"]
    )
    assert larger.net.spec.image_size == (48, 48)
    assert larger.net.gate_spec.opening == "share"


def test_gates_that_would_never_be_taught_are_refused(tmp_path):
    with pytest.raises(SpecError, match=r"budget\.open_frac is 0"):
        train_recipe(recipe(budget__open_frac=0.0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_several_processes_and_moving_averages_have_the_same_cuts():
    class Two(Accelerator):
        """Another process whose cuts are 2 higher."""

        num_processes = 2

        def reduce(self, tensor, reduction="sum", scale=1.0):
            assert reduction == "mean"
            return tensor + 1.0

    nets = [taught(opening="share"), taught(opening="share")]
    for net, value in zip(nets, (3.0, 9.0), strict=True):
        for gate in net.gates.values():
            gate.cut.value.fill_(value)
    agree_on_cuts(nets, Two(cpu=True))
    assert {float(gate.cut.value) for net in nets for gate in net.gates.values()} == {4.0}
