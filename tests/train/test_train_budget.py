import copy
import json
import math

import pytest
import torch
from grid.grid_strategies import mixed_architectures
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_grid import TINY_GRID
from train_tiny import tiny

from routespace.deploy.counters import torch_macs
from routespace.errors import BudgetError, DataError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.grid.usage import EdgeUsage
from routespace.nn.task_net import TaskNet
from routespace.nn.usage import UsageMeter
from routespace.train.budget import BudgetLoss, budget_loss, check_budget, penalty
from routespace.train.calibrate import calibrate_threshold, set_threshold
from routespace.train.evaluate import Sampling, evaluate, sampling_gates
from routespace.train.macs import closed_macs, counted_macs, expected_macs, open_macs
from routespace.train.recipe.recipe import BudgetSpec, Recipe
from routespace.train.run import train_recipe


def images(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(recipe) -> TaskNet:
    torch.manual_seed(0)
    return TaskNet.classifier(recipe.architecture(), recipe.gates)


def used(net: TaskNet, batch: torch.Tensor) -> dict:
    meter = UsageMeter()
    meter.update(net(batch).routes, len(batch))
    return meter.usage()


def test_a_static_network_costs_what_torch_counts():
    net = network(tiny(routing="static")).eval()
    with torch.no_grad():
        out = net(images(1))
    assert float(expected_macs(net, out.routes)) == torch_macs(net, meta=False).macs == counted_macs(net, {})


@pytest.mark.parametrize("rows", ["token", "image", "layer", "window"])
@pytest.mark.parametrize("columns", ["image", "token"])
def test_expected_is_counted_for_hard_decisions(rows, columns):
    net = network(tiny(gates__rows=rows, gates__columns=columns, gates__openness=0.5))
    out = net(images())  # training mode: sampled, straight-through
    meter = UsageMeter()
    meter.update(out.routes, 8)
    assert expected_macs(net, out.routes).item() == pytest.approx(counted_macs(net, meter.usage()), rel=1e-6)
    assert 0 < counted_macs(net, meter.usage()) < open_macs(net.architecture, net.gate_spec)


def test_capacity_fixes_the_cost():
    """The best half of 64 tokens, of their 16 groups and of the 8 that go down: the same MACs for any images."""
    net = network(tiny(gates__capacity=True, gates__columns="token"))
    stairs = {"l00_r04_transformer": 0.5, "l01_r04_patch_embed": 0.5, "l01_r08_transformer": 0.25}
    rows = [name for name in stairs if name.endswith("transformer")]
    passed = [name.replace("transformer", "identity") for name in rows]
    net = net.restrict(Architecture(net.spec, dict.fromkeys([*stairs, *passed], "gated")))
    usage = {name: EdgeUsage(share, 1, 1) for name, share in stairs.items()}
    usage["l01_r08_transformer"] = EdgeUsage(0.25, 1, 0.5)  # asked where something arrived
    cost = counted_macs(net, usage)
    for execution in ("dense", "packed"):
        net.decide(execution=execution)
        for training in (True, False):
            batch = torch.randn(5, 3, 32, 32)
            net.train(training)
            assert expected_macs(net, net(batch).routes).item() == pytest.approx(cost, rel=1e-6)
            assert counted_macs(net, used(net, batch)) == pytest.approx(cost, rel=1e-6)
    least = closed_macs(net.architecture, net.gate_spec)
    assert least < cost < open_macs(net.architecture, net.gate_spec)


@pytest.mark.parametrize("execution", ["dense", "packed"])
@pytest.mark.parametrize("kind", ["gumbel", "sigmoid", "tanh"])
@pytest.mark.parametrize("relaxation", ["straight_through", "soft"])
def test_sampling_gates_compute_what_the_budget_loss_sees(relaxation, kind, execution):
    """Evaluation's expected MACs: the same decisions of the same features as a training step's."""
    net = network(tiny(gates__relaxation=relaxation, gates__kind=kind, gates__noise=0.0, gates__openness=0.6))
    net.decide(execution=execution)
    learning = net.train()(images())
    with torch.no_grad(), sampling_gates(net.eval(), Sampling(net.gate_spec.temperature, 0.0), 0):
        sampled = net(images())
    assert torch.allclose(sampled.logits, learning.logits, atol=1e-6)
    assert float(expected_macs(net, sampled.routes)) == pytest.approx(
        float(expected_macs(net, learning.routes).detach()), rel=1e-6
    )


@pytest.mark.parametrize("columns", ["image", "token"])
def test_gradient_of_expected_macs_by_finite_differences(columns):
    recipe = tiny(gates__kind="sigmoid", gates__relaxation="soft", gates__columns=columns, gates__openness=0.6)
    net = network(recipe)
    batch = images()

    def macs() -> torch.Tensor:
        return expected_macs(net, net(batch).routes) / recipe.base_macs()

    macs().backward()
    for name, gate in net.gates.items():
        slope = float(gate.bias.grad)
        ends = []
        for step in (-0.02, 0.02):
            with torch.no_grad():
                gate.bias += step
                ends.append(float(macs()))
                gate.bias -= step
        assert (ends[1] - ends[0]) / 0.04 == pytest.approx(slope, rel=0.02, abs=1e-4), name
        assert slope > 0 or name.startswith("l02"), name  # the last chance down is not a choice


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_closed_macs_of_any_architecture_is_what_closed_gates_cost(data):
    spec = tiny().grid.model_copy(update={"outputs": data.draw(st.sampled_from(["coarsest", "pyramid"]))})
    architecture = data.draw(mixed_architectures(RoutingGrid(spec)))
    granularity = st.sampled_from(["token", "window", "image", "layer"])
    gates = GateSpec(
        rows=data.draw(granularity), columns=data.draw(granularity), early_stop=data.draw(st.booleans())
    )
    net = TaskNet.classifier(architecture, gates).eval()
    least = closed_macs(architecture, gates)
    for mode in ("dense", "packed"):
        with net.deciding_as(gates=gates.model_copy(update={"threshold": 0.9999999}), execution=mode):
            assert counted_macs(net, used(net, images(2))) == least


def test_a_batch_of_nothing_changes_no_measurement():
    net = network(tiny()).eval()
    some = [(images(3), torch.tensor([0, 1, 2]))]
    nothing = [(images(3)[:0], torch.empty(0, dtype=torch.long))]
    alone, mixed = evaluate(net, some), evaluate(net, nothing + some + nothing)
    assert mixed == alone | {"images_per_s": mixed["images_per_s"]}
    with pytest.raises(DataError, match="no images"):
        evaluate(net, nothing)


def test_a_batch_of_nothing_has_an_expected_cost():
    net = network(tiny())
    macs = expected_macs(net, net(images(1)[:0]).routes)
    assert 0 < float(macs.detach()) <= closed_macs(net.architecture, net.gate_spec)


@pytest.mark.parametrize("routing", ["both", "depth", "scale"])
def test_closed_macs_are_what_closed_gates_cost(routing):
    recipe = tiny(routing=routing, gates__threshold=0.9999999)
    net = network(recipe).eval()
    least = closed_macs(net.architecture, net.gate_spec)
    assert counted_macs(net, used(net, images())) == least
    assert least < open_macs(net.architecture, net.gate_spec)


def test_an_impossible_budget_names_the_least_possible():
    recipe = tiny(budget__ratio=0.01)
    with pytest.raises(BudgetError, match=r"budget.ratio.*every gate closed.*\(ratio 0\.\d+\)"):
        check_budget(recipe, recipe.architecture())
    with pytest.raises(BudgetError, match=r"budget.macs"):
        check_budget(tiny(budget__macs=10), recipe.architecture())
    most = open_macs(recipe.architecture(), recipe.gates)
    assert check_budget(tiny(budget__macs=int(most)), recipe.architecture()) == int(most)
    with pytest.raises(BudgetError, match=r"budget.macs.*every gate open.*\(ratio \d+\.\d+\).*budget\.ratio=null"):
        check_budget(tiny(budget__macs=int(most) + 1), recipe.architecture())
    with pytest.raises(BudgetError, match=r"budget.ratio.*leaves nothing to save"):
        check_budget(tiny(budget__ratio=5), recipe.architecture())
    assert check_budget(recipe, Architecture.staircase(recipe.architecture().grid)) is None


def test_the_target_moves_as_the_schedule_says():
    loss = BudgetLoss(BudgetSpec(schedule="linear", warmup_frac=0.2, settle_frac=0.6), base=100, target=50)
    assert [loss.target_ratio(p) for p in (0.0, 0.2)] == [None, None]  # nothing is known of the start yet
    loss.update(300.0, 0.1)
    loss.update(150.0, 0.2)
    loss.update(120.0, 0.25)
    assert loss.target_ratio(0.0) is None
    assert [loss.target_ratio(p) for p in (0.2, 0.4, 0.6, 1.0)] == pytest.approx([1.5, 1.0, 0.5, 0.5])
    again = BudgetLoss(loss.spec, base=100, target=50)
    again.load_state(loss.state())
    assert again.target_ratio(0.4) == loss.target_ratio(0.4)
    macs = torch.tensor(80.0, requires_grad=True)
    assert float(loss(macs, 0.1)) == 0.0
    value = loss(macs, 1.0)
    value.backward()
    assert value.item() == pytest.approx(10 * 0.3**2)
    assert float(macs.grad) == pytest.approx(10 * 2 * 0.3 / 100)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_what_validation_costs_counts_once_gates_answer(schedule):
    """While gates are held open, validation says nothing of what they will let through."""
    spec = BudgetSpec(schedule=schedule, open_frac=0.5, settle_frac=0.2, correct=True)
    loss = BudgetLoss(spec, base=100, target=50)
    loss.correct(1.0, 0.6, 0.4)
    assert loss.excess_ratio == 0
    loss.correct(0.5, 0.6, 0.5)
    assert loss.excess_ratio == pytest.approx(0.1)


def test_the_multiplier_removes_the_bias_of_the_penalty():
    """min −2r + λ(r − .5)² settles at .5 + 1/λ; with a multiplier it settles at the target."""
    reached = []
    for rate in (0.0, 1.0):
        loss = BudgetLoss(BudgetSpec(weight=10.0, multiplier_lr=rate), base=1, target=1)
        loss.target = 0.5
        ratio = torch.tensor(0.9, requires_grad=True)
        optimizer = torch.optim.SGD([ratio], lr=0.02)
        for _ in range(800):
            optimizer.zero_grad()
            (loss(ratio, 1.0) - 2 * ratio).backward()
            optimizer.step()
            loss.update(ratio.item(), 1.0)
        reached.append(ratio.item())
    assert reached[0] == pytest.approx(0.6, abs=1e-3)
    assert reached[1] == pytest.approx(0.5, abs=1e-3)


def test_control_meets_the_target_without_a_loss(tmp_path):
    changes = {"budget.weight": 0.0, "budget.control": 1.0, "budget.ratio": 0.7, "budget.correct": False}
    recipe = tiny(routing="depth", train__epochs=12, budget__calibrate=False).override(changes)
    found = train_recipe(recipe, tmp_path / "run")
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["train_expected_ratio"] == pytest.approx(0.7, abs=0.03)
    assert found.net.gate_spec.threshold > 0.5
    for gates in ({"kind": "tanh"}, {"capacity": True}, {"selection": "random"}):
        with pytest.raises(SpecError, match=r"budget\.control"):
            tiny(gates=gates, budget__control=1.0)


def test_control_waits_for_the_gates_and_has_an_end():
    loss = BudgetLoss(BudgetSpec(control=0.5, multiplier_lr=0.1, open_frac=0.4), base=100, target=50)
    for step in range(1000):
        loss.update(100.0, 0.3 + step / 1e5)
    assert (loss.shift, loss.multiplier) == (0, 0)  # the gates are held open and cannot answer
    for _ in range(1000):
        loss.update(100.0, 0.5)
    assert loss.shift == pytest.approx(14.0)
    net = network(tiny())
    set_threshold(net, 1000.0)
    assert 0.999 < net.gate_spec.threshold < 1
    assert GateSpec.model_validate(net.gate_spec.model_dump()) == net.gate_spec


@pytest.mark.parametrize("ratio", [0.6, *(pytest.param(ratio, marks=pytest.mark.slow) for ratio in (0.8, 1.0))])
def test_training_and_calibration_reach_the_target(ratio):
    recipe = tiny(budget__ratio=ratio, gates__temperature=0.7)
    net, target = network(recipe), recipe.budget_macs()
    loss = BudgetLoss(recipe.budget, recipe.base_macs(), target)
    optimizer = torch.optim.Adam(net.gates.parameters(), lr=0.1)
    batch = images(16)
    for _ in range(70):
        macs = expected_macs(net, net(batch).routes)
        optimizer.zero_grad()
        loss(macs, 1.0).backward()
        optimizer.step()
        net.backbone.update_gate_ema()
    assert macs.item() == pytest.approx(target, rel=0.1)
    found = calibrate_threshold(net, [(batch, torch.zeros(16))], target)
    assert found.met, found
    net.eval()
    assert counted_macs(net, used(net, batch)) == pytest.approx(target, rel=0.03)
    assert found.macs == pytest.approx(target, rel=0.03)
    assert net.gate_spec.threshold == found.threshold


def test_calibration_says_when_it_cannot():
    net = network(tiny())
    most = open_macs(net.architecture, net.gate_spec)
    found = calibrate_threshold(net, [(images(), torch.zeros(8))], 2 * most)
    assert not found.met
    assert "saturated" in found.note
    random = network(tiny(routing="depth", gates__selection="random"))
    found = calibrate_threshold(random, [(images(2), torch.zeros(2))], 1.0)
    assert not found.met
    assert found.note


class Counted:
    """Batches that are made anew in each pass, and how many passes there were."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        yield from ((part, torch.zeros(len(part))) for part in images(8).split(2))


def test_calibration_holds_few_images_in_memory(monkeypatch):
    net, loaders = network(tiny(gates__openness=0.6)), [Counted(), Counted()]
    target = 0.5 * (closed_macs(net.architecture, net.gate_spec) + open_macs(net.architecture, net.gate_spec))
    held = calibrate_threshold(copy.deepcopy(net), loaders[0], target)
    monkeypatch.setattr("routespace.train.calibrate.HELD_BYTES", images(2).nbytes)
    again = calibrate_threshold(copy.deepcopy(net), loaders[1], target)
    assert again == held  # what is not held is read again, and nothing else changes
    assert loaders[0].passes == 1
    assert loaders[1].passes > 2


def test_a_loop_of_ones_own_reaches_its_budget():
    """The example of `budget_loss`, on one batch of noise."""
    net = network(tiny(train__label_smoothing=0.0)).train()
    batch, labels = images(), torch.arange(8) % 10
    staircase = architecture_cost(Architecture.staircase(net.architecture.grid)).macs
    wanted = 0.9 * staircase
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-2)
    for _ in range(40):
        out = net(batch)
        loss = torch.nn.functional.cross_entropy(out.logits, labels) + budget_loss(net, out.routes, macs=wanted)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        net.update_gate_ema()
    assert calibrate_threshold(net, [batch], wanted).met


def test_the_budget_of_ones_own_loop_is_the_recipes_formula():
    net = network(tiny()).train()
    routes = net(images()).routes
    macs = expected_macs(net, routes)
    assert budget_loss(net, routes, macs=macs.item()).item() == pytest.approx(0, abs=1e-9)
    target, base = 1.1 * closed_macs(net.architecture, net.gate_spec), 1e7
    assert abs(macs.item() - target) < base
    found = budget_loss(net, routes, macs=target, base=base, weight=3.0)
    assert found.item() == pytest.approx(3 * ((macs.item() - target) / base) ** 2, rel=1e-5)
    with pytest.raises(BudgetError, match="is impossible; with every gate closed the network takes"):
        budget_loss(net, routes, macs=1.0)


def test_a_far_budget_pulls_as_one_base_away():
    near = torch.tensor([-1.0, -0.4, 0.0, 0.7, 1.0], dtype=torch.float64, requires_grad=True)
    assert torch.equal(penalty(near), near**2)
    far = torch.tensor([-6.0, -1.5, 1.5, 6.0], dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(penalty(far).sum(), far)
    assert slopes.tolist() == [-2, -2, 2, 2]
    assert penalty(far).tolist() == pytest.approx([11, 2, 2, 11])


@pytest.mark.parametrize("layers", [4, 24])
def test_a_deep_grid_starts_with_its_task(layers):
    """Gates open, weight the default: the task has the larger gradient in the weights that both share."""
    grid = {
        "layers": layers,
        "widths": [8, 16, 24, 32],
        "heads": [1, 2, 3, 4],
        "image_size": 32,
        "num_classes": 10,
    }
    gates, data = {"openness": 0.97}, {"digit_px": [16, 30]}
    recipe = Recipe.parse({"name": "deep", "grid": {"size": "b0"} | grid, "gates": gates, "data": data})
    net, base = network(recipe).train(), recipe.base_macs()
    torch.manual_seed(0)
    out = net(torch.randn(4, 3, 32, 32))
    task = torch.nn.functional.cross_entropy(out.logits, torch.arange(4))
    paid = expected_macs(net, out.routes)
    budget = BudgetLoss(recipe.budget, base, recipe.budget_macs())(paid, 0.0)
    assert paid.item() / base > 3
    assert task.item() == pytest.approx(math.log(10), rel=0.1)  # however many arrivals a node adds up
    shared = [p for name, p in net.named_parameters() if not name.startswith("backbone.gates.")]

    def slope(loss):
        found = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        return torch.stack([gradient.norm() for gradient in found if gradient is not None]).norm()

    assert slope(budget) < slope(task)


@pytest.mark.parametrize("target", [math.nan, math.inf, 0.0, -1.0])
def test_a_target_that_is_no_number_of_macs_is_refused(target):
    grid = RoutingGrid(GridSpec(**TINY_GRID))
    net = TaskNet.classifier(Architecture.full(grid))
    images = torch.randn(2, 3, *grid.spec.image_size)
    with pytest.raises(SpecError, match="give the MACs of one image"):
        calibrate_threshold(net, [images], target)
    assert net.gate_spec.threshold is None
    with pytest.raises(BudgetError, match="is impossible"):
        budget_loss(net, net(images).routes, macs=target)


@pytest.mark.parametrize(
    "family", [{}, {"family": "swin_v2", "sr_ratios": None, "window": 4}], ids=["pvt_v2", "swin_v2"]
)
def test_a_budget_that_was_looked_at_in_inference_mode_is_trained_for_afterwards(family):
    """Prices are kept for the next one who asks; made in inference mode they could never be trained with."""
    fields = TINY_GRID | {"layers": 3, "in_channels": 4, "mlp_ratios": [3, 3]} | family  # of no other test
    spec = GridSpec.parse({name: value for name, value in fields.items() if value is not None})
    net, images = TaskNet.classifier(Architecture.full(RoutingGrid(spec))), torch.randn(2, 4, 32, 32)
    macs = 0.9 * open_macs(net.architecture, net.gate_spec)
    with torch.inference_mode():
        budget_loss(net, net(images).routes, macs=macs)
    budget_loss(net.train(), net(images).routes, macs=macs).backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in net.gates.parameters())
