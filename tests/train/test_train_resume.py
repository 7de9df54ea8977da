"""A run never goes on from something other than it was, wherever it was killed.

What a killed process leaves is what is on the disk at that moment. So one training is watched while it runs:
before each file appears in its folder, and at each step, the folder is copied. Each copy is then resumed.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from lasting import lasting
from train_tiny import tiny

from routespace.errors import BundleError, RoutespaceError, SpecError
from routespace.nn.task_net import TaskNet
from routespace.train import readings
from routespace.train.checkpoint import load_checkpoint, save_checkpoint
from routespace.train.run import RunResult, train_recipe
from routespace.train.run_folder import RunFolder
from routespace.train.run_lock import held, refuse_held
from routespace.train.stopping import DivergedError, TrainingStoppedError
from routespace.train.tasks.classify import Classify


class Watch:
    """Copies `folder` to numbered folders in `copies` each time that a file is about to appear in it."""

    def __init__(self, copies: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.copies = None, copies
        for name in ("rename", "replace"):
            patch.setattr(os, name, self._watched(getattr(os, name)))

    def _watched(self, move: Callable[..., None]) -> Callable[..., None]:
        def watched(source, target, **more) -> None:
            if self.folder is not None and Path(target).is_relative_to(self.folder):
                self.copy()
            move(source, target, **more)

        return watched

    def copy(self) -> None:
        if self.folder.exists():
            shutil.copytree(self.folder, self.copies / f"{len(list(self.copies.iterdir())):03d}")


@pytest.fixture
def watch(tmp_path, monkeypatch) -> Watch:
    (tmp_path / "copies").mkdir()
    return Watch(tmp_path / "copies", monkeypatch)


def outcome(result: RunResult) -> dict:
    return {
        "result": lasting(result.metrics),
        "lines": lasting(RunFolder(result.folder).read_metrics()),
        "usage": json.loads(RunFolder(result.folder).usage_path.read_text()),
    }


def same_weights(a: TaskNet, b: TaskNet) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def given() -> TaskNet:
    torch.manual_seed(7)
    return TaskNet.classifier(tiny().architecture(), tiny().gates)


@pytest.mark.parametrize(
    "each", [7, pytest.param(1, marks=pytest.mark.slow)], ids=["some moments", "every moment"]
)
@pytest.mark.parametrize("fine_tuned", [False, True], ids=["fresh", "from a network"])
def test_a_run_that_is_killed_anywhere_gives_what_it_would_have_given(watch, given, fine_tuned, each, tmp_path):
    recipe = tiny(data__train_size=32, data__val_size=16, budget__control=0.5)
    init = given if fine_tuned else None
    watch.folder = tmp_path / "whole"
    whole = train_recipe(recipe, watch.folder, init=init, progress=lambda news: watch.copy())
    watch.folder = None
    wanted, copies = outcome(whole), sorted(watch.copies.iterdir())
    assert len(copies) > 15
    resumed, tried = 0, copies[::each]
    for copy in tried:
        if not RunFolder(copy).is_run:
            train_recipe(tiny(train__epochs=0), copy)  # killed while it began: anything may begin here
            continue
        found = train_recipe(recipe, copy, resume=True)
        assert outcome(found) == wanted, copy
        assert same_weights(found.net, whole.net), copy
        assert found.net.deciding == whole.net.deciding
        resumed += 1
    assert resumed > len(tried) / 2


def test_a_resumed_fine_tuning_may_be_given_its_network_again_but_no_other(given, tmp_path):
    recipe = tiny(train__epochs=1, data__train_size=32)
    whole = train_recipe(recipe, tmp_path / "whole", init=given)
    for name in ("net", "usage.json", "result.json"):
        path = tmp_path / "whole" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert same_weights(train_recipe(recipe, tmp_path / "whole", init=given, resume=True).net, whole.net)
    other = TaskNet.classifier(given.architecture, given.gate_spec)
    (tmp_path / "whole" / "result.json").unlink()
    with pytest.raises(BundleError, match="was started from another network; leave --from out"):
        train_recipe(recipe, tmp_path / "whole", init=other, resume=True)


def test_a_fine_tuning_of_before_that_lost_its_start_is_refused(given, tmp_path):
    """Older versions wrote no checkpoint before the first epoch's end, and `given: true`."""
    run = RunFolder(tmp_path / "run")
    train_recipe(tiny(train__epochs=0), run.path, init=given)
    run.result_path.unlink()
    run.checkpoint_path.unlink()
    data = json.loads(run.architecture_path.read_text())
    run.architecture_path.write_text(json.dumps(data | {"given": True}))
    with pytest.raises(BundleError, match="its checkpoint is missing; start it again with --from"):
        train_recipe(tiny(train__epochs=0), run.path, resume=True)


