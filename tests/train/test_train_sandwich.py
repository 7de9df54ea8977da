"""`train.mode: sandwich`: the largest, the smallest and some parts between, in each step."""

import shutil

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from train_tiny import tiny

from routespace.errors import BudgetError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.count import cheapest
from routespace.grid.graph import RoutingGrid
from routespace.grid.sample import sample_static
from routespace.nn.families.base import Block
from routespace.nn.task_net import TaskNet
from routespace.train.data.skipping import Group
from routespace.train.passes import Runner
from routespace.train.run import train_recipe
from routespace.train.run_folder import RunFolder
from routespace.train.sandwich import Ends, Sandwich, without_drop_path
from routespace.train.step_loss import StepLoss

STEPS = 3


def recipe_of(**changes):
    return tiny(train__mode="sandwich", data__train_size=48, data__val_size=16, **changes)


def network(recipe):
    torch.manual_seed(recipe.seed)
    return TaskNet.classifier(recipe.architecture(), recipe.gates, drop_path=recipe.train.drop_path).train()


def passes_of(recipe, net):
    task = recipe.task.make(recipe.grid, recipe.train)
    run = Runner(StepLoss(net, task, None, recipe.train), Accelerator(cpu=True))
    return Sandwich(run, net, recipe, STEPS)


def test_gradients_are_the_sum_of_all_passes():
    recipe = recipe_of(train__teacher_weight=0.75, train__teacher_temperature=3.0, train__sandwich_parts=3)
    net = network(recipe)
    with torch.no_grad():
        net.head.weight.mul_(20)  # answers that differ
    passes = passes_of(recipe, net)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([1, 2, 3, 4])
    losses = passes([Group(images, labels)], 0.5, 4)
    found = {
        name: parameter.grad.clone() for name, parameter in net.named_parameters() if parameter.grad is not None
    }
    net.zero_grad()
    largest = net.restrict(net.architecture.opened())(images).logits
    total = task_loss = F.cross_entropy(largest, labels)
    theirs, soft_losses = (largest.detach() / 3).softmax(1), []
    parts = [cheapest(net.architecture), *passes.drawn(4)]
    assert len(parts) == 4
    for part in parts:
        logits = net.restrict(part)(images).logits
        soft_losses.append(9 * F.kl_div((logits / 3).log_softmax(1), theirs, reduction="batchmean"))
        total = total + 0.25 * F.cross_entropy(logits, labels) + 0.75 * soft_losses[-1]
    total.backward()
    assert losses.loss.item() == pytest.approx(total.item(), rel=1e-5)
    assert losses.task_loss.item() == pytest.approx(task_loss.item(), rel=1e-5)
    assert losses.soft_loss.item() == pytest.approx(sum(soft_losses).item() / 4, rel=1e-3)
    paid = architecture_cost(net.architecture.opened()).macs + sum(architecture_cost(part).macs for part in parts)
    assert losses.macs.item() == pytest.approx(paid)
    for name, parameter in net.named_parameters():
        assert (name in found) == (parameter.grad is not None), name
        if name in found:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)
    assert not any("gates" in name for name in found)


def test_each_step_has_parts_of_its_own_which_follow_from_seed_and_step():
    per_rate = {"grid__heads": [1, 2, 3], "grid__mlp_ratios": [2, 2, 2], "grid__sr_ratios": [2, 1, 1]}
    grid = {"grid__layers": 4, "grid__max_down": 16, "grid__widths": [8, 16, 24]} | per_rate
    recipe = recipe_of(**grid, train__sandwich_window=[0.3, 0.6])
    net = network(recipe)
    one, other = passes_of(recipe, net), passes_of(recipe, net)
    drawn = [one.drawn(step) for step in range(2 * STEPS)]
    assert [other.drawn(step) for step in reversed(range(2 * STEPS))] == drawn[::-1]
    most = architecture_cost(net.architecture.opened()).macs
    every = {part for parts in drawn for part in parts}
    assert len(every) > STEPS
    for part in (*every, one.ends.smallest):
        assert 0.3 * most <= architecture_cost(part).macs <= 0.6 * most
        assert net.architecture.contains(part)
    assert architecture_cost(one.ends.smallest).macs <= min(architecture_cost(part).macs for part in every)


def test_parts_of_a_part_of_the_grid_are_drawn_from_it_alone():
    stairs = Architecture.routed(RoutingGrid(tiny(grid__layers=4).grid), "depth")
    found = set(sample_static(stairs, 200))
    assert all(stairs.contains(part) for part in found)
    assert len(found) == 2**4  # each of the four rows is there or passed
    assert Ends(stairs, (0.0, 1.0)).smallest == min(found, key=lambda part: architecture_cost(part).macs)


def test_drop_path_is_the_largest_networks_alone():
    net = network(recipe_of(train__drop_path=0.4))
    rates = [module.drop_path for module in net.modules() if isinstance(module, Block)]
    part = without_drop_path(net.restrict(Architecture.staircase(net.architecture.grid)).train())
    assert max(rates) == 0.4
    assert {module.drop_path for module in part.modules() if isinstance(module, Block)} == {0.0}
    assert [module.drop_path for module in net.modules() if isinstance(module, Block)] == rates
    images = torch.randn(8, 3, 32, 32)
    assert torch.equal(part(images).logits, part(images).logits)


def test_a_run_ends_with_everything_open_and_tells_both_losses(tmp_path):
    result = train_recipe(recipe_of(train__epochs=1), tmp_path / "run")
    (line,) = RunFolder(tmp_path / "run").read_metrics()
    assert line["soft_loss"] > 0
    assert line["task_loss"] > line["soft_loss"]
    assert line["target_ratio"] is None
    assert result.metrics["calibration"] is None
    net, images = result.net, torch.randn(4, 3, 32, 32)
    whole = net.restrict(net.architecture.opened())
    torch.testing.assert_close(net(images).logits, whole(images).logits, atol=1e-5, rtol=1e-4)


def test_a_sandwich_is_resumed_exactly(tmp_path):
    recipe, copy = recipe_of(train__drop_path=0.2, train__ema_decay=0.9), tmp_path / "copy"

    def watch(news):
        if (news.epoch, news.step, news.stage) == (2, 1, "train"):
            shutil.copytree(tmp_path / "run", copy)

    whole = train_recipe(recipe, tmp_path / "run", progress=watch)
    resumed = train_recipe(recipe, copy, resume=True)
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, resumed.net.state_dict()[name]), name


REFUSED = {
    "routing 'static' has none, use 'both'": {"routing": "static"},
    "leave 'self' out": {"train__teacher": "self"},
    "give 'open'": {"train__start": "staircase"},
    "needs gates that are open untrained": {"gates__kind": "tanh"},
    "an openness above the threshold": {"gates__openness": 0.4},
    "sandwich_window: 0.5 to 0.5 is empty": {"train__sandwich_window": [0.5, 0.5]},
}


@pytest.mark.parametrize("told", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(told):
    with pytest.raises(SpecError, match=told) as caught:
        recipe_of(**REFUSED[told])
    assert "\n" not in str(caught.value)


def test_a_window_without_parts_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(BudgetError, match="no static architecture found between"):
        train_recipe(recipe_of(train__sandwich_window=[0.0, 0.001]), tmp_path / "run")
    static = TaskNet.classifier(Architecture.staircase(RoutingGrid(tiny().grid)))
    with pytest.raises(SpecError, match="needs gates to choose by; this network has none, use 'plain'"):
        train_recipe(recipe_of(), tmp_path / "run", init=static)
    assert not (tmp_path / "run").exists()
