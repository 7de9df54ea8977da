"""Recorded passes give what passes give: by a tape of our own on the CPU, by CUDA graphs where there is a GPU."""

import pytest
import torch
from accelerate import Accelerator
from devices import CUDA
from train_pixels import pixels
from train_tiny import tiny

from routespace import TaskNet
from routespace.errors import SpecError
from routespace.train.budget import BudgetLoss
from routespace.train.data.scenes.on_device import on_device
from routespace.train.data.skipping import Group
from routespace.train.passes import OnePass, Runner, SelfTaught
from routespace.train.recording import (
    MOST_RECORDED,
    SAME,
    CudaTape,
    Recorder,
    asks_nothing,
    execution_with,
    recorder_for,
    waiting_line,
)
from routespace.train.run import train_recipe
from routespace.train.run_folder import RunFolder
from routespace.train.sandwich import Sandwich
from routespace.train.step_loss import StepLoss
from routespace.train.teaching import GateTeacher

MAP = {"gates__source": "map", "gates__opening": "share", "gates__teach": "dense", "gates__noise": 0.0}
STILL = {"gates__noise": 0.0, "gates__temperature": 1.0, "gates__final_temperature": 1.0}


class PlayedTape:
    """Calls again what was recorded, and puts what it gives where the first call put it."""

    def __init__(self, net, teacher):
        self.net, self.teacher, self.recorded, self.replays = net, teacher, 0, 0

    def live(self, call):
        return call()

    def record(self, call):
        with self.teacher.apart() as seen:
            found = call()
        self.teacher.add(seen)
        self.recorded += 1
        gradients = {p: p.grad for p in self.net.parameters() if p.grad is not None}

        def replay():
            self.replays += 1
            now = {p: p.grad for p in self.net.parameters()}
            for p in self.net.parameters():
                p.grad = None
            with self.teacher.apart() as seen_again:
                again = call()
            for name, passes in seen.items():
                for old, new in zip(passes, seen_again[name], strict=True):
                    old.x.copy_(new.x)
                    old.y.detach().copy_(new.y.detach())
                    old.y.grad.copy_(new.y.grad)
            for p, gradient in gradients.items():
                gradient.copy_(p.grad)
            for p, before in now.items():
                p.grad = before
            for old, new in zip(tensors(found), tensors(again), strict=True):
                old.copy_(new)

        return found, replay


def tensors(outcome):
    return torch.utils._pytree.tree_leaves(outcome)


def made(recipe, *, recorded):
    """A network in training, and the passes of its recipe, with a recorder or without one."""
    torch.manual_seed(0)
    net = TaskNet.classifier(recipe.architecture(), recipe.gates, execution=recipe.train.execution).train()
    task = recipe.task.make(recipe.grid, recipe.train)
    target = recipe.budget_macs()
    shared = recipe.gates.opening == "share" or net.architecture.is_static or target is None
    budget = None if shared else BudgetLoss(recipe.budget, recipe.base_macs(), target)
    losses, teacher = StepLoss(net, task, budget, recipe.train), GateTeacher(net)
    tape = PlayedTape(net, teacher)
    recorder = Recorder(losses, teacher, tape) if recorded else None
    run = Runner(losses, Accelerator(cpu=True), recorder=recorder)
    return net, run, teacher, tape, losses


def batch_of(seed):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (6,), generator=draw)
    return [Group(torch.randn(6, 3, 32, 32, generator=draw), labels)]


def gradients(net):
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def steps(recipe, passes, count, *, recorded, watched=False):
    """Losses and gradients of some steps; each moves the weights a little."""
    net, run, teacher, tape, losses = made(recipe, recorded=recorded)
    does, found = passes(run, net, recipe), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for step in range(count):
        batch = batch_of(step)
        held = net.architecture.opened() if watched else None
        shares = {"l01_r04_transformer": 0.5} if recipe.gates.opening == "share" and not watched else None
        with net.deciding_as(held=held, shares=shares), teacher.watching(batch, on=watched):
            told = does(batch, 0.5, step)
        teacher.teach(run.accelerator)
        found.append((torch.stack([part.double() for part in told]), gradients(net)))
        optimizer.step()
        optimizer.zero_grad()
    return found, tape, losses


