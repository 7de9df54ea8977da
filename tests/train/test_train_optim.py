"""Rates of learning of each layer, and a stem that is left alone."""

import pytest
import torch
from train_tiny import tiny

from routespace.errors import SpecError
from routespace.nn.task_net import TaskNet
from routespace.train.optim import clipped_together, make_optimizer, make_schedule
from routespace.train.run import train_recipe


def made(recipe):
    torch.manual_seed(0)
    net = TaskNet.classifier(recipe.architecture(), recipe.gates)
    return net, make_optimizer(net, recipe.train)


def rates_of(net, optimizer):
    """Parameter name → its rate of learning."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_layers_learn_slower_the_farther_they_are_from_the_head():
    recipe = tiny(train__layer_decay=0.5, train__lr=0.016, train__gate_lr=0.003, train__warmup_epochs=0)
    net, optimizer = made(recipe)
    make_schedule(optimizer, recipe.train, 4).step_update(0)
    rates = rates_of(net, optimizer)
    layers = net.spec.layers
    assert rates.keys() == dict(net.named_parameters()).keys()
    for name, rate in rates.items():
        if ".gates." in name:
            assert rate == pytest.approx(0.003)
        elif name.startswith("backbone.stem."):
            assert rate == pytest.approx(0.016 * 0.5 ** (layers + 1))
        elif name.startswith("backbone.edges.l"):
            layer = int(name.removeprefix("backbone.edges.l")[:2])
            assert rate == pytest.approx(0.016 * 0.5 ** (layers - layer))
        else:
            assert rate == pytest.approx(0.016)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.016)  # what reports tell


def test_without_decay_there_are_three_groups_and_gradients_are_clipped_by_kind_either_way():
    net, plain = made(tiny())
    assert [group["kind"] for group in plain.param_groups] == ["matrices", "vectors", "gates"]
    _, decayed = made(tiny(train__layer_decay=0.7))
    assert len(decayed.param_groups) > 3
    shapes = [[sorted(p.shape for p in some) for some in clipped_together(one)] for one in (plain, decayed)]
    assert shapes[0] == shapes[1]
    assert sum(len(some) for some in shapes[0]) == len(list(net.parameters()))


def test_a_frozen_stem_stays_as_it_was(tmp_path):
    recipe = tiny(train__freeze_stem=True, train__layer_decay=0.8, train__epochs=1)
    fresh = TaskNet.classifier(recipe.architecture(), recipe.gates)
    trained = train_recipe(recipe, tmp_path / "run", init=fresh).net
    before, after = fresh.state_dict(), trained.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    stem = {name for name in before if name.startswith("backbone.stem.")}
    assert stem
    assert stem <= same
    assert not any(name.startswith("head.") for name in same)


def told_rates(recipe, steps=10):
    _, optimizer = made(recipe)
    schedule = make_schedule(optimizer, recipe.train, steps)
    rates = []
    for step in range(recipe.train.epochs * steps):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_poly_falls_by_the_power_of_what_is_left():
    poly = {"train__schedule": "poly", "train__lr": 0.01, "train__min_lr": 0}
    rates = told_rates(tiny(train__epochs=4, train__warmup_epochs=1, **poly))
    assert rates[:10] == pytest.approx([0.001 * step for step in range(10)])
    assert rates[10:] == pytest.approx([0.01 * (1 - step / 30) ** 0.9 for step in range(30)])


@pytest.mark.parametrize("warmup", [0, 1])
def test_multistep_falls_to_a_tenth_after_8_and_11_of_12_epochs(warmup):
    rates = told_rates(
        tiny(train__epochs=12, train__warmup_epochs=warmup, train__schedule="multistep", train__lr=1)
    )
    assert rates[10:80] == [1.0] * 70
    assert rates[80:110] == pytest.approx([0.1] * 30)
    assert rates[110:] == pytest.approx([0.01] * 10)


def test_schedules_leave_hashes_of_older_recipes_alone_and_are_checked():
    assert tiny(train__schedule="cosine").hash == tiny().hash != tiny(train__schedule="poly").hash
    with pytest.raises(SpecError, match=r"decay_fracs: \[0\.9, 0\.5\] must be distinct and in increasing order"):
        tiny(train__decay_fracs=[0.9, 0.5])