def test_another_recipe_is_told_field_by_field_with_what_to_do(tmp_path):
    train_recipe(tiny(train__epochs=0), tmp_path / "a run")
    with pytest.raises(BundleError) as caught:
        train_recipe(
            tiny(train__epochs=3, train__lr=1e-3, seed=4, gates__rows="layer"), tmp_path / "a run", resume=True
        )
    said = str(caught.value)
    assert "seed: 0 → 4; gates.rows: token → layer; train.epochs: 0 → 3; and 1 more" in said
    way = f"routespace train '{tmp_path}/a run' --from '{tmp_path}/a run' --set seed=4 --set gates.rows=layer "
    assert way + f"--set train.epochs=3 --set train.lr=0.001 --out '{tmp_path}/a run-more'" in said
    RunFolder(tmp_path / "a run").result_path.unlink()
    with pytest.raises(BundleError, match="resume it without changes"):
        train_recipe(tiny(train__epochs=3), tmp_path / "a run", resume=True)


def test_another_number_of_processes_is_refused(tmp_path):
    run = RunFolder(tmp_path / "run")
    train_recipe(tiny(train__epochs=0), run.path)
    run.result_path.unlink()
    state = load_checkpoint(run.checkpoint_path)
    save_checkpoint(run.checkpoint_path, state | {"random": 2 * state["random"]})
    with pytest.raises(BundleError, match="was trained by 2 processes, these are 1"):
        train_recipe(tiny(train__epochs=0), run.path, resume=True)


def diverging(**changes):
    return tiny(train__lr=1e20, train__clip_grad=None, train__min_lr=0, train__warmup_epochs=0, **changes)