KINDS = {
    "plain": ({"routing": "static", "budget__ratio": None}, lambda run, net, recipe: OnePass(run), False),
    "masked, by a loss": (STILL, lambda run, net, recipe: OnePass(run), False),
    "soft": (
        {**STILL, "gates__relaxation": "soft", "train__execution": "auto"},
        lambda r, n, _: OnePass(r),
        False,
    ),
    "shares of a map": (MAP, lambda run, net, recipe: OnePass(run), False),
    "taught by the dense pass": (MAP, lambda run, net, recipe: OnePass(run), True),
    "its own teacher": (STILL, lambda run, net, recipe: SelfTaught(run, net), False),
    "sandwich": (
        {"train__mode": "sandwich", "train__sandwich_parts": 1},
        lambda run, net, recipe: Sandwich(run, net, recipe, 8),
        False,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_pass_gives_what_a_pass_gives(kind):
    changes, passes, watched = KINDS[kind]
    recipe, count = tiny(**changes), SAME + 4
    if changes.get("gates__source") == "map":
        recipe = recipe.override({"routing": "depth"})
    ever, *_ = steps(recipe, passes, count, recorded=False, watched=watched)
    found, tape, _ = steps(recipe, passes, count, recorded=True, watched=watched)
    assert tape.recorded >= 1
    assert tape.replays >= 4
    for (losses, grads), (again, others) in zip(ever, found, strict=True):
        torch.testing.assert_close(losses, again, equal_nan=True)
        assert grads.keys() == others.keys()
        for name in grads:
            torch.testing.assert_close(grads[name], others[name], msg=name)


def test_numbers_that_move_are_in_no_recording():
    """A pass of other numbers is made anew, and recorded again when these have settled."""
    recipe = tiny(**STILL)
    net, run, _, tape, losses = made(recipe, recorded=True)
    for step in range(SAME + 2):
        run(batch_of(step), 0.5)
    assert (tape.recorded, tape.replays) == (1, 2)
    for step in range(3):  # each step another temperature
        net.decide(temperature=2.0 + step)
        run(batch_of(step), 0.5)
    assert (tape.recorded, tape.replays) == (1, 2)
    losses.budget.multiplier = 1.0
    for step in range(SAME + 1):
        run(batch_of(step), 0.5)
    assert (tape.recorded, tape.replays) == (2, 3)
    run(batch_of(0), 0.5, budgeted=False)  # another kind
    run([Group(images[:3], labels[:3]) for images, labels in batch_of(0)], 0.5)  # another size
    assert (tape.recorded, tape.replays) == (2, 3)
    run(batch_of(0), 0.5)
    assert tape.replays == 4


@pytest.mark.parametrize("held", [False, True])
def test_what_no_gate_decides_heeds_no_temperature(held):
    """Schedules move it in plain networks too, and while gates are held."""
    recipe = tiny() if held else tiny(routing="static", budget__ratio=None)
    net, run, _, tape, _ = made(recipe.override({"budget.ratio": None}), recorded=True)
    for step in range(SAME + 2):
        with net.deciding_as(temperature=1.0 + step, held=net.architecture.opened() if held else None):
            run(batch_of(step), 0.5)
    assert (tape.recorded, tape.replays) == (1, 2)


def test_gradients_of_several_passes_add_up():
    recipe = tiny(**STILL)
    net, run, *_ = made(recipe, recorded=True)
    for step in range(SAME + 1):
        net.zero_grad()
        run(batch_of(step), 0.5)
    net.zero_grad()
    run(batch_of(0), 0.5)
    once = gradients(net)
    run(batch_of(0), 0.5)
    for name, gradient in gradients(net).items():
        torch.testing.assert_close(gradient, 2 * once[name])


def test_only_some_recordings_are_kept():
    recipe = tiny(routing="static", budget__ratio=None)
    _, run, _, tape, _ = made(recipe, recorded=True)
    sizes = range(1, MOST_RECORDED + 3)
    (given,) = batch_of(0)
    for size in sizes:
        groups = [Group(given.images[:1].repeat(size, 1, 1, 1), given.targets[:1].repeat(size))]
        for _ in range(SAME + 2):
            run(groups, 0.5)
    assert tape.recorded == len(sizes)
    replays = tape.replays
    run([Group(given.images[:1], given.targets[:1])], 0.5)  # the first one has been dropped
    assert (tape.recorded, tape.replays) == (len(sizes) + 1, replays + 1)


@pytest.mark.parametrize(
    ("changes", "nothing"),
    [
        ({"routing": "static", "budget__ratio": None, "train__execution": "packed"}, True),
        ({}, True),
        ({"train__execution": "packed"}, False),
        ({"train__execution": "auto"}, False),
        ({"train__execution": "auto", "gates__relaxation": "soft"}, True),
    ],
)
def test_what_asks_the_device_for_nothing(changes, nothing):
    recipe = tiny(**changes)
    net = TaskNet.classifier(recipe.architecture(), recipe.gates, execution=recipe.train.execution)
    assert asks_nothing(net) is nothing


def test_a_pass_that_cannot_be_recorded_is_told(monkeypatch):
    _, run, *_ = made(tiny(**STILL), recorded=True)

    def refuse(tape, call):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(PlayedTape, "record", refuse)
    for step in range(SAME):
        run(batch_of(step), 0.5)
    with pytest.raises(
        SpecError, match=r"cannot be recorded .*\(operation not .*capturing\); set train.cuda_graphs="
    ):
        run(batch_of(SAME), 0.5)


def test_on_a_cpu_nothing_is_recorded():
    _, run, teacher, _, losses = made(tiny(), recorded=False)
    assert recorder_for(tiny(), losses, teacher, run.accelerator) is None


def test_auto_masks_where_steps_are_recorded():
    net, run, *_ = made(tiny(), recorded=True)
    found = [execution_with(run.recorder, net, word) for word in ("auto", "packed", "dense")]
    assert found == ["dense", "packed", "dense"]
    assert execution_with(None, net, "auto") == "auto"
    soft, *_ = made(tiny(gates__relaxation="soft"), recorded=True)
    assert execution_with(run.recorder, soft, "auto") == "auto"


def test_what_packing_costs_on_a_gpu_is_told():
    packed, gpu = tiny(train__execution="packed"), torch.device("cuda")
    assert "'auto' masks the others" in waiting_line(packed, packed.architecture(), gpu)
    assert waiting_line(packed, packed.architecture().opened(), gpu) is None
    for changes in ({"train__execution": "auto"}, {"train__execution": "packed", "train__cuda_graphs": False}):
        assert waiting_line(tiny(**changes), packed.architecture(), gpu) is None
    assert waiting_line(packed, packed.architecture(), torch.device("cpu")) is None


SCENES = {"kind": "scenes", "train_size": 192, "val_size": 32, "object_px": [12, 30]}
TAUGHT = {
    "routing": "depth",
    "gates": {"source": "map", "opening": "share", "teach": "dense", "noise": 0.0},
    "budget": {"ratio": 0.8, "open_frac": 0.0, "settle_frac": 0.2},
    "train.phases": [
        {"epochs": 1, "gates": "held", "execution": "dense", "data": {"object_px": [20, 30]}},
        {"epochs": 1, "gates": "taught", "execution": "dense"},
    ],
}


@pytest.mark.parametrize("device", [CUDA], indirect=True)
@pytest.mark.parametrize(
    ("changes", "recorded"),
    [
        ({"routing": "static", "budget": {"ratio": None}, "train.precision": "bf16", "train.drop_path": 0.1}, 1),
        (TAUGHT, 3),
        (TAUGHT | {"train.ema_decay": 0.9, "train.teacher": "self"}, 4),
        ({f"{name[:5]}.{name[7:]}": value for name, value in STILL.items()}, 1),
        ({"gates": {"relaxation": "soft", "noise": 0.0}, "train.execution": "auto"}, 1),
        ({"train.mode": "sandwich", "train.sandwich_parts": 1}, 2),
    ],
    ids=["static", "taught", "own teacher", "masked", "soft", "sandwich"],
)
def test_a_training_by_graphs_is_a_training(device, changes, recorded, tmp_path, monkeypatch):
    """The same losses as kernel by kernel, but for the order of sums, and a recording of each kind of pass."""
    made, record = [], CudaTape.record

    def counted(self, call):
        made.append(call)
        return record(self, call)

    monkeypatch.setattr(CudaTape, "record", counted)
    recipe = tiny().override({"data": SCENES, "train.device": device.type, "train.epochs": 1} | changes)
    lines = []
    for graphs in (False, True):
        own = recipe.override({"train.cuda_graphs": graphs})
        run = train_recipe(own, tmp_path / str(graphs), loaders=on_device(device))
        lines.append(RunFolder(run.folder).read_metrics())
    assert len(made) >= recorded
    for ever, again in zip(*lines, strict=True):
        for name in ("loss", "task_loss", "expected_ratio"):
            assert again[name] == pytest.approx(ever[name], rel=0.03), name


@pytest.mark.parametrize("device", [CUDA], indirect=True)
def test_pixels_are_learned_by_graphs(device, tmp_path, monkeypatch):
    made, record = [], CudaTape.record
    monkeypatch.setattr(CudaTape, "record", lambda self, call: made.append(call) or record(self, call))
    recipe = pixels(train__device=device.type, **STILL)
    losses = []
    for graphs in (False, True):
        run = train_recipe(recipe.override({"train.cuda_graphs": graphs}), tmp_path / str(graphs))
        losses.append([line["loss"] for line in RunFolder(run.folder).read_metrics()])
    assert made
    assert losses[0] == pytest.approx(losses[1], rel=0.03)