@pytest.mark.parametrize("size", [64, 16], ids=["in a step", "in the last step"])
def test_a_diverging_training_stops_and_leaves_nothing(size, tmp_path):
    """With one step an epoch the loss is still a number; what it makes of the weights shows on validation."""
    with pytest.raises(RoutespaceError, match=r"diverged; .*train\.lr"):
        train_recipe(diverging(data__train_size=size, train__epochs=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_later_keeps_its_last_good_checkpoint(tmp_path, monkeypatch):
    real, calls = Classify.loss, []

    def loss(self, outputs, targets):
        calls.append(1)
        return real(self, outputs, targets) * (1 if len(calls) <= 5 else float("nan"))

    monkeypatch.setattr(Classify, "loss", loss)
    with pytest.raises(DivergedError, match=r"the loss became nan in epoch 2, step 2 of 4"):
        train_recipe(tiny(), tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert len(run.read_metrics()) == load_checkpoint(run.checkpoint_path)["epoch"] == 1
    assert not run.is_finished


@pytest.fixture
def reads_later(monkeypatch):
    """As on a GPU, where steps do not wait for their numbers."""
    monkeypatch.setattr(readings.StepReadings, "each_step", False)
    monkeypatch.setattr(readings, "READ_STEPS", 3)


def test_numbers_that_are_read_later_are_the_same(given, tmp_path, reads_later, monkeypatch):
    plain = tiny(routing="static", gates={}, budget={"ratio": None})
    later = outcome(train_recipe(plain, tmp_path / "later"))
    monkeypatch.setattr(readings.StepReadings, "each_step", True)
    assert outcome(train_recipe(plain, tmp_path / "at once")) == later


def test_a_run_whose_numbers_are_read_later_can_be_stopped_anywhere(tmp_path, reads_later):
    plain = tiny(routing="static", gates={}, budget={"ratio": None})
    whole, steps = outcome(train_recipe(plain, tmp_path / "whole")), 0

    def stop(news):
        nonlocal steps
        steps += 1
        if steps == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(TrainingStoppedError, match="after step 2 of 4"):
        train_recipe(plain, tmp_path / "run", progress=stop)
    assert outcome(train_recipe(plain, tmp_path / "run", resume=True)) == whole


def test_a_loss_that_is_read_later_is_told_with_its_own_step(tmp_path, reads_later, monkeypatch):
    real, calls = Classify.loss, []

    def loss(self, outputs, targets):
        calls.append(1)
        return real(self, outputs, targets) * (1 if len(calls) <= 5 else float("nan"))

    monkeypatch.setattr(Classify, "loss", loss)
    with pytest.raises(DivergedError, match=r"the loss became nan in epoch 2, step 2 of 4"):
        train_recipe(tiny(routing="static", gates={}, budget={"ratio": None}), tmp_path / "run")


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    code = """
import sys
from pathlib import Path
from routespace.train.run_lock import held, refuse_held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
    folder = tmp_path / "runs/first"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], **pipes) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BundleError, match="another process is training in it; wait for it to end"):
            train_recipe(tiny(train__epochs=0), folder)
        with pytest.raises(BundleError, match="another process is training in it"):
            refuse_held(folder)
        other.kill()  # it has no time to tidy up
    refuse_held(folder)
    assert train_recipe(tiny(train__epochs=0), folder).metrics["epochs"] == 0
    assert not (folder / ".lock").exists()


def test_a_full_disk_is_told_in_plain_words(tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 99392 vs 99344")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(BundleError, match=r"state.pt: cannot be written \(the disk is full, or its quota\)"):
        save_checkpoint(tmp_path / "run/state.pt", {})
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_trained_in_does_not_stay(tmp_path):
    with held(tmp_path / "runs/first"):
        assert (tmp_path / "runs/first").is_dir()
    assert not (tmp_path / "runs").exists()
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="file: cannot be written"), held(tmp_path / "file"):
        pass


@pytest.mark.parametrize("name", ["../mine", "a/b", "a\\b", "..", ".hidden", " "])
def test_a_name_is_no_path(name):
    with pytest.raises(SpecError, match="name: "):
        tiny(name=name)


def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path):
    static = {"routing": "static", "budget__of": "base", "budget__macs": 1_000_000}
    for changes in (static, {"train__mixup": 0.2, "train__batch_size": 16, "data__train_size": 8}):
        with pytest.raises(RoutespaceError):
            train_recipe(tiny(**changes), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_library_call_leaves_generators_and_accelerate_as_they_were(tmp_path):
    theirs = Accelerator(cpu=True).mixed_precision
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    precision = "bf16" if theirs == "no" else "no"
    train_recipe(tiny(train__epochs=1, data__train_size=16, train__precision=precision), tmp_path / "run")
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert AcceleratorState().mixed_precision == theirs


def test_a_second_interrupt_is_not_waited_for(tmp_path):
    """Stopped before its first step by a KeyboardInterrupt of its caller, a run leaves nothing."""

    def interrupt(news):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(tiny(), tmp_path / "run", progress=interrupt)
    assert not (tmp_path / "run").exists()
    assert issubclass(TrainingStoppedError, RoutespaceError)


def test_a_run_goes_on_in_less_memory_and_on_another_device(tmp_path):
    """What a training finds depends on none of these: they need not be those that it began with."""
    whole = train_recipe(tiny(), tmp_path / "whole")
    run = RunFolder(tmp_path / "run")
    with pytest.raises(TrainingStoppedError):
        train_recipe(tiny(), run.path, progress=lambda _: signal.raise_signal(signal.SIGTERM))
    elsewhere = {"train__grad_checkpointing": True, "train__checkpoint_epochs": 2, "train__device": "auto"}
    elsewhere |= {"train__cuda_graphs": False}
    recipe = tiny(**elsewhere, data__workers=1)
    assert same_weights(train_recipe(recipe, run.path, resume=True).net, whole.net)
    assert run.read_recipe() == recipe
